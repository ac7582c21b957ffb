"""Chooses how a model's experts are read from disk."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from freedive.checkpoint.packed import LAYOUT, PackedExperts
from freedive.checkpoint.weight_store import WeightStore
from freedive.errors import Unavailable
from freedive.files import quote
from freedive.hub.cache import packed_path
from freedive.hub.disks import disk_speed
from freedive.ops.paging import Paging


def paging(checkpoint: Path, weights: WeightStore, num_bytes: int) -> Paging:
    """Returns the fastest way to read experts of ``weights`` from their disk into ``num_bytes`` of memory.

    The order in which experts are read is kept in the cache, in the folder of what was made from ``checkpoint``. Raises
    Unavailable if the disk cannot be read.
    """
    assert weights.path
    record_bytes = max(packed.stride for packed in weights.values() if isinstance(packed, PackedExperts))
    try:
        disk = disk_speed(weights.path, record_bytes)
    except OSError as error:
        raise Unavailable(f"{quote(str(weights.path))} cannot be read: {error.strerror}", "Check the disk") from None
    order = None
    with suppress(Unavailable):  # without it, experts are read in their own order
        order = packed_path(checkpoint, LAYOUT).with_suffix(".order.json")
    return Paging(num_bytes, disk.direct, disk.readers, order=order)
