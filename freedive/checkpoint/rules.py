"""Rules that convert a maker's tensor names, shapes and row orders to canonical ones, and back.

In names, ``{}`` stands for a number between dots: ``model.layers.{}.mlp.up_proj.weight``. Shapes and formats are
computed immediately. Bytes are computed when they are read, one expert at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from freedive.arrays import Bytes
from freedive.checkpoint.dequantize import FLOATS
from freedive.checkpoint.rule_steps import Shape, Step, made, num_units, units
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.files import quote
from freedive.model.params import Param, params
from freedive.model.spec import ModelSpec

_NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.)")
_MAX_FAULTS = 4


@dataclass(frozen=True)
class Rule:
    """The maker's tensor ``theirs`` contains all the canonical weights ``ours``.

    If the names ``ours`` have one number more than ``theirs``, the maker's tensor is a stack [E, ...], and this last
    number is the index in it. ``steps`` are applied to each item of the stack. After them, the rows of an item (or the
    elements of a vector) are divided into ``blocks`` equal blocks, and each block contains an equal part of every
    weight of ``ours``, in order. Examples: 1 block of gate, then up; as many blocks as rows if gate and up alternate;
    as many blocks as heads if each head has its keys, then its values. Names ``ours`` may give the number of a layer
    instead of its ``{}``: the rule is then of this layer only. If several rules have the same weight, the first one
    whose tensor exists is used.
    """

    theirs: str
    ours: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    blocks: int = 1

    @cached_property
    def stacks(self) -> bool:
        return self.ours[0].count("{}") > self.theirs.count("{}")


@dataclass(frozen=True)
class Ignore:
    """The tensor ``theirs`` is not read, because it is a buffer or a copy of a tied weight.

    A name that ends with ``*`` means all tensors with this prefix, such as those of parts that are not run.
    """

    theirs: str


Rules = Sequence[Rule | Ignore]


def canonical_tensors(checkpoint: Checkpoint, spec: ModelSpec, rules: Rules) -> dict[str, Tensor]:
    """Returns the weights of ``params(spec)``, in its order, by canonical name.

    Raises UserError with the maker's names of tensors that are missing, unexpected or of a wrong shape.
    """
    expected = params(spec)
    shapes = {name: Tensor(name, param.shape, "F32", _nothing) for name, param in expected.items()}
    tensors: dict[str, Tensor] = {}
    found = groups(expected, rules, checkpoint.tensors)
    faults = [f"{quote(name)} is unexpected" for name in _unused(checkpoint.tensors.keys() - found.keys(), rules)]
    for theirs, group in found.items():
        if not group.is_whole:
            faults.append(f"{theirs} is missing, and other tensors have only some of its weights")
            continue
        wanted = _revert(group, shapes).shape
        tensor = checkpoint.tensors.get(theirs)
        if tensor is None:
            faults.append(f"{theirs} {list(wanted)} is missing")
        elif fault := _misfit(tensor, wanted, expected[group.names[0, 0]]):
            faults.append(fault)
        else:
            tensors.update(_apply(tensor if tensor.shape == wanted else replace(tensor, shape=wanted), group, shapes))
    if faults:
        raise _refusal(spec, sorted(faults))
    return {name: tensors[name] for name in expected}


def maker_tensors(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Converts canonical tensors to the maker's names and shapes; the inverse of :func:`canonical_tensors`."""
    found = groups(tensors, rules)
    return {theirs: replace(_revert(group, tensors), name=theirs) for theirs, group in found.items()}


