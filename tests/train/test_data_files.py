"""Files of training data are read by their format, in every supported encoding, or refused by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from tiny_run import TINY

from freedive.errors import UserError
from freedive.text.template import ChatTemplate
from freedive.train.data import sources
from freedive.train.data.chat_tokenizer import SPECIAL
from freedive.train.data.data_files import OTHER_DATA
from freedive.train.data.loss_masks import rendered
from freedive.train.finetune import run as finetune
from freedive.train.run import checkpoints, config
from freedive.train.run.config import LEAST_VOCABULARY, Data
from freedive.train.run.stages import perform

CHAT = {"messages": [{"role": "user", "content": "a{"}, {"role": "assistant", "content": "é}"}]}
TEXT = {"text": "Once upon a time, é."}
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in (CHAT, TEXT))
ARRAY = json.dumps([CHAT, TEXT], ensure_ascii=False, indent=1)


def read(*paths: Path) -> list[dict[str, Any]]:
    return list(sources.read([str(path) for path in paths]))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((f"x{suffix}", LINES) for suffix in (".jsonl", ".JSONL", ".ndjson", ".Ndjson", ".json", ".JSON")),
        *((f"x{suffix}", ARRAY) for suffix in (".json", ".JSON")),
        ("my.data.v2.jsonl", LINES),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "gzip"])
def test_json_is_read_as_json_whatever_its_suffix_and_encoding(
    name: str, content: str, encoding: str, tmp_path: Path
) -> None:
    path = tmp_path / (f"{name}.gz" if encoding == "gzip" else name)
    path.write_bytes(gzip.compress(content.encode()) if encoding == "gzip" else content.encode(encoding))
    assert read(path) == [CHAT, TEXT]
    assert read(tmp_path) == [CHAT, TEXT]


def test_a_single_record_may_be_a_json_file(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps(CHAT, indent=2))
    assert read(tmp_path / "x.json") == [CHAT]


def test_byte_order_marks_inside_a_file_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(2 * LINES.encode("utf-8-sig"))
    assert read(tmp_path) == [CHAT, TEXT, CHAT, TEXT]


@pytest.mark.parametrize("suffix", [".txt", ".TXT", ".md", ".txt.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_plain_text_is_read_whole(suffix: str, encoding: str, tmp_path: Path) -> None:
    content = "Two lines,\n é.\n".encode(encoding)
    (tmp_path / f"x{suffix}").write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    assert read(tmp_path) == [{"text": "Two lines,\n é.\n"}]


@pytest.mark.parametrize("name", ["x.arrow", "x.zip", "x", "x.jsonl.bak", "x.parquet.gz", "x.gz", ".gz"])
def test_a_file_of_another_kind_is_refused_and_never_learned_as_text(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("text,label\nyes,1\n")
    with pytest.raises(UserError, match=r"is of a kind that is not read. Name files of \.jsonl"):
        read(tmp_path / name)


@pytest.mark.parametrize("suffix", sorted(OTHER_DATA))
def test_a_folder_with_data_that_is_not_read_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / f"b{suffix}").write_text("x")
    with pytest.raises(UserError, match=f"b\\{suffix} is of a kind"):
        read(tmp_path)


def test_hidden_files_and_descriptions_in_a_folder_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(LINES)
    for name in ("README.md", "readme.txt", "LICENSE.txt", "._a.jsonl", ".cache/b.jsonl", "manifest.json", "a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "not this"}')
    assert read(tmp_path) == [CHAT, TEXT]
    assert read(tmp_path / "README.md") == [{"text": '{"text": "not this"}'}]  # a file that is named itself is data


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", "Grüße".encode("latin-1"), "is not text in UTF-8 or UTF-16"),
        ("x.txt", "Grüße".encode("latin-1"), "is not text in UTF-8 or UTF-16"),
        ("x.json", "Grüße".encode("latin-1"), "is not text in UTF-8 or UTF-16"),
        ("x.txt", b"\xff\xfea", "is not text in UTF-8 or UTF-16"),
        ("x.jsonl.gz", b"no gzip", "cannot be read"),
        ("x.jsonl.gz", gzip.compress(LINES.encode())[:-9], "cannot be read"),
        ("x.parquet", b"no parquet", "cannot be read"),
        ("x.json", b'{"text": "a"', "line 1 is not JSON"),
        ("x.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("x.json", b'[{"text": "a"}, 7]', "item 2 is no record"),
        ("x.json", b'{"data": []}', "item 1 is no record"),
        ("x.txt", b"", "holds no text"),
        ("x.txt", b" \n", "holds no text"),
        ("x.jsonl", b'{"text": ""}\n', "holds no text"),
        ("x.json", b"[]", "holds no text"),
        ("x.jsonl", b'{"text": "a\\ud800"}', "line 1 holds half of a surrogate pair"),
        (
            "x.json",
            b'[{"messages": [{"role": "user", "content": "\\udfff"}]}]',
            "item 1 holds half of a surrogate pair",
        ),
    ],
)
def test_damaged_and_empty_files_are_refused_by_name(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read(tmp_path / name)
    assert "x." in str(caught.value)


def test_a_compressed_file_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes(gzip.compress(LINES.encode()))
    (tmp_path / "y.jsonl").write_text(LINES)
    assert read(tmp_path / "x.jsonl") == read(tmp_path / "y.jsonl")


def answer(**fields: Any) -> dict[str, Any]:
    return {"messages": [CHAT["messages"][0], {"role": "assistant", "content": "b", **fields}]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (answer(tool_calls=[{"function": {"name": "f"}}]), "messages.tool_calls"),
        (answer(reasoning_content="hm"), "messages.reasoning_content"),
        (answer(thinking="hm"), "messages.thinking"),
        (answer(mask=True), "messages.mask"),
        (answer(train=False), "messages.train"),
        ({**CHAT, "weight": 0}, "has weight"),
        ({**CHAT, **TEXT}, "has both a text and messages"),
        (answer(weight=0.5), "weight 0.5"),
        ({**CHAT, "tools": [{"type": "function"}]}, "has tools"),
        ({**CHAT, "system": "Be kind"}, "has system"),
        ({"messages": [*CHAT["messages"], {"role": "tool", "content": "7"}]}, "is no record"),
        (answer(content=None), "is no record"),
    ],
)
def test_unknown_keys_are_refused(record: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        read(tmp_path)


def test_keys_without_effect_are_ignored(tmp_path: Path) -> None:
    record = {
        **answer(tool_calls=[], reasoning_content=None, id="m1", weight=1),
        "tools": [],
        "weight": 1.0,
        "source": "web",
    }
    (tmp_path / "x.jsonl").write_text(json.dumps(record))
    assert read(tmp_path) == [answer()]


def test_parquet_rows_with_a_weight_that_is_null_are_read(tmp_path: Path) -> None:
    rows = [{"role": "assistant", "content": "a", "weight": None}, {"role": "assistant", "content": "b", "weight": 0}]
    parquet.write_table(pyarrow.table({"messages": [rows]}), tmp_path / "x.parquet")
    plain = {"role": "assistant", "content": "a"}
    assert read(tmp_path) == [{"messages": [plain, {"role": "assistant", "content": "b", "weight": 0}]}]


def test_an_answer_of_weight_0_is_not_learned(tokenizer_folder: Path) -> None:
    template = ChatTemplate({"default": "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"}, {})
    chat = [*answer(weight=0)["messages"], {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    (only,) = rendered(chat, template)
    assert [only.text[begin:end] for begin, end in only.spans] == ["<assistant>d"]
    assert rendered(chat[:2], template) == []


# --- held-out records and changed files -----------------------------------------------------------------------------


def held_out_record() -> dict[str, Any]:
    """Returns a record that the hash would hold out."""
    made = ({"messages": [{"role": "user", "content": str(n)}, CHAT["messages"][1]]} for n in range(10_000))
    return next(record for record in made if sources.is_held_out(record, Data(held_out=0.05)))


@pytest.mark.parametrize("copies", [1, 20])
def test_a_few_records_are_learned_and_none_held_out(
    copies: int, folders: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.jsonl").write_text(copies * (json.dumps(held_out_record()) + "\n"))
    settings = [f"data.text={tmp_path / 'x.jsonl'}", "tune.steps=1", "tune.merge=false", "tune.step_tokens=32"]
    finetune.perform("tune", str(folders("llama")), settings, tmp_path / "run")
    assert f"data: tune: {copies} documents" in capsys.readouterr().out


def test_a_fine_tuning_run_refuses_changed_data(folders: Any, data: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    own.write_bytes(data.read_bytes())
    settings = [f"data.text={own}", "tune.steps=1", "tune.merge=false", "tune.step_tokens=64"]

    def again() -> None:
        finetune.perform("tune", str(folders("llama")), settings, tmp_path / "run")

    again()
    again()
    own.touch()
    again()  # a new time alone is no new content
    own.write_text(own.read_text().replace("Say", "Sag"))
    with pytest.raises(UserError, match=r"own\.jsonl is not what .*run has read"):
        again()
    own.unlink()
    again()  # a deleted file is accepted


def test_a_training_run_refuses_changed_data(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("Once upon a time there was a duck. " * 50)
    settings = [*TINY, f"data.text={tmp_path / 'texts'}"]
    for stage in ("tokenizer", "data"):
        perform(stage, "nano", settings, tmp_path / "run")
    (tmp_path / "texts" / "b.txt").write_text("Another one.")
    with pytest.raises(UserError, match=r"b\.txt is not what .*run has read"):
        perform("data", "nano", settings, tmp_path / "run")


def test_an_empty_file_is_no_text_to_learn_a_tokenizer_from(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(UserError, match="holds no text"):
        perform("tokenizer", "nano", [*TINY, f"data.text={tmp_path / 'a.txt'}"], tmp_path / "run")


@pytest.mark.parametrize("size", [0, 10, LEAST_VOCABULARY - 1, 65537])
def test_an_impossible_vocabulary_is_refused_before_a_run_begins(size: int, tmp_path: Path) -> None:
    assert 256 + len(SPECIAL) == LEAST_VOCABULARY
    with pytest.raises(UserError, match=rf"model\.vocab_size is {size}"):
        perform("tokenizer", "nano", [f"model.vocab_size={size}"], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    config.preset("nano", [f"model.vocab_size={LEAST_VOCABULARY}"])


# --- checkpoints --------------------------------------------------------------------------------------------------


def test_checkpoints_beyond_a_million_steps_are_found_and_cleaned(tmp_path: Path) -> None:
    empty = checkpoints.Checkpoint({}, {}, {"step": 0})
    for step in (999_998, 999_999, 1_000_000, 1_000_001):
        checkpoints.save(tmp_path, step, empty)
    assert sorted(path.name for path in tmp_path.glob("step_*")) == ["step_1000000", "step_1000001"]
    (tmp_path / "latest").unlink()
    newest = checkpoints.newest(tmp_path)
    assert newest
    assert newest.name == "step_1000001"


def test_a_step_that_is_saved_again_always_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = checkpoints.Checkpoint({}, {}, {"step": 1})
    target = checkpoints.save(tmp_path, 1, empty)
    monkeypatch.setattr(Path, "rename", lambda *paths: pytest.fail("a whole checkpoint is put away"))
    assert checkpoints.save(tmp_path, 1, empty) == target
    assert checkpoints.is_whole(target)
    assert not list(tmp_path.glob("*.partial"))
