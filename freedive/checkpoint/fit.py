"""Checks that packed weights match a model description, because the kernels check neither."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from freedive.checkpoint.dequantize import FLOATS
from freedive.checkpoint.packed import Packed, PackedExperts, Part
from freedive.checkpoint.weight_store import DamagedStore
from freedive.model.params import ExpertParams, Param, entries
from freedive.model.spec import ModelSpec


def check_fit(model: ModelSpec, weights: Mapping[str, Packed]) -> None:
    """Raises DamagedStore unless ``weights`` are exactly those of ``model``, in formats that their roles allow."""
    expected = entries(model)
    for name in (*expected, *weights):
        if name not in weights or name not in expected:
            raise DamagedStore(f"{name} is {'missing' if name in expected else 'unexpected'}")
    for name, entry in expected.items():
        if isinstance(entry, ExpertParams):
            faults = _experts_faults(entry, weights[name])
        else:
            faults = _faults(entry, weights[name])
        for fault in faults:
            raise DamagedStore(f"{name} {fault}")


def _experts_faults(experts: ExpertParams, found: Packed) -> Iterator[str]:
    if not isinstance(found, PackedExperts):
        yield "is one tensor instead of one for each expert"
        return
    if found.count != experts.count:
        yield f"has {found.count} experts instead of {experts.count}"
    if found.parts.keys() != experts.parts.keys():
        yield f"has the parts {', '.join(found.parts)} instead of {', '.join(experts.parts)}"
        return
    for name, param in experts.parts.items():
        for fault in _faults(param, found.parts[name]):
            yield f"({name}) {fault}"


def _faults(param: Param, found: Packed | Part) -> Iterator[str]:
    if isinstance(found, PackedExperts):
        yield "is there for each expert instead of once"
        return
    if found.shape != param.shape:
        yield f"is {list(found.shape)} instead of {list(param.shape)}"
    if param.role in ("router", "heads") and found.format not in FLOATS:
        yield f"is {found.format} instead of {', '.join(FLOATS)}"
