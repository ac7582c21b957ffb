"""The store of conversations: trees, folders, undo, owners, files, and what a restart leaves."""

from __future__ import annotations

import sqlite3
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from freedive.errors import NotFound, UserError
from freedive.server.conversations import room, schema
from freedive.server.conversations import store as store_module
from freedive.server.conversations.chats import Chats
from freedive.server.conversations.records import ConversationDraft, FileDraft, Message, MessageDraft, now
from freedive.server.conversations.store import ConversationStore
from freedive.server.storage.database import Database


@pytest.fixture
def store() -> Iterator[ConversationStore]:
    store = ConversationStore()
    yield store
    store.close()


def begun(store: ConversationStore, text: str = "hello", owner: str = "ann", **fields: Any) -> tuple[str, Message]:
    """Returns the id of a new conversation and its first message."""
    id = store.create(owner, ConversationDraft(**fields)).id
    return id, say(store, id, text, owner=owner)


def say(store: ConversationStore, id: str, text: str, parent: str | None = None, **fields: Any) -> Message:
    owner = fields.pop("owner", "ann")
    role = fields.pop("role", "user")
    files = fields.pop("files", ())
    return store.messages.add(owner, id, MessageDraft(role=role, content=text, **fields), parent=parent, files=files)


def shown(store: ConversationStore, id: str) -> list[str]:
    return [message.content for message in store.read("ann", id).path()]


def test_a_conversation_survives_a_restart_in_a_file_of_its_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "home" / "conversations.sqlite"
    store = ConversationStore(path)
    id, first = begun(store, "你好", settings={"model": "nano", "sampling": {"temperature": 0.5}}, folder="work")
    say(store, id, "hi", first.id, role="assistant", reasoning="a greeting", model="nano", usage={"tokens": 2})
    before = store.read("ann", id)
    store.close()
    store = ConversationStore(path)
    assert store.read("ann", id) == before
    assert before.conversation.settings == {"model": "nano", "sampling": {"temperature": 0.5}}
    assert [message.usage for message in before.path()] == [{}, {"tokens": 2}]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    store.close()


def test_an_edit_is_a_branch_and_the_leaf_chooses_the_path(store: ConversationStore) -> None:
    id, first = begun(store, "one")
    answer = say(store, id, "uno", first.id, role="assistant")
    say(store, id, "ein", first.id, role="assistant")
    assert shown(store, id) == ["one", "ein"]
    edited = say(store, id, "two")
    assert shown(store, id) == ["two"]
    more = say(store, id, "three", answer.id)
    assert shown(store, id) == ["one", "uno", "three"]
    store.update("ann", id, leaf=edited.id)
    assert shown(store, id) == ["two"]
    tree = store.read("ann", id)
    assert {message.content for message in tree.messages if message.parent is None} == {"one", "two"}
    assert {message.content for message in tree.messages if message.parent == first.id} == {"uno", "ein"}
    other, _ = begun(store)
    with pytest.raises(NotFound):
        store.update("ann", other, leaf=more.id)


def test_roles_alternate(store: ConversationStore) -> None:
    id, first = begun(store)
    with pytest.raises(UserError, match="cannot follow the message of the user"):
        say(store, id, "again", first.id)
    with pytest.raises(UserError, match="cannot be the first message"):
        say(store, id, "hi", role="assistant")
    other, _ = begun(store)
    with pytest.raises(NotFound):
        say(store, other, "hi", first.id, role="assistant")
    assert len(store.read("ann", id).messages) == 1


def test_the_first_message_gives_a_title_unless_the_user_chose_one(store: ConversationStore) -> None:
    id, _ = begun(store, "\n  What is a mixture of experts?\nTell me more.")
    assert store.read("ann", id).conversation.title == "What is a mixture of experts?"
    named, _ = begun(store, "hello", title="Mine", named=True)
    assert store.read("ann", named).conversation.title == "Mine"
    long, _ = begun(store, "字" * 500)
    assert store.read("ann", long).conversation.title == "字" * 60 + "…"


