"""Synthetic conversations of several turns in any order, and the parts that are learned."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

from freedive.text.tokenizer import Tokenizer
from freedive.train.data import conversations, sources, tasks
from freedive.train.data.chat_tokenizer import ChatTokenizer
from freedive.train.data.stories import WORLD
from freedive.train.data.tasks import THINK
from freedive.train.run.config import Data

CHATS = [record["messages"] for record in conversations.chats(400, 1)]


def kind(asked: str) -> str:
    """Returns the kind of the turn that begins with ``asked``."""
    if "+" in asked or asked.startswith("Start with"):
        return "task"
    return "story" if "story" in asked.lower() else "talk"


def test_conversations_are_equal_for_a_seed_and_alternate_roles() -> None:
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


def test_answers_to_earlier_tasks_have_no_thoughts_and_are_not_learned(tokenizer_folder: Path) -> None:
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


def test_examples_of_tasks_come_alone_or_after_another_of_either_kind(tokenizer_folder: Path) -> None:
    vocabulary = ChatTokenizer(Tokenizer.from_folder(tokenizer_folder))
    examples = [record["messages"] for record in tasks.chats(400, 1)]
    alone = [messages for messages in examples if len(messages) == 2]
    assert 0.6 < sum(THINK not in messages[1]["content"] for messages in alone) / len(alone) < 0.8
    pairs = [messages for messages in examples if len(messages) == 4]
    assert len(alone) + len(pairs) == 400
    kinds = Counter(tuple(message["content"].split()[0] for message in messages[::2]) for messages in pairs)
    assert len(kinds) == 4
    assert min(kinds.values()) > 25
    for messages in pairs:
        assert messages[-1]["content"].startswith(THINK)
        tokens, weights = vocabulary.chat(messages)
        learned = [token for token, weight in zip(tokens, weights, strict=True) if weight]
        assert vocabulary.answer_text(learned) == messages[-1]["content"]
    assert not any(tasks.Task("", message["content"], "", "").held_out for each in examples for message in each[::2])


def test_tasks_in_the_last_turn_have_thoughts_and_are_learned(tokenizer_folder: Path) -> None:
    vocabulary = ChatTokenizer(Tokenizer.from_folder(tokenizer_folder))
    solved = [messages for messages in CHATS if kind(messages[-2]["content"]) == "task"]
    assert sum(len(messages) > 2 for messages in solved) > 100
    for messages in solved:
        assert messages[-1]["content"].startswith(THINK)
        assert vocabulary.chat(messages)[1][-1] == 1


def test_talk_and_stories_are_learned_wherever_they_stand(tokenizer_folder: Path) -> None:
    vocabulary = ChatTokenizer(Tokenizer.from_folder(tokenizer_folder))
    for messages in CHATS[:100]:
        tokens, weights = vocabulary.chat(messages)
        learned = [token for token, weight in zip(tokens, weights, strict=True) if weight]
        said = [message["content"] for message in messages[1::2] if message.get("weight", 1)]
        assert vocabulary.tokenizer.decode(learned, skip_special=False) == "".join(f"{each}<|end|>" for each in said)


def test_greetings_and_questions_about_the_model_come_up_more_often_than_the_rest() -> None:
    answers = Counter(messages[1]["content"] for messages in CHATS if kind(messages[0]["content"]) == "talk")
    chances = {about["answers"][0]: about.get("chance", 1) for about in WORLD["talk"]}
    hello, name, tired = (
        answers[said] for said in ("Hello! What would you like to hear?", "My name is nano.", "Good night! Sleep well.")
    )
    assert min(hello, name) > 2 * tired
    assert max(chances.values()) > 1


def test_conversations_are_read_in_pretraining_too_and_are_others() -> None:
    data = Data(num_conversations=50, num_stories=3, num_solutions=4, num_chats=5, num_tasks=6)
    read, learned = list(sources.documents(data)), list(sources.chats(data))
    assert (len(read), len(learned)) == (57, 61)
    longer = [[r["messages"] for r in records if len(r.get("messages", [])) > 4] for records in (read, learned)]
    assert min(map(len, longer)) > 10
    assert not any(messages in longer[1] for messages in longer[0])


def test_conversations_of_tasks_hold_no_task_that_is_held_out() -> None:
    asked = [message["content"] for messages in CHATS for message in messages if message["role"] == "user"]
    assert not any(tasks.Task("", question, "", "").held_out for question in asked if kind(question) == "task")


def test_tasks_to_reinforce_come_alone_or_after_other_turns() -> None:
    some = list(islice(conversations.reinforced(3), 200))
    assert some == list(islice(conversations.reinforced(3), 200))
    assert 40 < sum(bool(task.before) for task in some) < 100
    assert not any(task.held_out for task in some)
    assert all(task.messages[-1] == {"role": "user", "content": task.question} for task in some)
