"""Rules that convert a maker's tensor names, shapes and row orders to canonical ones, and back.

In names, ``{}`` stands for a number between dots: ``model.layers.{}.mlp.up_proj.weight``. Shapes and formats are
computed immediately. Bytes are computed when they are read, one expert at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from freedive.arrays import Bytes
from freedive.checkpoint.dequantize import FLOATS, as_floats, dequantize
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.files import quote
from freedive.model.params import Param, params
from freedive.model.spec import ModelSpec

_NUMBER = re.compile(r"(?<=\.)(\d+)(?=\.)")
_MAX_FAULTS = 4

Shape = tuple[int, ...]


class Step(Protocol):
    """A reversible change of one tensor."""

    def apply(self, tensor: Tensor) -> Tensor:
        """Converts the maker's tensor to the canonical one."""

    def revert(self, tensor: Tensor) -> Tensor:
        """Converts the canonical tensor to the maker's."""


@dataclass(frozen=True)
class Permute:
    """The maker interleaves the rows of each head: (0, d/2, 1, d/2 + 1, ...); canonical rows are in order.

    llama.cpp stores the query and key weights of its `llama` architecture in this order, because it rotates neighbours
    while Hugging Face rotates halves. Only whole rows are moved, so this works for quantised formats too.
    """

    head_dim: int

    def apply(self, tensor: Tensor) -> Tensor:
        return self._swap(tensor, (-1, self.head_dim // 2, 2))

    def revert(self, tensor: Tensor) -> Tensor:
        return self._swap(tensor, (-1, 2, self.head_dim // 2))

    def _swap(self, tensor: Tensor, halves: tuple[int, int, int]) -> Tensor:
        def make() -> Bytes:
            units = _units(tensor)
            return units[np.arange(len(units)).reshape(halves).swapaxes(1, 2).ravel()]

        return _made(tensor, make)


@dataclass(frozen=True)
class Transpose:
    """The last two axes of the maker's weight are swapped; quantised formats, whose blocks this splits, become F16."""

    def apply(self, tensor: Tensor) -> Tensor:
        def make() -> Bytes:
            floats = as_floats(tensor)
            values = floats.data.view(np.uint32 if floats.format == "F32" else np.uint16).reshape(tensor.shape)
            return np.ascontiguousarray(values.swapaxes(-1, -2)).view(np.uint8)

        *outer, rows, width = tensor.shape
        format = tensor.format if tensor.format in FLOATS else "F16"
        return _made(tensor, make, (*outer, width, rows), format)

    revert = apply


@dataclass(frozen=True)
class Add:
    """The canonical weight is the maker's plus ``term``, in float32, for norms that multiply by 1 + weight."""

    term: float

    def apply(self, tensor: Tensor) -> Tensor:
        return self._add(tensor, self.term)

    def revert(self, tensor: Tensor) -> Tensor:
        return self._add(tensor, -self.term)

    def _add(self, tensor: Tensor, term: float) -> Tensor:
        return _made(tensor, lambda: (dequantize(tensor) + np.float32(term)).view(np.uint8), format="F32")


@dataclass(frozen=True)
class Scale:
    """The canonical weight is the maker's times ``factor``, in float32."""

    factor: float

    def apply(self, tensor: Tensor) -> Tensor:
        return self._scale(tensor, self.factor)

    def revert(self, tensor: Tensor) -> Tensor:
        return self._scale(tensor, 1 / self.factor)

    def _scale(self, tensor: Tensor, factor: float) -> Tensor:
        return _made(tensor, lambda: (dequantize(tensor) * np.float32(factor)).view(np.uint8), format="F32")


@dataclass(frozen=True)
class Exp:
    """The canonical weight is the exponential of the maker's, in float32: rates of decay are positive."""

    def apply(self, tensor: Tensor) -> Tensor:
        return _made(tensor, lambda: np.exp(dequantize(tensor)).view(np.uint8), format="F32")

    def revert(self, tensor: Tensor) -> Tensor:
        return _made(tensor, lambda: np.log(dequantize(tensor)).view(np.uint8), format="F32")


@dataclass(frozen=True)
class Row:
    """The maker's weight is a matrix of one row, [1, n]; the canonical one is a vector, [n]."""

    def apply(self, tensor: Tensor) -> Tensor:
        return replace(tensor, shape=tensor.shape[1:])

    def revert(self, tensor: Tensor) -> Tensor:
        return replace(tensor, shape=(1, *tensor.shape))


@dataclass(frozen=True)
class Flatten:
    """The maker's weight has the ``shape``, whatever its axes mean; the canonical one is a vector."""

    shape: Shape

    def apply(self, tensor: Tensor) -> Tensor:
        return _made(tensor, lambda: tensor.data, (math.prod(tensor.shape),))

    def revert(self, tensor: Tensor) -> Tensor:
        return _made(tensor, lambda: tensor.data, self.shape)


@dataclass(frozen=True)
class Halve:
    """Each row of the maker's weight is two canonical rows; a quantised format becomes F16 if this splits a block."""

    def apply(self, tensor: Tensor) -> Tensor:
        rows, width = tensor.shape
        cuts = width // 2 % BLOCKS[tensor.format][0] > 0
        whole = as_floats(tensor) if cuts else tensor
        return _made(whole, lambda: whole.data, (2 * rows, width // 2))

    def revert(self, tensor: Tensor) -> Tensor:
        rows, width = tensor.shape
        return _made(tensor, lambda: tensor.data, (rows // 2, 2 * width))


@dataclass(frozen=True)
class Taps:
    """The maker's weight is a depthwise convolution [dim, *middle, kernel], the canonical one [kernel * dim]."""

    kernel: int
    middle: Shape = ()

    def apply(self, tensor: Tensor) -> Tensor:
        return self._turn(tensor, (-1, self.kernel), (math.prod(tensor.shape),))

    def revert(self, tensor: Tensor) -> Tensor:
        dim = math.prod(tensor.shape) // self.kernel
        return self._turn(tensor, (self.kernel, -1), (dim, *self.middle, self.kernel))

    @staticmethod
    def _turn(tensor: Tensor, matrix: tuple[int, int], shape: Shape) -> Tensor:
        def make() -> Bytes:
            values = tensor.data.reshape(-1).view(np.uint32 if tensor.format == "F32" else np.uint16)
            return np.ascontiguousarray(values.reshape(matrix).T).view(np.uint8)

        return _made(tensor, make, shape)


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
    sizes = [_num_units(shapes[names[0, part]].shape) // rule.blocks for part in range(len(rule.ours))]
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
    return _made(first, lambda: np.concatenate([item(index).data for index in range(count)]), (count, *first.shape))


def _item(stack: Tensor, index: int) -> Tensor:
    """Returns ``stack[index]``."""
    shape = stack.shape[1:]
    start = index * math.prod(shape[:-1])
    return replace(stack, shape=shape, source=lambda begin, end: stack.rows(start + begin, start + end))


def _share(tensor: Tensor, blocks: int, begin: int, end: int, shape: Shape) -> Tensor:
    """Returns units ``begin`` to ``end`` of each of the ``blocks`` blocks of ``tensor``."""
    return _made(tensor, lambda: _split_blocks(tensor, blocks)[:, begin:end], shape)


def _joined(parts: Sequence[Tensor], blocks: int) -> Tensor:
    """Returns a tensor of ``blocks`` blocks, each with an equal part of every one of ``parts``; inverts _share."""
    if len(parts) == 1:
        return parts[0]
    shape = (sum(_num_units(part.shape) for part in parts), *parts[0].shape[1:][-1:])
    return _made(parts[0], lambda: np.concatenate([_split_blocks(part, blocks) for part in parts], axis=1), shape)


def _split_blocks(tensor: Tensor, blocks: int) -> Bytes:
    units = _units(tensor)
    return units.reshape(blocks, -1, units.shape[1])


def _units(tensor: Tensor) -> Bytes:
    """Returns the units that can be reordered, uint8 [num_units, bytes]: rows of a matrix, elements of a vector."""
    return tensor.data.reshape(_num_units(tensor.shape), -1)


def _num_units(shape: Shape) -> int:
    return math.prod(shape[:-1] or shape)


def _made(tensor: Tensor, make: Callable[[], Bytes], shape: Shape | None = None, format: str | None = None) -> Tensor:
    """Returns a tensor like ``tensor`` whose bytes ``make`` computes."""
    shape = shape or tensor.shape
    num_rows = math.prod(shape[:-1])

    def rows(begin: int, end: int) -> Bytes:
        return make().reshape(num_rows, -1)[begin:end]

    return replace(tensor, shape=shape, format=format or tensor.format, source=rows)


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
