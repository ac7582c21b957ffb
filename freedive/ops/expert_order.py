"""Remembers which experts were used most, so that the next start fills the memory for experts with these first.

The file is a JSON object: ``experts`` has, for each layer, its experts in this order. Nothing depends on it but speed,
so a file that is missing, damaged or of another model counts as none, and one that cannot be written is not written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from freedive.checkpoint.write import new_file
from freedive.errors import UserError
from freedive.files import read_json


def read_order(path: Path) -> list[list[int]]:
    """Returns the experts of each layer in the order of ``path``; empty if there is none. It may not fit the model."""
    try:
        layers = read_json(path).get("experts")
    except (OSError, UserError):
        return []
    if not isinstance(layers, list) or not all(_is_order(layer) for layer in layers):
        return []
    return layers


def write_order(path: Path, load: Sequence[Sequence[int]]) -> None:
    """Writes the order by ``load``, how often each expert of each layer was used; equal ones keep their old order."""
    before = read_order(path)
    if [len(layer) for layer in before] != [len(layer) for layer in load]:
        before = [list(range(len(layer))) for layer in load]
    layers = [_by_use(order, counts) for order, counts in zip(before, load, strict=True)]
    text = json.dumps({"experts": layers}).encode()
    with (
        suppress(OSError, UserError),
        new_file(path, "The order of experts", len(text), "set FREEDIVE_HOME to another folder") as file,
    ):
        file.write(text)


def _by_use(order: Sequence[int], counts: Sequence[int]) -> list[int]:
    return sorted(order, key=lambda expert: -counts[expert])


def _is_order(layer: object) -> bool:
    """Whether ``layer`` is a list of all numbers below its length, each once."""
    if not isinstance(layer, list) or not all(type(each) is int for each in layer):
        return False
    return sorted(layer) == [*range(len(layer))]
