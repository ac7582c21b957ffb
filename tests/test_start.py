"""A warm start reads only the packed store and its description, unless a file that they were made from has changed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import freedive
import freedive.checkpoint.open
from freedive import api
from freedive.checkpoint import weight_store
from freedive.checkpoint.fingerprint import checkpoint_fingerprint, code_fingerprint, split_files
from freedive.errors import Unavailable

UNNEEDED = {"jinja2", "asyncio", "typer", "pydantic", "rich", "fastapi", "httpx", "gguf", "transformers", "torch"}
UNNEEDED |= {
    "freedive.families",
    "freedive.checkpoint.open",
    "freedive.checkpoint.rules",
    "freedive.text.sandbox",
}

START = """
import sys, freedive
with freedive.load(sys.argv[1], threads=1, cache_tokens=64) as model:
    next(iter(model.engine.submit([5, 6], model.sampling(max_tokens=1))))
print(*sys.modules)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model of two layers whose tokens are the words w0 ... w127."""
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    save("llama", folder)
    words(folder, "w")
    return folder


def words(folder: Path, letter: str) -> None:
    core = Tokenizer(models.WordLevel({f"▁{letter}{index}": index for index in range(128)}, unk_token=f"▁{letter}0"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.save(str(folder / "tokenizer.json"))


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | values))


def answer(path: Path) -> tuple[int, str]:
    """Returns the model's longest context, and a few generated words."""
    with freedive.load(str(path), threads=1, cache_tokens=4096) as model:
        generation = model.engine.submit([9, 30, 77], model.sampling(temperature=0, max_tokens=4))
        return model.max_context, "".join(output.text for output in generation)


def never(what: str) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError(what)

    return fail


def test_a_warm_start_reads_neither_the_checkpoint_nor_all_of_the_store(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cold = answer(folder)
    monkeypatch.setattr(freedive.checkpoint.open, "open_checkpoint", never("the checkpoint is opened"))
    monkeypatch.setattr(weight_store, "_checksums", never("the store is verified"))
    assert answer(folder) == cold


def test_a_warm_start_imports_nothing_that_it_does_not_need(folder: Path) -> None:
    answer(folder)
    done = subprocess.run([sys.executable, "-c", START, str(folder)], capture_output=True, text=True, check=True)
    assert UNNEEDED & set(done.stdout.split()) == set()


@pytest.mark.parametrize("name", [".", "model.safetensors"])
def test_a_changed_configuration_is_seen(name: str, folder: Path) -> None:
    assert answer(folder / name)[0] == 1024
    change_config(folder, max_position_embeddings=128)
    assert answer(folder / name)[0] == 128


def test_changed_weights_are_seen_even_if_their_file_looks_the_same(folder: Path) -> None:
    path = folder / "model.safetensors"
    before, stat, data = answer(path), path.stat(), bytearray(path.read_bytes())
    begin = len(data) // 2
    data[begin:] = bytes(len(data) - begin)
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert answer(path) != before


def test_a_changed_tokenizer_is_seen(folder: Path) -> None:
    assert "w" in answer(folder)[1]
    words(folder, "x")
    assert "w" not in answer(folder)[1]


def test_every_part_of_a_split_model_counts(tmp_path: Path) -> None:
    names = [f"m-0000{index}-of-00003.gguf" for index in (1, 2, 3)]
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_bytes(b"1")
    assert split_files(paths[1]) == paths
    first = checkpoint_fingerprint(paths[0])
    assert checkpoint_fingerprint(paths[0]) == first
    for path in paths:
        path.write_bytes(b"22")
        assert checkpoint_fingerprint(paths[0]) != first
        first = checkpoint_fingerprint(paths[0])
    paths[2].unlink()
    assert checkpoint_fingerprint(paths[0]) != first


@pytest.fixture
def description(folder: Path, tmp_path: Path) -> Path:
    """The stored description of the model in ``folder``, which has been loaded once."""
    answer(folder)
    (path,) = tmp_path.glob("home/packed/*/*.json")
    return path


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": {"class": "Rope"}}', None])
def test_a_damaged_description_is_made_anew_without_packing(
    text: str | None, folder: Path, description: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, whole = answer(folder), description.read_bytes()
    if text is None:
        description.unlink()
    else:
        description.write_text(text)
    monkeypatch.setattr(api, "write_store", never("the weights are packed again"))
    assert answer(folder) == expected
    assert description.read_bytes() == whole


def test_what_other_code_described_is_described_anew(
    folder: Path, description: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, opened = answer(folder), []
    opening = freedive.checkpoint.open.open_checkpoint
    monkeypatch.setattr(freedive.checkpoint.open, "open_checkpoint", lambda path: opened.append(path) or opening(path))
    monkeypatch.setattr(api, "code_fingerprint", lambda patterns: code_fingerprint(patterns) + "newer")
    monkeypatch.setattr(api, "write_store", never("the weights are packed again"))
    assert answer(folder) == answer(folder) == expected
    assert opened.count(folder) == 1


def test_a_store_that_was_touched_is_verified_once(
    folder: Path, description: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, verified = answer(folder), []
    checksums, store = weight_store._checksums, description.with_suffix(".fdv")
    monkeypatch.setattr(weight_store, "_checksums", lambda entry: verified.append(entry) or checksums(entry))
    os.utime(store)
    assert answer(folder) == answer(folder) == expected
    assert len(verified) == len(weight_store.open_store(store, proven=True))


def test_a_cache_that_cannot_be_written_costs_time_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise Unavailable("the disk is closed", "Open it")

    monkeypatch.setattr(api, "write_description", refuse)
    assert answer(folder) == answer(folder)
