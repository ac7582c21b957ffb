"""Times the store of conversations: 2,000 conversations of 50 messages, a third of them Chinese.

Prints the size of the file, and the medians of lists, searches, whole conversations and appended text, in milliseconds.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from freedive.server.conversations.records import ConversationDraft, MessageDraft, Role, now
from freedive.server.conversations.store import ConversationStore

SYLLABLES = ("ba", "co", "di", "fu", "gra", "ka", "lo", "mi", "ne", "po", "ri", "sta", "tu", "ve", "wo", "xe")
NUM_CHARACTERS = 2500
"""Different Chinese characters: about as many as are common."""
QUERIES = {
    "a common word": "the",
    "a common prefix of one letter": "t",
    "two words": "the bacodi",
    "a rare word": "graxewo",
    "one Chinese character": "\u4e00",
    "a Chinese word": "\u4e00\u4e01",
    "nothing": "zzzz",
}


class Texts:
    """Random messages whose words and characters are as unevenly frequent as those of languages (Zipf's law)."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        words = ["the", *("".join(self._random.choices(SYLLABLES, k=3)) for _ in range(20_000))]
        characters = [chr(0x4E00 + index) for index in range(NUM_CHARACTERS)]
        self._words, self._characters = ((each, _zipf(len(each))) for each in (words, characters))

    def message(self, number: int) -> str:
        """Returns a message of about 600 bytes, Chinese for every third number."""
        length = self._random.randint(20, 180)
        if number % 3 == 0:
            characters, sums = self._characters
            return "".join(self._random.choices(characters, cum_weights=sums, k=2 * length))
        words, sums = self._words
        return " ".join(self._random.choices(words, cum_weights=sums, k=length))


def _zipf(number: int) -> list[float]:
    total, sums = 0.0, []
    for rank in range(1, number + 1):
        total += 1 / rank
        sums.append(total)
    return sums


def fill(store: ConversationStore, num_conversations: int, num_messages: int) -> None:
    """Stores conversations that were continued in the last year."""
    texts = Texts(1)
    for number in range(num_conversations):
        roles: tuple[Role, ...] = ("user", "assistant") * (num_messages // 2)
        messages = [
            MessageDraft(role=role, content=texts.message(number), parent=index - 1 if index else None)
            for index, role in enumerate(roles)
        ]
        updated = now() - (num_conversations - number) * 365 * 86_400_000 // num_conversations
        title, folder = texts.message(number)[:40], ("", "work", "study")[number % 3]
        draft = ConversationDraft(
            title=title, folder=folder, messages=messages, leaf=len(messages) - 1, updated=updated
        )
        store.create("", draft)


def timed(name: str, function: Callable[[], object], repeats: int = 15) -> None:
    """Prints the median and the largest time of ``function``."""
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        function()
        times.append((time.perf_counter() - before) * 1000)
    print(f"{name:48} {statistics.median(times):9.2f} {max(times):9.2f}")


def measure(store: ConversationStore) -> None:
    """Prints all times; the columns are the median and the largest, in ms."""
    ids = store.ids("")
    cursor = store.page("", limit=50).next
    timed("list: first 50", lambda: store.page("", limit=50))
    timed("list: next 50", lambda: store.page("", after=cursor, limit=50))
    timed("list: a folder", lambda: store.page("", folder="work", limit=50))
    timed("folders", lambda: store.folders(""))
    timed("read a conversation", lambda: store.read("", ids[7]))
    for name, query in QUERIES.items():
        number = len(store.search("", query, 10_000))
        timed(f"search: {name} (in {number})", partial(store.search, "", query))
    _append(store, ids[-1])


def _append(store: ConversationStore, id: str) -> None:
    parent = store.messages.add(
        "", id, MessageDraft(role="user", content="go on"), parent=store.read("", id).path()[-1].id
    )
    draft = MessageDraft(role="assistant", content="", status="running")
    answer = store.messages.add("", id, draft, parent=parent.id).id
    timed("append 100 characters to an answer", lambda: store.messages.append("", id, answer, content="x" * 100), 2000)
    timed("end an answer of 200,000 characters", lambda: store.messages.finish("", id, answer, "complete"), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=2000)
    parser.add_argument("--messages", type=int, default=50)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conversations.sqlite"
        store = ConversationStore(path)
        before = time.perf_counter()
        fill(store, asked.conversations, asked.messages)
        took = time.perf_counter() - before
        print(f"{asked.conversations} conversations of {asked.messages} messages stored in {took:.1f} s")
        print(f"{path.stat().st_size / 1e6:.0f} MB")
        measure(store)
        store.close()


if __name__ == "__main__":
    main()
