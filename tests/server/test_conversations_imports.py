"""Files of freedive, ChatGPT, DeepSeek and Open WebUI are read; wrong ones are refused with what is wrong."""

from __future__ import annotations

import copy
import io
import json
import random
import zipfile
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.errors import UserError
from freedive.server.conversations.archive import current_path, to_json, to_markdown
from freedive.server.conversations.imports import reader
from freedive.server.conversations.imports.reader import read_import
from freedive.server.conversations.records import ConversationDraft, FileDraft, MessageDraft
from freedive.server.conversations.store import ConversationStore

Json = dict[str, Any]


def node(parent: str | None, message: Json | None) -> Json:
    return {"parent": parent, "children": [], "message": message}


def said(role: str, text: str, **more: Any) -> Json:
    content = {"content_type": "text", "parts": [text]}
    return {"author": {"role": role}, "create_time": 1_700_000_000.5, "content": content, "metadata": {}} | more


CHATGPT: Json = {
    "title": "Greetings <b>",
    "create_time": 1_700_000_000.25,
    "update_time": 1_700_000_100,
    "current_node": "text",
    "mapping": {
        "root": node(None, None),
        "system": node("root", said("system", "")),
        "hi": node("system", said("user", "hi")),
        "other": node("hi", said("assistant", "another answer")),
        "thoughts": node(
            "hi",
            said(
                "assistant",
                "",
                content={"content_type": "thoughts", "thoughts": [{"content": "Hm."}, {"summary": "x"}]},
            ),
        ),
        "call": node("thoughts", said("assistant", "search(1)", recipient="browser")),
        "result": node("call", said("tool", "found")),
        "text": node("result", said("assistant", "hello", metadata={"model_slug": "gpt-9"})),
        "picture": node(
            "text",
            said(
                "user",
                "",
                content={"content_type": "multimodal_text", "parts": ["see", {"content_type": "image_asset_pointer"}]},
                metadata={"attachments": [{"name": "a.pdf"}]},
            ),
        ),
        "hidden": node("text", said("user", "hidden", metadata={"is_visually_hidden_from_conversation": True})),
    },
}

DEEPSEEK: Json = {
    "id": "1",
    "title": "问候",
    "inserted_at": "2025-01-30T06:00:00.000000+08:00",
    "updated_at": "2025-01-30T06:01:00.000000+08:00",
    "mapping": {
        "root": {"id": "root", "parent": None, "children": ["1"], "message": None},
        "1": node(
            "root",
            {
                "model": "deepseek-chat",
                "files": [{"file_name": "a.txt", "content": "alpha"}, {"file_name": "b.pdf"}],
                "fragments": [{"type": "REQUEST", "content": "你好"}],
            },
        ),
        "2": node(
            "1",
            {
                "model": "deepseek-reasoner",
                "fragments": [
                    {"type": "THINK", "content": "嗯"},
                    {"type": "SEARCH", "results": [{"url": "x"}]},
                    {"type": "RESPONSE", "content": "你好！"},
                ],
            },
        ),
        "3": node("1", {"model": "deepseek-chat", "fragments": [{"type": "RESPONSE", "content": "您好"}]}),
    },
}

OLD_DEEPSEEK: Json = {
    "title": "old",
    "inserted_at": "2025-01-30T06:00:00Z",
    "mapping": {
        "1": node(None, {"role": "USER", "content": "hi"}),
        "2": node("1", {"role": "ASSISTANT", "content": "hello", "thinking_content": "hm"}),
    },
}

OPEN_WEBUI: Json = {
    "id": "x",
    "title": "Web",
    "pinned": True,
    "created_at": 1_700_000_000,
    "updated_at": 1_700_000_100,
    "chat": {
        "title": "Web",
        "params": {"system": "Be brief."},
        "history": {
            "currentId": "b",
            "messages": {
                "a": {"parentId": None, "role": "user", "content": "hi", "files": [{"name": "a.txt"}]},
                "b": {
                    "parentId": "a",
                    "role": "assistant",
                    "model": "qwen",
                    "timestamp": 1_700_000_050,
                    "content": '<details type="reasoning" done="true">\n<summary>Thought for 3 seconds</summary>\n'
                    "> Hm.\n> Well.\n</details>\nhello",
                },
                "c": {"parentId": "a", "role": "assistant", "content": "", "error": {"content": "no memory"}},
            },
        },
    },
}

