"""The prefix cache with the real default model: equal answers, sooner, in this process and in the next."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import freedive
from freedive.engine.engine import EngineStats
from freedive.engine.generation import TokenLogprobs
from freedive.hub import cache
from freedive.text.request import ChatInput

TEXT = "The tide tables of the northern islands have been kept by the same family since the year of the great storm. "
QUESTIONS = ("What keeps the family?", "Where are the islands, and who lives on them?", "What keeps the family?")
SAMPLING: dict[str, Any] = {"max_tokens": 12, "seed": 3, "ignore_eos": True, "logprobs": 2}

Answer = list[tuple[int, TokenLogprobs]]


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the stored pages during the test."""
    monkeypatch.setenv("FREEDIVE_PAGES", str(tmp_path / "pages"))
    return tmp_path / "pages"


def conversation(**settings: Any) -> tuple[list[Answer], list[int], EngineStats]:
    """Asks questions about one text; returns the answers, the cached tokens of each, and the engine's statistics."""
    answers, found = [], []
    with freedive.load("smollm2", cache_tokens=2048, **settings) as model:
        messages = [{"role": "system", "content": TEXT * 5}]
        for question in QUESTIONS:
            messages.append({"role": "user", "content": question})
            generation = model.engine.submit(model.prepare(ChatInput(messages)), model.sampling(**SAMPLING))
            entries = [entry for output in generation for entry in output.logprobs or ()]
            answers.append([(entry.token_id, entry) for entry in entries])
            found.append(generation.num_cached_tokens)
            text = model.tokenizer.decode([entry.token_id for entry in entries])
            messages.append({"role": "assistant", "content": text})
        return answers, found, model.engine.stats()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"precision": "exact", "prefill_chunk": 50},
        {"precision": "fast", "cache_format": "int8"},
    ],
    ids=str,
)
def test_hits_change_no_bit_of_an_answer(pages: Path, settings: dict[str, Any]) -> None:
    expected, found, _ = conversation(**settings, prefix_cache="off")
    assert found == [0, 0, 0]
    assert not pages.exists()
    first, found, stats = conversation(**settings)
    assert first == expected
    assert found[0] == 0
    assert min(found[1:]) >= 64
    assert stats.num_restored == 0
    again, found, stats = conversation(**settings)
    assert again == expected
    assert min(found) >= 64
    assert stats.num_restored >= 64


def folders(pages: Path) -> Iterator[str]:
    return (path.name for path in pages.glob("*"))


def test_each_precision_and_kernel_has_pages_of_its_own(pages: Path, smollm2_path: Path, tmp_path: Path) -> None:
    copy = tmp_path / smollm2_path.name
    shutil.copyfile(smollm2_path, copy)
    seen: set[str] = set()
    for model, settings in (
        ("smollm2", {}),
        ("smollm2", {"precision": "exact"}),
        ("smollm2", {"cache_format": "int8"}),
        (str(copy), {}),
    ):
        with freedive.load(model, cache_tokens=256, **settings) as loaded:
            prompt = loaded.tokenizer.encode(TEXT * 4)
            list(loaded.engine.submit(prompt, loaded.sampling(max_tokens=1)))
            assert loaded.engine.stats().num_restored == 0
        assert len(set(folders(pages)) - seen) == 1
        seen |= set(folders(pages))
    assert cache.remove_packed(copy) > 10**6
    assert len(set(folders(pages))) == 3


def test_changed_weights_use_no_old_pages(pages: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    before = cache.pages_folder(path, "balanced")
    assert before == cache.pages_folder(path, "balanced")
    path.write_bytes(b"others!")
    assert before.parent == pages
    assert cache.pages_folder(path, "balanced") != before


@pytest.mark.parametrize("settings", [{"disk_cache_gb": 0}, {"prefix_cache": "off"}], ids=str)
def test_no_pages_are_stored_if_the_cache_is_off(pages: Path, settings: dict[str, Any]) -> None:
    conversation(**settings)
    assert not pages.exists()


def test_the_next_process_finds_the_stored_pages(pages: Path) -> None:
    command = [sys.executable, "-m", "freedive", "run", "smollm2", "--temperature", "0", "--max-tokens", "8"]

    def run() -> tuple[str, dict[str, float]]:
        done = subprocess.run(command, input=TEXT * 8, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout, {path.name: path.stat().st_mtime for path in pages.glob("*/*.page")}

    (said, kept), (said_again, kept_again) = run(), run()
    assert said_again == said
    assert kept.keys() == kept_again.keys()
    assert any(kept_again[name] > kept[name] for name in kept)  # the pages were read, which updates their time


def test_tests_do_not_use_the_users_cache() -> None:
    assert os.environ["FREEDIVE_PAGES"]
    assert not cache.pages_folder(Path("model.gguf"), "").is_relative_to(cache.home())
