"""A maker's tensor names and row orders <-> canonical ones, by tables that read in both directions.

In names, ``{}`` stands for a number between dots: ``model.layers.{}.mlp.up_proj.weight``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from freedive.checkpoint.file import quote
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.model.params import Param, params
from freedive.model.spec import Model

Bytes = npt.NDArray[np.uint8]

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_MAX_FAULTS = 4


@dataclass(frozen=True)
class Rename:
    """The tensor ``theirs`` is the canonical ``ours``, byte for byte."""

    theirs: str
    ours: str

    def apply(self, tensor: Tensor) -> Bytes:
        """Canonical bytes of the maker's ``tensor``."""
        return tensor.data

    def revert(self, tensor: Tensor) -> Bytes:
        """The maker's bytes of the canonical ``tensor``."""
        return tensor.data


@dataclass(frozen=True)
class Permute(Rename):
    """A rename of ``num_heads`` heads whose rows the maker interleaves: (0, d/2, 1, d/2 + 1, ...); ours run in order.

    llama.cpp stores the queries and keys of its `llama` architecture so, to rotate neighbours where Hugging Face
    rotates halves. Moving whole rows also fits quantised formats.
    """

    num_heads: int

    def apply(self, tensor: Tensor) -> Bytes:
        return self._swap(tensor, (self.num_heads, -1, 2))

    def revert(self, tensor: Tensor) -> Bytes:
        return self._swap(tensor, (self.num_heads, 2, -1))

    def _swap(self, tensor: Tensor, halves: tuple[int, int, int]) -> Bytes:
        rows = tensor.data.reshape(tensor.shape[0], -1)
        order = np.arange(len(rows)).reshape(halves).swapaxes(1, 2).ravel()
        return rows[order].reshape(tensor.data.shape)


@dataclass(frozen=True)
class Ignore:
    """The tensor ``theirs`` says nothing that the description does not: a buffer, or a copy of a tied weight."""

    theirs: str


Rule = Rename | Ignore


class Converted(Mapping[str, Tensor]):
    """Tensors under their new names; a tensor whose rows move is made when asked for, and not kept."""

    def __init__(self, sources: Mapping[str, tuple[Rename, Tensor]], *, canonical: bool) -> None:
        self._sources = sources
        self._canonical = canonical

    def __getitem__(self, name: str) -> Tensor:
        rule, tensor = self._sources[name]
        return replace(tensor, name=name, data=rule.apply(tensor) if self._canonical else rule.revert(tensor))

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def canonical_tensors(checkpoint: Checkpoint, spec: Model, rules: Sequence[Rule]) -> Mapping[str, Tensor]:
    """Exactly the weights of ``params(spec)``, in its order, by canonical name.

    Raises UserError naming, as the maker calls them, tensors that are missing, unexpected or of a wrong shape.
    """
    table = {rule.theirs: rule for rule in rules}
    sources: dict[str, tuple[Rename, Tensor]] = {}
    faults = []
    expected = params(spec)
    for name, tensor in checkpoint.tensors.items():
        pattern, numbers = _split(name)
        rule = table.get(pattern)
        if isinstance(rule, Ignore):
            continue
        ours = rule.ours.format(*numbers) if rule else ""
        if rule is None or ours not in expected:
            faults.append(f"{quote(name)} is unexpected")
        else:
            faults += _misfits(tensor, expected[ours])
            sources[ours] = rule, tensor
    theirs = {rule.ours: rule.theirs for rule in rules if isinstance(rule, Rename)}
    for ours in expected.keys() - sources.keys():
        pattern, numbers = _split(ours)
        faults.append(f"{theirs[pattern].format(*numbers)} {list(expected[ours].shape)} is missing")
    if faults:
        raise _refusal(spec, sorted(faults))
    return Converted({name: sources[name] for name in expected}, canonical=True)


def maker_tensors(tensors: Mapping[str, Tensor], rules: Sequence[Rule]) -> Mapping[str, Tensor]:
    """The inverse: canonical tensors under the maker's names and in the maker's row order, as for an export."""
    table = {rule.ours: rule for rule in rules if isinstance(rule, Rename)}
    sources = {}
    for name, tensor in tensors.items():
        pattern, numbers = _split(name)
        sources[table[pattern].theirs.format(*numbers)] = table[pattern], tensor
    return Converted(sources, canonical=False)


def _split(name: str) -> tuple[str, list[str]]:
    """Pattern and numbers; a brace that a file's own name brings is dropped, so that it cannot pass for a number."""
    return _NUMBER.sub("{}", name.replace("{", "")), _NUMBER.findall(name)


def _misfits(tensor: Tensor, param: Param) -> list[str]:
    if tensor.shape != param.shape:
        return [f"{quote(tensor.name)} is {list(tensor.shape)} instead of {list(param.shape)}"]
    if param.role in ("norm", "bias") and tensor.format not in ("F32", "F16", "BF16"):
        return [f"{quote(tensor.name)} is {tensor.format} instead of F32, F16 or BF16"]
    return []


def _refusal(spec: Model, faults: list[str]) -> UserError:
    more = f"; and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
    return UserError(
        f"The tensors do not make a {spec.family} model as configured: {'; '.join(faults[:_MAX_FAULTS])}{more}",
        "The files are incomplete, or belong to another model: fetch them again",
    )
