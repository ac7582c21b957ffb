"""Stores in the cache are checked like model folders, and are valid only for the code that made them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_models import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import freedive
from freedive import api
from freedive.checkpoint.fingerprint import code_digest
from freedive.checkpoint.weight_store import open_store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    save("llama", tmp_path / "model")
    core = Tokenizer(models.WordLevel({f"▁w{index}": index for index in range(128)}, unk_token="▁w0"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.save(str(tmp_path / "model" / "tokenizer.json"))
    return tmp_path / "model"


def answer(path: Path) -> list[int]:
    with freedive.load(str(path), threads=1, cache_tokens=4096) as model:
        generation = model.engine.submit([9, 30, 77], model.sampling(temperature=0, max_tokens=8))
        return [token for output in generation for token in output.token_ids]


def stores(folder: Path) -> list[Path]:
    return sorted((folder.parent / "home").glob("packed/*/*.fdv"))


def count_calls(monkeypatch: pytest.MonkeyPatch, name: str) -> list[Any]:
    calls: list[Any] = []
    real = getattr(api, name)
    monkeypatch.setattr(api, name, lambda *args, **kwargs: calls.append(args) or real(*args, **kwargs))
    return calls


def test_a_changed_rule_rebuilds_an_existing_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer(folder)
    before = {name: weight.data.copy() for name, weight in open_store(stores(folder)[0]).items()}
    from freedive.checkpoint import rules

    real = rules.canonical_tensors

    def fixed(*args: Any) -> Any:
        tensors = real(*args)
        return tensors | {"layers.0.attn.q": tensors["layers.1.attn.q"]}

    monkeypatch.setattr(rules, "canonical_tensors", fixed)
    monkeypatch.setattr(api, "code_fingerprint", lambda patterns: "newer")
    monkeypatch.setattr(api, "code_digest", lambda patterns: "newer")
    packed = count_calls(monkeypatch, "write_store")
    answer(folder)
    assert answer(folder)
    assert len(packed) == 1
    after = open_store(stores(folder)[0])
    assert [name for name in before if (before[name] != after[name].data).any()] == ["layers.0.attn.q"]


def test_code_that_was_only_installed_again_keeps_the_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = answer(folder)
    monkeypatch.setattr(api, "code_fingerprint", lambda patterns: "other times, the same text")
    packed = count_calls(monkeypatch, "write_store")
    assert answer(folder) == expected
    assert packed == []


def test_the_digest_of_code_differs_by_its_text_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("freedive.checkpoint.fingerprint._PACKAGE", tmp_path)
    digests = set()
    for names in (["a.py"], ["b.py"], ["a.py", "b.py"]):
        for text in ("x = 1", "x = 2"):
            for name in names:
                (tmp_path / name).write_text(text)
            digests.add(code_digest(["*.py"]))
            time.sleep(0.01)
            (tmp_path / names[0]).write_text(text)
            assert code_digest(["*.py"]) in digests
        for path in tmp_path.iterdir():
            path.unlink()
    assert len(digests) == 6


def test_a_store_of_files_that_have_changed_is_removed(folder: Path) -> None:
    answer(folder)
    (first,) = stores(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 128}))
    answer(folder)
    (second,) = stores(folder)
    assert first != second
    assert {path.name for path in second.parent.iterdir()} == {second.name, f"{second.stem}.json"}


@pytest.mark.parametrize(("name", "value"), [("vocab_size", 1 << 20), ("hidden_dim", 32), ("layers", []), ("tied", 3)])
def test_an_inconsistent_description_in_the_cache_is_rebuilt(name: str, value: Any, folder: Path) -> None:
    expected = answer(folder)
    description = stores(folder)[0].with_suffix(".json")
    about = json.loads(description.read_text("utf-8"))
    true = about["model"]
    description.write_text(json.dumps(about | {"model": true | {name: value}}))
    assert answer(folder) == expected
    assert json.loads(description.read_text("utf-8"))["model"] == true