class Group(NamedTuple):
    """The canonical weights in one tensor of the maker; ``names`` maps (index in the stack, index in ``rule.ours``)."""

    rule: Rule
    names: dict[tuple[int, int], str]

    @property
    def is_whole(self) -> bool:
        """Whether no weight of the tensor is in another tensor of the maker."""
        parts = len(self.rule.ours)
        items = -(-len(self.names) // parts)
        return self.names.keys() == {(item, part) for item in range(items) for part in range(parts)}


def groups(names: Iterable[str], rules: Rules, present: Collection[str] = ()) -> dict[str, Group]:
    """Groups canonical ``names`` by the maker's tensor that contains them.

    If several rules match, it uses the first one whose tensor is ``present``, or the first one if none is.
    """
    table: dict[str, list[Rule]] = {}
    for entry in rules:
        if isinstance(entry, Rule):
            for ours in entry.ours:
                table.setdefault(ours, []).append(entry)
    found: dict[str, Group] = {}
    for name in names:
        candidates = list(_candidates(name, table))
        rule, pattern, numbers = next((each for each in candidates if each.theirs in present), candidates[0])
        place = int(numbers[-1]) if rule.stacks else 0, rule.ours.index(pattern)
        found.setdefault(rule.theirs.format(*numbers), Group(rule, {})).names[place] = name
    return found


class _Candidate(NamedTuple):
    """A rule that has a canonical name in the form ``pattern``, in which ``numbers`` are left open."""

    rule: Rule
    pattern: str
    numbers: list[str]

    @property
    def theirs(self) -> str:
        return self.rule.theirs.format(*self.numbers)


def _candidates(name: str, table: Mapping[str, Sequence[Rule]]) -> Iterator[_Candidate]:
    """Yields the rules of ``table`` that match ``name``: those of this layer first, then those of any layer."""
    pattern, numbers = _split(name)
    if numbers:
        layer = pattern.replace("{}", numbers[0], 1)
        yield from (_Candidate(rule, layer, numbers[1:]) for rule in table.get(layer, ()))
    yield from (_Candidate(rule, pattern, numbers) for rule in table[pattern])


def _unused(names: Iterable[str], rules: Rules) -> list[str]:
    """Returns those of the maker's ``names`` that no rule ignores."""
    ignored = {rule.theirs for rule in rules if isinstance(rule, Ignore)}
    prefixes = tuple(theirs[:-1] for theirs in ignored if theirs.endswith("*"))
    return [
        name
        for name in names
        if (pattern := _split(name)[0]) not in ignored and not name.startswith(prefixes) | pattern.startswith(prefixes)
    ]


def _apply(tensor: Tensor, group: Group, shapes: Mapping[str, Tensor]) -> Iterable[tuple[str, Tensor]]:
    """Yields the names and values of the canonical tensors in the maker's ``tensor``."""
    rule, names = group
    sizes = [num_units(shapes[names[0, part]].shape) // rule.blocks for part in range(len(rule.ours))]
    for (index, part), name in names.items():
        whole = _item(tensor, index) if rule.stacks else tensor
        for step in rule.steps:
            whole = step.apply(whole)
        if len(sizes) > 1:
            begin = sum(sizes[:part])
            whole = _share(whole, rule.blocks, begin, begin + sizes[part], shapes[name].shape)
        yield name, replace(whole, name=name, shape=shapes[name].shape)


def _revert(group: Group, tensors: Mapping[str, Tensor]) -> Tensor:
    """Returns the maker's tensor, without its name, made from the canonical ``tensors`` of ``group``."""
    rule, names = group

    def item(index: int) -> Tensor:
        whole = _joined([tensors[names[index, part]] for part in range(len(rule.ours))], rule.blocks)
        for step in reversed(rule.steps):
            whole = step.revert(whole)
        return whole

    if not rule.stacks:
        return item(0)
    first, count = item(0), len(names) // len(rule.ours)
    return made(first, lambda: np.concatenate([item(index).data for index in range(count)]), (count, *first.shape))


def _item(stack: Tensor, index: int) -> Tensor:
    """Returns ``stack[index]``."""
    shape = stack.shape[1:]
    start = index * math.prod(shape[:-1])
    return replace(stack, shape=shape, source=lambda begin, end: stack.rows(start + begin, start + end))


def _share(tensor: Tensor, blocks: int, begin: int, end: int, shape: Shape) -> Tensor:
    """Returns units ``begin`` to ``end`` of each of the ``blocks`` blocks of ``tensor``."""
    return made(tensor, lambda: _split_blocks(tensor, blocks)[:, begin:end], shape)


def _joined(parts: Sequence[Tensor], blocks: int) -> Tensor:
    """Returns a tensor of ``blocks`` blocks, each with an equal part of every one of ``parts``; inverts _share."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(num_units(part.shape) for part in parts), *parts[0].shape[1:][-1:])
    return made(parts[0], lambda: np.concatenate([_split_blocks(part, blocks) for part in parts], axis=1), shape)


def _split_blocks(tensor: Tensor, blocks: int) -> Bytes:
    rows = units(tensor)
    return rows.reshape(blocks, -1, rows.shape[1])


def _nothing(begin: int, end: int) -> Bytes:
    raise AssertionError("only the shape is known")


def _split(name: str) -> tuple[str, list[str]]:
    """Splits a name into its pattern and its numbers; drops braces in the name, which would look like a number."""
    parts = _NUMBER.split(name.replace("{", ""))
    return "{}".join(parts[::2]), parts[1::2]


def _misfit(tensor: Tensor, shape: Shape, param: Param) -> str | None:
    """Returns what is wrong with the maker's ``tensor``, or None; ignores leading axes of size 1, which makers add or
    omit.
    """
    if tensor.shape != shape and _significant(tensor.shape) != _significant(shape):
        return f"{quote(tensor.name)} is {list(tensor.shape)} instead of {list(shape)}"
    if param.role in ("norm", "bias", "conv", "router") and tensor.format not in FLOATS:
        return f"{quote(tensor.name)} is {tensor.format} instead of F32, F16 or BF16"
    return None


def _significant(shape: Shape) -> Shape:
    first = next((axis for axis, size in enumerate(shape) if size != 1), len(shape))
    return shape[first:]


def _refusal(spec: ModelSpec, faults: list[str]) -> UserError:
    more = f"; and {len(faults) - _MAX_FAULTS} more" if len(faults) > _MAX_FAULTS else ""
    return UserError(
        f"The tensors do not make a {spec.family} model as configured: {'; '.join(faults[:_MAX_FAULTS])}{more}",
        "The files are incomplete, or belong to another model: fetch them again",
    )