OWN = json.loads(
    to_json(
        ConversationDraft(
            title="T",
            created=1,
            updated=2,
            settings={"system": "x"},
            files=[FileDraft(name="f", text="t", created=1)],
            messages=[
                MessageDraft(role="user", content="q", created=1, files=[0]),
                MessageDraft(role="assistant", content="a", parent=0, created=2, usage={"n": 1}),
                MessageDraft(role="assistant", content="b", parent=0, created=3),
            ],
            leaf=1,
        )
    )
)

FORMATS: dict[str, Json] = {
    "chatgpt": CHATGPT, "deepseek": DEEPSEEK, "old deepseek": OLD_DEEPSEEK, "open webui": OPEN_WEBUI, "own": OWN
}  # fmt: skip


def read(value: Any) -> list[ConversationDraft]:
    return read_import(json.dumps(value).encode())


def lines(draft: ConversationDraft) -> list[tuple[str, str, str]]:
    return [(each.role, each.reasoning, each.content) for each in current_path(draft)]


def test_chatgpts_tree_is_read() -> None:
    [draft] = read([CHATGPT])
    assert (draft.title, draft.created, draft.updated) == ("Greetings <b>", 1_700_000_000_250, 1_700_000_100_000)
    assert lines(draft) == [("user", "", "hi"), ("assistant", "Hm.", "hello")]
    assert [each.content for each in draft.messages] == ["hi", "another answer", "hello", "see\n\n[image]\n\n[a.pdf]"]
    assert [each.parent for each in draft.messages] == [None, 0, 0, 2]
    assert draft.messages[2].model == "gpt-9"


def test_deepseeks_fragments_are_read() -> None:
    [draft] = read([DEEPSEEK])
    assert (draft.title, draft.created) == ("问候", 1_738_188_000_000)
    assert [(each.role, each.reasoning, each.content) for each in draft.messages] == [
        ("user", "", "你好\n\n[b.pdf]"),
        ("assistant", "嗯", "你好！"),
        ("assistant", "", "您好"),
    ]
    assert [(file.name, file.text) for file in draft.files] == [("a.txt", "alpha")]
    assert (draft.messages[0].files, draft.messages[1].model) == ([0], "deepseek-reasoner")
    [old] = read([OLD_DEEPSEEK])
    [untitled] = read([OLD_DEEPSEEK | {"title": None}])
    assert (old.title, old.named, untitled.title, untitled.named) == ("old", True, "hi", False)
    assert lines(old) == [("user", "", "hi"), ("assistant", "hm", "hello")]


def test_open_webuis_history_is_read() -> None:
    [draft] = read([OPEN_WEBUI])
    assert lines(draft) == [("user", "", "hi\n\n[a.txt]"), ("assistant", "Hm.\nWell.", "hello")]
    assert (draft.pinned, draft.settings) == (True, {"system": "Be brief."})
    assert (draft.messages[2].status, draft.messages[2].error) == ("failed", "no memory")