def test_pinned_conversations_stand_first_and_pages_are_complete(store: ConversationStore) -> None:
    ids = [begun(store, f"text {number}", pinned=number % 10 == 0, updated=1)[0] for number in range(25)]
    found, after = [], None
    while True:
        page = store.page("ann", after=after, limit=7)
        found += [each.id for each in page.conversations]
        after = page.next
        if after is None:
            break
    assert sorted(found) == sorted(ids)
    assert found[:3] == [ids[20], ids[10], ids[0]]
    times = [store.read("ann", id).conversation.updated for id in found[3:]]
    assert times == sorted(times, reverse=True)
    for cursor in ("x", "1.2", "1.2.3.4", "1.2.-3", "1.2." + "9" * 40, "١.٢.٣"):
        with pytest.raises(UserError, match="cursor"):
            store.page("ann", after=cursor)


def test_folders_are_counted_and_listed(store: ConversationStore) -> None:
    for folder in ("work", "work", "", "家"):
        begun(store, folder=folder)
    gone, _ = begun(store, folder="work")
    store.delete("ann", gone)
    begun(store, owner="bob", folder="secret")
    assert store.folders("ann") == {"": 1, "work": 2, "家": 1}
    assert len(store.page("ann", folder="work").conversations) == 2
    assert len(store.page("ann", folder="").conversations) == 1
    assert len(store.page("ann").conversations) == 4
    store.update("ann", store.page("ann", folder="家").conversations[0].id, folder="")
    assert store.folders("ann") == {"": 2, "work": 2}


def test_a_deleted_conversation_comes_back_whole(store: ConversationStore) -> None:
    id, _ = begun(store, "find me")
    before = store.read("ann", id)
    store.delete("ann", id)
    assert store.page("ann").conversations == []
    assert store.search("ann", "find") == []
    for look in (store.read, store.delete, store.draft):
        with pytest.raises(NotFound):
            look("ann", id)
    store.restore("ann", id)
    assert store.read("ann", id) == before
    assert len(store.search("ann", "find")) == 1


def test_what_is_deleted_forever_leaves_nothing(store: ConversationStore) -> None:
    id, _ = begun(store, "find me")
    store.files.add("ann", id, FileDraft(name="notes.txt", text="x"))
    store.delete("ann", id)
    store.delete("ann", id, forever=True)
    with pytest.raises(NotFound):
        store.restore("ann", id)
    with store._database.reading() as sql:
        for table in ("conversation", "message", "file", "piece"):
            assert sql.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
        sql.execute("INSERT INTO word (word) VALUES ('integrity-check')")
        for word in ("find", "notes"):
            assert sql.execute("SELECT count(*) FROM word WHERE word MATCH ?", (word,)).fetchone() == (0,)


def test_deleted_conversations_are_removed_after_30_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "conversations.sqlite"
    store = ConversationStore(path)
    old, young = begun(store)[0], begun(store)[0]
    for id, days in ((old, 31), (young, 29)):
        monkeypatch.setattr(store_module, "now", lambda days=days: now() - days * 86_400_000)
        store.delete("ann", id)
    monkeypatch.undo()
    store.close()
    store = ConversationStore(path)
    assert store.restore("ann", young).id == young
    with pytest.raises(NotFound):
        store.restore("ann", old)
    store.close()


def test_no_owner_sees_what_is_another_s(store: ConversationStore) -> None:
    id, message = begun(store, "secret")
    file = store.files.add("ann", id, FileDraft(name="secret.txt", text="secret")).id
    running = say(store, id, "", message.id, role="assistant", status="running").id
    attempts: list[Callable[[], object]] = [
        lambda: store.read("bob", id),
        lambda: store.draft("bob", id),
        lambda: store.update("bob", id, title="mine"),
        lambda: store.delete("bob", id),
        lambda: store.delete("bob", id, forever=True),
        lambda: store.restore("bob", id),
        lambda: say(store, id, "hi", running, owner="bob"),
        lambda: store.messages.append("bob", id, running, content="x"),
        lambda: store.messages.finish("bob", id, running, "complete"),
        lambda: store.files.add("bob", id, FileDraft(name="x", text="x")),
        lambda: store.files.text("bob", id, file),
        lambda: store.files.count("bob", id, file, 1),
        lambda: store.files.remove("bob", id, file),
    ]
    before = store.read("ann", id)
    for attempt in attempts:
        with pytest.raises(NotFound):
            attempt()
    assert (store.page("bob").conversations, store.search("bob", "secret")) == ([], [])
    assert (store.folders("bob"), store.ids("bob")) == ({}, [])
    own, first = begun(store, "mine", owner="bob")
    for parent, files in ((message.id, []), (None, [file])):
        with pytest.raises(NotFound):
            say(store, own, "x", parent, role="assistant" if parent else "user", owner="bob", files=files)
    with pytest.raises(NotFound):
        store.update("bob", own, leaf=message.id)
    assert store.read("ann", id) == before
    assert store.read("bob", own).messages == [first]


