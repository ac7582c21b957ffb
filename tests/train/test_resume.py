"""A run that is stopped anywhere resumes to the same bits; incomplete and damaged checkpoints are ignored."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_run import TINY

from freedive.errors import UserError
from freedive.train.run import checkpoints
from freedive.train.run.checkpoints import Checkpoint, is_whole, load, newest, save
from freedive.train.run.stages import perform

RUN = [sys.executable, "-m", "freedive", "train"]


def prepared(folder: Path, settings: list[str] = TINY) -> Path:
    for stage in ("tokenizer", "data"):
        perform(stage, "nano", settings, folder)
    return folder


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "pretrain.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = prepared(tmp_path_factory.mktemp("whole") / "run")
    perform("pretrain", "nano", TINY, folder)
    return folder


def same_end(one: Path, other: Path) -> bool:
    ends = [load(found).weights for root in (one, other) if (found := newest(root / "checkpoints" / "pretrain"))]
    return len(ends) == 2 and all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def killed_again_and_again(folder: Path, settings: list[str], kills: int, seconds: tuple[float, float]) -> int:
    """Trains to the end in spite of ``kills`` kills; returns how many of them came during a save."""
    command, source, saving = [*RUN, "pretrain", "nano", *settings, "--run", folder], random.Random(0), 0
    partial = folder / "checkpoints" / "pretrain"
    for _ in range(kills):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        begun = (folder / "pretrain.jsonl").stat().st_mtime_ns if (folder / "pretrain.jsonl").exists() else 0
        while process.poll() is None and not _makes_progress(folder, begun):
            time.sleep(0.01)
        time.sleep(source.uniform(*seconds))
        process.kill()
        process.wait()
        saving += any(partial.glob("*.partial"))
    subprocess.run(command, check=True, capture_output=True)
    return saving


def _makes_progress(folder: Path, begun: int) -> bool:
    """Returns whether a run has added to its metrics since ``begun``."""
    file = folder / "pretrain.jsonl"
    return file.exists() and file.stat().st_mtime_ns > begun


def test_a_killed_run_resumes_to_the_same_bits(uninterrupted: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "run")
    killed_again_and_again(folder, TINY, kills=3, seconds=(0, 1.5))
    assert losses(folder) == losses(uninterrupted)
    assert same_end(folder, uninterrupted)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twenty_kills_while_training_and_saving_change_no_bit(tmp_path: Path) -> None:
    settings = [*TINY, "pretrain.steps=200", "pretrain.save_every=1"]
    whole, killed = (prepared(tmp_path / name, settings) for name in ("whole", "killed"))
    perform("pretrain", "nano", settings, whole)
    saving = killed_again_and_again(killed, settings, kills=20, seconds=(0, 0.4))
    print(f"{saving} of 20 kills came while a checkpoint was written")
    assert saving
    assert losses(killed) == losses(whole)
    assert same_end(killed, whole)


def test_a_signal_saves_a_checkpoint_before_the_end(uninterrupted: Path, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "run")
    command = [*RUN, "pretrain", "nano", *TINY, "pretrain.save_every=1000", "--run", folder]
    (folder / "config.json").unlink()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (folder / "pretrain.jsonl").exists() or not losses(folder):
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "which is saved" in messages
    (path,) = (folder / "checkpoints" / "pretrain").glob("step_*")
    assert is_whole(path)


def some(step: int) -> Checkpoint:
    return Checkpoint({"a": torch.full((3,), float(step))}, {"b": torch.zeros(2)}, {"step": step})


@pytest.mark.parametrize("name", [checkpoints.WEIGHTS, checkpoints.OPTIMIZER, checkpoints.STATE, checkpoints.MANIFEST])
def test_a_damaged_checkpoint_is_ignored(name: str, tmp_path: Path) -> None:
    save(tmp_path, 1, some(1))
    path = save(tmp_path, 2, some(2)) / name
    path.write_bytes(path.read_bytes()[:-1])
    found = newest(tmp_path)
    assert found
    assert load(found).state == {"step": 1}


def test_an_incomplete_checkpoint_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1, some(1))

    def fail(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints, "flush", fail)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2, some(2))
    monkeypatch.undo()
    found = newest(tmp_path)
    assert found
    assert found.name == "step_000001"
    assert save(tmp_path, 2, some(2)) == newest(tmp_path)


def test_only_the_last_checkpoints_stay(tmp_path: Path) -> None:
    for step in range(1, 6):
        save(tmp_path, step, some(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000004", "step_000005"]


def test_a_folder_keeps_its_settings(uninterrupted: Path) -> None:
    with pytest.raises(UserError, match="begun with other settings"):
        perform("pretrain", "nano", [*TINY, "pretrain.lr=1e-4"], uninterrupted)