def zipped(files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return file.getvalue()


def test_zip_archives_and_lists_of_all_formats_are_read() -> None:
    everything = json.dumps(list(FORMATS.values())).encode()
    assert len(read_import(everything)) == len(FORMATS)
    half = json.dumps([OWN]).encode()
    data = zipped(
        {"a/conversations-000.json": half, "a/conversations-001.json": half, "user.json": b"{", "x.png": b"x"}
    )
    assert [draft.title for draft in read_import(data)] == ["T", "T"]
    assert len(read_import(b"\xef\xbb\xbf" + half)) == 1
    assert len(read(OWN)) == 1


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON at character 0"),
        (b"[]", "no conversations"),
        (b"hello", "not JSON at character 0"),
        (b"[{}]", "Conversation 1: It has none of the keys"),
        (b"[1]", "Conversation 1: It is not an object"),
        (json.dumps([OWN, {}]).encode(), "Conversation 2"),
        (b'[{"chat": {}}', "not JSON at character 13"),
        (b'[{"chat": {}} {"chat": {}}]', "not JSON at character 14"),
        (b'[{"chat": {}},]', "not JSON at character 14"),
        (b'[{"chat": {}}] x', "not JSON at character 15"),
        (b'{"chat": NaN}', "number that cannot be read"),
        (b'{"chat": ' + b"9" * 5000 + b"}", "number that cannot be read"),
        (b"\xff", "not UTF-8 at byte 0"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[" + b"1," * (1 << 22), "more than 4194304 values"),
        (b"PK\x03\x04 and no more", "zip archive cannot be read"),
        (zipped({"other.json": b"[]"}), "no conversations.json"),
        (zipped({"conversations.json": b"["}), "not JSON"),
        (b'{"freedive": 2}', "another version of the format"),
        (b'{"freedive": 1, "messages": 5}', "'messages' must be a list"),
        (b'{"freedive": 1, "messages": [{"role": "system", "content": ""}]}', "'messages.0.role' must be 'user' or"),
        (b'{"freedive": 1, "messages": [{"role": "user", "content": "", "parent": 0}]}', "parent of message 0"),
        (b'{"freedive": 1, "messages": [{"role": "user", "content": "", "files": [0]}]}', "file of message 0"),
        (b'{"freedive": 1, "leaf": -1}', "the leaf does not exist"),
        (b'{"freedive": 1, "title": "\\ud800"}', "'title'"),
        (json.dumps({"mapping": {"a": node("b", None), "b": node("a", None)}}).encode(), "comes before itself"),
    ],
    ids=range(27),
)
def test_wrong_files_are_refused_with_what_is_wrong(data: bytes, message: str) -> None:
    with pytest.raises(UserError) as refused:
        read_import(data)
    assert message in str(refused.value)


def test_zip_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_BYTES", 1 << 20)
    bomb = zipped({f"conversations-{number}.json": b" " * 600_000 for number in range(2)})
    assert len(bomb) < 10_000
    with pytest.raises(UserError, match="more than 1 MiB"):
        read_import(bomb)
    with pytest.raises(UserError, match="more than 1 MiB"):
        read_import(b" " * (1 << 21))


def test_a_long_chain_and_a_wide_tree_are_read_in_linear_time() -> None:
    nodes = {str(number): node(str(number - 1), said("user", "x")) for number in range(20_000, 0, -1)}
    [draft] = read({"mapping": nodes})
    assert len(draft.messages) == 20_000
    wide = {str(number): node("gone", said("assistant", "x")) for number in range(20_000)}
    assert len(read({"mapping": wide})[0].messages) == 20_000
    quoted = '<details type="reasoning">' * 40_000
    chat = {"history": {"messages": {"a": {"role": "assistant", "content": "</details>" + quoted}}}}
    assert read({"chat": chat})[0].messages[0].content.endswith(quoted)


def test_texts_that_utf8_cannot_encode_are_stored_with_replacements() -> None:
    [draft] = read([{"title": "\ud800x", "mapping": {"a": node(None, said("user", "\udfff\0"))}}])
    store = ConversationStore()
    id = store.create("", draft).id
    assert store.read("", id).conversation.title == "\N{REPLACEMENT CHARACTER}x"
    assert store.read("", id).messages[0].content == "\N{REPLACEMENT CHARACTER}\0"
    store.close()


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON_OBJECTS = st.dictionaries(
    TEXT, st.integers(-(1 << 60), 1 << 60) | st.booleans() | TEXT | st.lists(TEXT), max_size=3
)
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "model": TEXT,
        "system": TEXT,
        "sampling": JSON_OBJECTS,
        "tools": st.lists(TEXT, max_size=3),
        "response_schema": JSON_OBJECTS,
    },
)


@st.composite
def drafts(draw: st.DrawFn) -> ConversationDraft:
    files = draw(st.lists(st.builds(FileDraft, name=TEXT, text=TEXT, media_type=TEXT), max_size=3))
    messages = []
    for index in range(draw(st.integers(0, 8))):
        parent = draw(st.none() | st.integers(0, index - 1)) if index else None
        positions = st.lists(st.integers(0, len(files) - 1), max_size=2) if files else st.just([])
        message = st.builds(
            MessageDraft,
            role=st.sampled_from(["user", "assistant"]),
            content=TEXT,
            parent=st.just(parent),
            reasoning=TEXT,
            files=positions,
            model=TEXT,
            status=st.sampled_from(["complete", "stopped", "interrupted", "failed"]),
            error=TEXT,
            usage=st.dictionaries(TEXT, st.integers(0, (1 << 53) - 1), max_size=3),
            timings=st.dictionaries(TEXT, st.floats(0, allow_infinity=False), max_size=3),
        )
        messages.append(draw(message))
    leaf = draw(st.none() | st.integers(0, len(messages) - 1)) if messages else None
    whole = st.builds(
        ConversationDraft,
        title=TEXT,
        named=st.booleans(),
        folder=TEXT,
        pinned=st.booleans(),
        settings=SETTINGS,
        messages=st.just(messages),
        leaf=st.just(leaf),
        files=st.just(files),
    )
    return draw(whole)