def test_an_answer_grows_and_ends(store: ConversationStore) -> None:
    id, first = begun(store)
    answer = say(store, id, "", first.id, role="assistant", status="running", model="nano")
    for text in ("Hel", "lo", "\0", "你"):
        store.messages.append("ann", id, answer.id, content=text, reasoning=text.upper())
    [_, growing] = store.read("ann", id).path()
    assert (growing.content, growing.reasoning, growing.status) == ("Hello\0你", "HELLO\0你", "running")
    assert store.search("ann", "Hello")[0].snippet.message == first.id, "what runs is not searched"
    ended = store.messages.finish("ann", id, answer.id, "stopped", usage={"n": 3}, timings={"s": 0.5})
    assert store.read("ann", id).path()[1] == ended
    assert (ended.content, ended.status, ended.usage) == ("Hello\0你", "stopped", {"n": 3})
    assert store.search("ann", "你")[0].snippet.message == answer.id
    with pytest.raises(NotFound, match="no running message"):
        store.messages.append("ann", id, answer.id, content="more")


def test_appending_does_not_rewrite_what_was_there(store: ConversationStore) -> None:
    id, first = begun(store)
    answer = say(store, id, "x" * 1_000_000, first.id, role="assistant", status="running")
    before = store._database._connection.total_changes
    writes: list[str] = []
    store._database._connection.set_trace_callback(writes.append)
    store.messages.append("ann", id, answer.id, content="more")
    store._database._connection.set_trace_callback(None)
    assert store._database._connection.total_changes == before + 1
    assert not any("UPDATE" in statement for statement in writes)


def test_running_answers_are_interrupted_by_a_restart_but_not_by_a_second_server(tmp_path: Path) -> None:
    path = tmp_path / "conversations.sqlite"
    store = ConversationStore(path)
    id, first = begun(store)
    answer = say(store, id, "", first.id, role="assistant", status="running")
    store.messages.append("ann", id, answer.id, content="half an ans", reasoning="hm")
    second = ConversationStore(path)
    assert second.read("ann", id).path()[1].status == "running"
    second.close()
    store.close()
    store = ConversationStore(path)
    found = store.read("ann", id).path()[1]
    assert (found.content, found.reasoning, found.status) == ("half an ans", "hm", "interrupted")
    assert store.search("ann", "half")[0].snippet.message == answer.id
    store.close()


def test_files_belong_to_a_conversation(store: ConversationStore) -> None:
    id, _ = begun(store)
    file = store.files.add("ann", id, FileDraft(name="表.csv", text="a,b\n你", media_type="text/csv"))
    assert (file.num_bytes, file.num_tokens) == (7, None)
    message = say(store, id, "see", files=[file.id])
    assert store.files.count("ann", id, file.id, 5).num_tokens == 5
    assert store.files.text("ann", id, file.id) == "a,b\n你"
    assert store.search("ann", "表")[0].snippet.file == file.id
    store.files.remove("ann", id, file.id)
    tree = store.read("ann", id)
    assert (tree.files, [each.files for each in tree.messages if each.id == message.id]) == ([], [[]])
    assert store.search("ann", "表") == []
    with pytest.raises(NotFound):
        store.files.text("ann", id, file.id)


def test_temporary_chats_are_neither_listed_nor_searched_nor_stored(tmp_path: Path) -> None:
    path = tmp_path / "conversations.sqlite"
    chats = Chats(path)
    id = chats.temporary.create("ann", ConversationDraft(title="whisper")).id
    say(chats.holding(id), id, "whisper")
    assert chats.holding(id).read("ann", id).path()[0].content == "whisper"
    with pytest.raises(NotFound):
        chats.holding(id).read("bob", id)
    assert chats.saved.page("ann").conversations == []
    assert chats.saved.search("ann", "whisper") == []
    chats.close()
    assert not any(b"whisper" in file.read_bytes() for file in tmp_path.iterdir())
    chats = Chats(path)
    with pytest.raises(NotFound):
        chats.holding(id).read("ann", id)
    chats.close()


