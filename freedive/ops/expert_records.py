"""What the kernels are told about the records of a layer's experts."""

from __future__ import annotations

from freedive.checkpoint.packed import FORMATS, PackedExperts
from freedive.native import _native


def part_of_record(packed: PackedExperts, name: str) -> tuple[_native.Format, int, int, int, int | None]:
    """Returns format, rows, width and offset of one matrix in the record of an expert, and the offset of its bias."""
    part, bias = packed.parts[name], packed.parts.get(f"{name}_bias")
    rows, k = part.shape
    return FORMATS[part.format], rows, k, part.offset, bias.offset if bias else None


def stored_records(packed: PackedExperts) -> tuple[int, list[tuple[int, int]], list[int]] | None:
    """Returns the offset of the first record in its file, offset and size of its parts, and the records' checksums."""
    if packed.stored is None:
        return None
    parts = [(part.offset, packed.part(0, name).data.nbytes) for name, part in packed.parts.items()]
    return packed.stored.offset, parts, packed.stored.checksums
