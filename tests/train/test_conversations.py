"""Conversations that are made up: of several turns, in any order, and what of them is learned."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from freedive.text.tokenizer import Tokenizer
from freedive.train.data import conversations, tasks
from freedive.train.data.chat_tokenizer import ChatTokenizer

CHATS = [record["messages"] for record in conversations.chats(400, 1)]


def kind(asked: str) -> str:
    """What sort of turn a user's words begin."""
    if "+" in asked or asked.startswith("Start with"):
        return "task"
    return "story" if "story" in asked.lower() else "talk"


def test_conversations_are_the_same_for_a_seed_and_take_turns() -> None:
    assert [record["messages"] for record in conversations.chats(400, 1)] == CHATS
    for messages in CHATS:
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert not any("{" in message["content"] for message in messages)


def test_conversations_hold_every_kind_of_turn_after_every_other() -> None:
    pairs = Counter(
        (kind(before["content"]), kind(after["content"]))
        for messages in CHATS
        for before, after in zip(messages[::2], messages[2::2], strict=False)
    )
    assert min(pairs[first, then] for first in ("task", "story", "talk") for then in ("task", "story", "talk")) > 5


def test_answers_to_earlier_tasks_stand_without_thoughts_and_are_not_learned(tokenizer_folder: Path) -> None:
    vocabulary = ChatTokenizer(Tokenizer.from_folder(tokenizer_folder))
    earlier = 0
    for messages in CHATS:
        for index in range(0, len(messages) - 2, 2):
            if kind(messages[index]["content"]) == "task":
                answer = messages[index + 1]
                assert answer["content"].isdigit()
                assert answer["weight"] == 0
                _, weights = vocabulary.chat(messages[index : index + 2])
                assert not any(weights)
                earlier += 1
        assert any(vocabulary.chat(messages)[1])
    assert earlier > 50


def test_conversations_of_tasks_hold_no_task_that_is_held_out() -> None:
    asked = [message["content"] for messages in CHATS for message in messages if message["role"] == "user"]
    assert not any(tasks.Task("", question, "", "").held_out for question in asked if kind(question) == "task")


def test_tasks_to_reinforce_come_alone_or_after_other_turns() -> None:
    some = list(islice(conversations.reinforced(3), 200))
    assert some == list(islice(conversations.reinforced(3), 200))
    assert 40 < sum(bool(task.before) for task in some) < 100
    assert not any(task.held_out for task in some)
    assert all(task.messages[-1] == {"role": "user", "content": task.question} for task in some)