@settings(max_examples=100, deadline=None)
@given(st.lists(drafts(), min_size=1, max_size=3))
def test_what_is_exported_is_imported_without_loss(given: list[ConversationDraft]) -> None:
    store = ConversationStore()
    text = f"[{','.join(map(to_json, given))}]"
    created = store.create_all("ann", read_import(text.encode()))
    exported = [store.draft("ann", each.id) for each in created]
    assert exported == given
    assert f"[{','.join(map(to_json, exported))}]" == text
    store.close()


@settings(max_examples=200, deadline=None)
@given(drafts())
def test_any_conversation_can_be_written_as_markdown(draft: ConversationDraft) -> None:
    text = to_markdown(draft)
    assert text.startswith("# ")
    assert all(message.content in text for message in current_path(draft))


def test_markdown_has_the_current_path_only() -> None:
    [draft] = read([DEEPSEEK])
    draft.leaf = 1
    assert to_markdown(draft) == (
        "# 问候\n\n## User\n\nFiles: a.txt\n\n你好\n\n[b.pdf]\n\n## Assistant (deepseek-reasoner)\n\n> 嗯\n\n你好！\n"
    )


def imported(data: bytes) -> None:
    """Reads and stores ``data``; only a UserError may be raised."""
    try:
        found = read_import(data)
    except UserError:
        return
    store = ConversationStore()
    created = store.create_all("ann", found)
    for each in created:
        assert store.read("ann", each.id).path() is not None
    store.close()


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(
    st.binary()
    | st.binary().map(lambda data: b"PK\x03\x04" + data)
    | ANY_JSON.map(lambda value: json.dumps(value).encode())
)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    imported(data)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Returns the path of every value in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in items for place in places(each, (*path, key)))]


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(FORMATS)), st.integers(0, 10**6), ANY_JSON, st.booleans())
def test_mutated_values_are_read_or_refused(name: str, position: int, value: Any, removes: bool) -> None:
    mutated = [copy.deepcopy(FORMATS[name])]
    candidates = places(mutated)[1:]
    *path, last = candidates[position % len(candidates)]
    at: Any = mutated
    for key in path:
        at = at[key]
    if removes:
        del at[last]
    else:
        at[last] = value
    imported(json.dumps(mutated).encode())


@pytest.mark.parametrize("name", [*FORMATS, "zip"])
def test_mutated_bytes_are_read_or_refused(name: str) -> None:
    choose = random.Random(name)
    whole = json.dumps([FORMATS.get(name, OWN)]).encode()
    data = zipped({"conversations.json": whole}) if name == "zip" else whole
    for _ in range(300):
        mutated = bytearray(data)
        for _ in range(choose.randint(1, 4)):
            mutated[choose.randrange(len(mutated))] = choose.randrange(256)
        if choose.random() < 0.3:
            del mutated[choose.randrange(len(mutated)) :]
        imported(bytes(mutated))


def deep(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


@pytest.mark.parametrize(
    "fields",
    [
        '"settings": {"model": 5}',
        '"settings": {"tools": 7}',
        '"settings": {"sampling": ["temperature"]}',
        '"settings": {"secret": "x"}',
        f'"settings": {{"sampling": {deep(500)}}}',
        f'"settings": {{"response_schema": {deep(120)}}}',
        '"messages": [{"role": "user", "content": "", "usage": {"completion_tokens": "many"}}]',
        '"messages": [{"role": "user", "content": "", "usage": {"completion_tokens": -1}}]',
        f'"messages": [{{"role": "user", "content": "", "usage": {deep(500)}}}]',
        '"messages": [{"role": "user", "content": "", "timings": {"decode_s": 1e999}}]',
    ],
    ids=lambda fields: fields[:60],
)
def test_what_no_answer_could_be_asked_with_is_refused(fields: str) -> None:
    with pytest.raises(UserError, match=r"Conversation 1: "):
        read_import(f'[{{"freedive": 1, {fields}}}]'.encode())
