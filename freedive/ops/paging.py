"""Routed experts that stay on disk: a step reads those that are not in memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from freedive.checkpoint.fingerprint import stamp
from freedive.checkpoint.packed import Packed
from freedive.checkpoint.weight_store import DamagedStore, WeightStore
from freedive.errors import UserError
from freedive.model.batch import ChangedWeights, UnreadableWeights
from freedive.native import _native
from freedive.ops.expert_order import read_order


@dataclass(frozen=True)
class Paging:
    """How routed experts are read from disk.

    ``num_bytes`` is the memory for experts. With ``direct``, reads go past the page cache. ``num_readers`` threads
    read. A step fails if the disk does not answer for ``timeout_s`` seconds. ``order`` is the file of the order in
    which the memory is filled (:mod:`freedive.ops.expert_order`).
    """

    num_bytes: int
    direct: bool = False
    num_readers: int = 2
    timeout_s: float = 30.0
    order: Path | None = None


class ExpertTraffic(NamedTuple):
    """What the experts of one layer cost, by default since the start.

    ``hits`` and ``misses`` count experts that a step needed and that were in memory or not. ``read_bytes`` were read,
    also to fill the memory before a step needs it. Steps waited ``stalled_s`` seconds.
    """

    hits: int
    misses: int
    read_bytes: int
    stalled_s: float

    @classmethod
    def sum(cls, parts: Iterable[ExpertTraffic]) -> ExpertTraffic:
        """Returns the traffic of all ``parts`` together."""
        return cls(*(sum(column) for column in zip(*parts, strict=True)))

    def since(self, before: ExpertTraffic) -> ExpertTraffic:
        """Returns the traffic between ``before`` and this one."""
        read_bytes, stalled_s = self.read_bytes - before.read_bytes, self.stalled_s - before.stalled_s
        return ExpertTraffic(self.hits - before.hits, self.misses - before.misses, read_bytes, stalled_s)

    @property
    def hit_rate(self) -> float:
        """The share of needed experts that were in memory; 1 if none was needed."""
        return self.hits / (self.hits + self.misses) if self.hits + self.misses else 1.0


class ExpertCacheStats(NamedTuple):
    """The memory for experts that stay on disk, the part of it that is filled, and the traffic of each layer."""

    slots_bytes: int
    used_bytes: int
    layers: list[ExpertTraffic]

    @property
    def total(self) -> ExpertTraffic:
        """The traffic of all layers together."""
        return ExpertTraffic.sum(self.layers)

    @property
    def numbers(self) -> dict[str, float]:
        """The bytes of memory, and the traffic of all layers together, by name."""
        return {"slots_bytes": self.slots_bytes, "used_bytes": self.used_bytes, **self.total._asdict()}


def page_experts(
    program: _native.Program, weights: Mapping[str, Packed], paging: Paging, by_row: Collection[str]
) -> WeightStore:
    """Lets ``program`` read routed experts from the store of ``weights``; returns the weights, with all in memory
    except experts and the tables ``by_row``, whose rows the system reads.

    Raises UserError if the weights are not in a file, or if the file cannot be read.
    """
    if not isinstance(weights, WeightStore) or not weights.path:
        raise UserError("These weights are not in a file, from which experts could be read", "Raise memory")
    try:
        program.page_experts(
            path=str(weights.path),
            num_bytes=paging.num_bytes,
            direct=paging.direct,
            num_readers=paging.num_readers,
            timeout_s=paging.timeout_s,
            order=read_order(paging.order) if paging.order else [],
        )
        return weights.without_mapping(by_row)
    except (RuntimeError, OSError, DamagedStore) as error:
        raise UserError(f"{weights.path} cannot be read: {error}", "Check the disk, or fetch the model again") from None


class ExpertFile:
    """The file from which experts are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp = self._current_stamp()

    def explain(self, error: _native.UnreadableWeights, rows: Sequence[int]) -> UnreadableWeights:
        """Returns the ``error`` of a step as one that a user understands; ChangedWeights if the file has changed.

        ``rows`` are the rows that needed what could not be read.
        """
        what = str(error)
        kind = UnreadableWeights if self._current_stamp() == self._stamp else ChangedWeights
        return kind(what[0].upper() + what[1:], "Try again later, or check the disk", rows=rows)

    def _current_stamp(self) -> list[int]:
        try:
            return stamp(self._path)
        except OSError:  # it was deleted
            return []
