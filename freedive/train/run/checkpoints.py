"""Atomic checkpoints: written to a temporary folder, hashed, renamed, then referenced by ``latest``.

FOLDER/step_000100/{weights,optimizer}.safetensors, state.json, manifest.json; FOLDER/latest
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from freedive.disk import flush

WEIGHTS, OPTIMIZER, STATE, MANIFEST, LATEST = (
    *("weights.safetensors", "optimizer.safetensors", "state.json", "manifest.json", "latest"),
)
MAX_CHECKPOINTS = 2
"""The number of checkpoints of a stage that are kept."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint: ``state`` holds everything that is not a tensor, such as the step and the position in the data."""

    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save(folder: Path, step: int, checkpoint: Checkpoint) -> Path:
    """Writes a checkpoint; the previous one remains the latest until the new one is complete."""
    target = folder / f"step_{step:06}"
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: weight.detach() for name, weight in checkpoint.weights.items()}, partial / WEIGHTS)
    save_file(dict(checkpoint.optimizer), partial / OPTIMIZER)
    (partial / STATE).write_text(json.dumps(checkpoint.state), "utf-8")
    hashes = {name: _hash(partial / name) for name in (WEIGHTS, OPTIMIZER, STATE)}
    (partial / MANIFEST).write_text(json.dumps(hashes), "utf-8")
    for path in (*partial.iterdir(), partial):
        flush(path)
    if not is_whole(target):  # a complete one has the same bits: the step was repeated
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
    shutil.rmtree(partial, ignore_errors=True)
    pointer = folder / f"{LATEST}.partial"
    pointer.write_text(target.name, "utf-8")
    flush(pointer)
    pointer.replace(folder / LATEST)
    flush(folder)
    for old in _steps(folder)[MAX_CHECKPOINTS:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(folder: Path) -> Path | None:
    """Returns the latest complete checkpoint, or None; ignores incomplete and damaged ones."""
    pointer = folder / LATEST
    named = [folder / pointer.read_text("utf-8")] if pointer.exists() else []
    return next((path for path in (*named, *_steps(folder)) if is_whole(path)), None)


def _steps(folder: Path) -> list[Path]:
    """Returns the folders of all checkpoints, the last step first."""
    numbers = {path: path.name.removeprefix("step_") for path in folder.glob("step_*")}
    return sorted((path for path, number in numbers.items() if number.isdigit()), key=lambda p: -int(numbers[p]))


def is_whole(path: Path) -> bool:
    """Returns whether all files exist and match the hashes of the manifest."""
    try:
        hashes = json.loads((path / MANIFEST).read_text("utf-8"))
        return all(_hash(path / name) == expected for name, expected in hashes.items())
    except (OSError, ValueError, AttributeError):
        return False


def restore(folder: Path, weights: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> Mapping[str, Any] | None:
    """Copies the newest checkpoint into ``weights`` and ``optimizer`` and returns its state; None if there is none."""
    path = newest(folder)
    if path is None:
        return None
    found = load(path)
    with torch.no_grad():
        for tensors, values in ((weights, found.weights), (optimizer, found.optimizer)):
            for name, value in values.items():
                tensors[name].copy_(value)
    return found.state


def load(path: Path) -> Checkpoint:
    """Reads a complete checkpoint."""
    state = json.loads((path / STATE).read_text("utf-8"))
    return Checkpoint(load_file(path / WEIGHTS), load_file(path / OPTIMIZER), state)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