def test_temporary_chats_have_a_bounded_size() -> None:
    store = ConversationStore(prefix="temp", max_bytes=1 << 20)
    ids = [begun(store, f"{number} " * 20_000)[0] for number in range(40)]
    with pytest.raises(NotFound):
        store.read("ann", ids[0])
    assert store.read("ann", ids[-1])

    def fill() -> None:
        for _ in range(40):
            say(store, ids[-1], "word " * 50_000)

    with pytest.raises(UserError, match="Temporary"):
        fill()
    assert store.create("bob", ConversationDraft(title="word " * 50)), "one who fills it keeps nobody out"
    store.close()


def test_an_owner_fills_no_more_than_the_limit_and_deleted_conversations_give_way(tmp_path: Path) -> None:
    store = ConversationStore(tmp_path / "c.sqlite", max_owned=1 << 20)
    first, second = (begun(store, "word " * 80_000)[0] for _ in range(2))
    with pytest.raises(UserError, match="more than 1 MiB"):
        begun(store, "word " * 80_000)
    for id in (first, second):
        with pytest.raises(UserError, match="more than 1 MiB"):
            store.files.add("ann", id, FileDraft(name="a", text="word " * 80_000))
        with pytest.raises(UserError, match="more than 1 MiB"):
            store.update("ann", id, settings={"system": "word " * 80_000})
    assert store.create("bob", ConversationDraft(messages=[MessageDraft(role="user", content="word " * 80_000)]))
    assert store.update("ann", first, title="a title may change", named=True)
    store.delete("ann", first)
    assert store.restore("ann", first)
    store.delete("ann", first)
    third, _ = begun(store, "word " * 80_000)
    with pytest.raises(NotFound):
        store.restore("ann", first)
    file = store.files.add("ann", third, FileDraft(name="a", text="word " * 40_000))
    with pytest.raises(UserError):
        store.files.add("ann", third, FileDraft(name="a", text="word " * 40_000))
    store.files.remove("ann", third, file.id)
    assert store.files.add("ann", third, FileDraft(name="a", text="word " * 40_000))
    with pytest.raises(UserError, match="more than 1 MiB"):
        store.create_all("ann", [ConversationDraft()] * 1000)
    store.close()


def test_one_conversation_is_not_larger_than_memory_allows(
    store: ConversationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_CONVERSATION", 1 << 20)
    id, _ = begun(store, "word " * 80_000)
    say(store, id, "word " * 80_000)
    with pytest.raises(UserError, match="1 MiB"):
        say(store, id, "word " * 80_000)
    assert len(store.read("ann", id).messages) == 2


def test_a_file_that_cannot_be_used_is_reported_and_replaced_by_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "conversations.sqlite"
    path.write_text("My diary, which is no database. " * 100)
    chats = Chats(path)
    assert "keeps conversations in memory only" in capsys.readouterr().err
    assert begun(chats.saved)
    chats.close()
    assert path.read_text().startswith("My diary")


def test_a_file_of_a_later_version_is_not_touched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "conversations.sqlite"
    ConversationStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    Chats(path).close()
    assert "later version of freedive" in capsys.readouterr().err


def test_the_sizes_of_an_older_file_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "conversations.sqlite"
    steps = schema.STEPS[:2]
    Database(path, steps, ("It failed", "Stop")).close()
    with sqlite3.connect(path) as sql:
        new = "'c', 'ann', '', 0, '', 0, 0, 0, NULL, '{}', NULL, 2"
        sql.execute(f"INSERT INTO conversation VALUES (1, {new})")
        message = "'m', NULL, 'user', 'été', '', '[]', '', 'complete', '', '{}', '{}', 0, ''"
        sql.execute(f"INSERT INTO message VALUES (1, 1, {message})")
        sql.execute("INSERT INTO file VALUES (1, 2, 'f', 'a', 'text/plain', 7, NULL, 0, 'one two')")
    sql.close()
    store = ConversationStore(path)
    store.close()
    with sqlite3.connect(path) as sql:
        assert sql.execute("SELECT num_bytes FROM conversation").fetchone() == (3 * schema.EACH + 5 + 7,)
    sql.close()
