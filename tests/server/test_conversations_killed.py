"""A process that appends to answers is killed at any moment: what it had stored is there."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from freedive.server.conversations.records import ConversationDraft, MessageDraft
from freedive.server.conversations.store import ConversationStore

WRITER = """
import sys
from pathlib import Path
from freedive.server.conversations.records import ConversationDraft, MessageDraft
from freedive.server.conversations.store import ConversationStore

store = ConversationStore(Path(sys.argv[1]))
while True:
    id = store.create("ann", ConversationDraft()).id
    asked = store.messages.add("ann", id, MessageDraft(role="user", content="count"), parent=None)
    answer = MessageDraft(role="assistant", content="", status="running")
    answer = store.messages.add("ann", id, answer, parent=asked.id)
    for number in range(200):
        store.messages.append("ann", id, answer.id, content=f"{number} ", reasoning=f"{number} ")
        print(id, number, flush=True)
    store.messages.finish("ann", id, answer.id, "complete")
"""


def test_twenty_killed_writers_damage_nothing_and_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "conversations.sqlite"
    choose = random.Random(1)
    stored: dict[str, int] = {}
    for _ in range(20):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout
            first = process.stdout.readline()
            time.sleep(choose.random() * 0.15)
            process.send_signal(signal.SIGKILL)
            lines = (first + process.stdout.read()).splitlines()
        for line in lines:
            id, _, number = line.partition(" ")
            if number:  # the last line may be cut
                stored[id] = max(stored.get(id, 0), int(number))
    store = ConversationStore(path)
    assert len(stored) >= 20
    assert set(stored) <= set(store.ids("ann"))
    num_interrupted = 0
    for id, last in stored.items():
        [_, answer] = store.read("ann", id).path()
        words = answer.content.split()
        assert words == list(map(str, range(len(words))))
        assert len(words) > last
        assert answer.reasoning == answer.content
        assert answer.status == ("complete" if len(words) == 200 and answer.status == "complete" else "interrupted")
        num_interrupted += answer.status == "interrupted"
    assert num_interrupted >= 10
    with store._database.writing() as sql:
        assert sql.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        sql.execute("INSERT INTO word (word) VALUES ('integrity-check')")
    id = store.create("ann", ConversationDraft()).id
    assert store.messages.add("ann", id, MessageDraft(role="user", content="and on"), parent=None)
    store.close()
