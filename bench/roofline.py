"""The limits of a machine: bytes that a decode step reads, operations per prompt token, and the speeds that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workloads import Workload

from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.safetensors import read_file
from freedive.commands.trace import bandwidth
from freedive.model import spec
from freedive.model.params import params
from freedive.model.size import footprint
from freedive.model.state import per_token_dim
from freedive.native import _native

CACHE_BYTES = 2
"""The size in bytes of a number in the key-value cache, 16 bits with every engine."""


@dataclass(frozen=True)
class Limits:
    """The limits of this machine with all threads: bytes read per second; operations per second by type and
    instruction."""

    bandwidth: float
    peaks: Mapping[str, float]

    @classmethod
    def measured(cls, threads: int) -> Limits:
        found = _native.compute_peaks(threads)
        return cls(1e9 * bandwidth(threads), {f"{kind} {instruction}": peak for kind, instruction, peak in found})

    def peak(self, kind: str) -> float:
        """Returns the peak of a type (int8, bf16, fp32), or 0 if the machine has no instruction for it."""
        return max((peak for name, peak in self.peaks.items() if name.startswith(kind)), default=0.0)


@dataclass(frozen=True)
class Cost:
    """The cost of a model in one engine's own formats.

    ``shared`` is the bytes that every decode step reads, ``experts`` those of all routed experts in all layers.
    ``token_operations`` is the operations per prompt token in products with weights, without the head and attention.
    """

    model: spec.ModelSpec
    shared: float
    experts: float
    token_operations: float

    @classmethod
    def of(cls, model: spec.ModelSpec, sizes: Mapping[str, float]) -> Cost:
        """Computes the cost from ``sizes``, bytes by tensor name of GGUF, Hugging Face or freedive."""
        experts = sum(size for name, size in sizes.items() if "_exps." in name or ".experts." in name)
        embedding = sum(size for name, size in sizes.items() if not model.tied and ("embd" in name or "embed" in name))
        active = footprint(model, lambda name, param: 0 if name in ("embed", "head") else param.size).read
        return cls(model, sum(sizes.values()) - experts - embedding, experts, 2.0 * active)

    def step_bytes(self, work: Workload, unique: float) -> float:
        """Returns the bytes that a decode step reads: weights, ``unique`` experts of each layer, and the cache."""
        router = router_of(self.model)
        share = unique / router.num_experts if router else 0.0
        return self.shared + share * self.experts + work.num_prompts * _cache_bytes(self.model, work.context)

    def fraction(self, work: Workload, speed: float, unique: float, limits: Limits) -> float | None:
        """Returns ``speed`` (tokens/s) as a fraction of the physical limit; None if the limit was not measured."""
        if not work.reads:
            return speed / work.num_prompts * self.step_bytes(work, unique) / limits.bandwidth
        peak = limits.peak("int8")
        return self.token_operations * speed / peak if peak else None


def cost(path: Path, model: spec.ModelSpec) -> Cost:
    """Returns the cost of ``model`` as a GGUF file, a safetensors folder, or OpenVINO's, whose weights count as equal
    in size."""
    if not path.is_dir():
        return Cost.of(model, {name: tensor.data.nbytes for name, tensor in open_checkpoint(path).tensors.items()})
    if (weights := path / "model.safetensors").exists():
        return Cost.of(model, {name: tensor.data.nbytes for name, tensor in read_file(weights).items()})
    table = params(model)
    each = (path / "openvino_model.bin").stat().st_size / sum(param.size for param in table.values())
    return Cost.of(model, {name: each * param.size for name, param in table.items()})


def expected_unique(model: spec.ModelSpec, rows: int) -> float:
    """Returns the expected number of experts that ``rows`` tokens read in a layer if routes are random; 0 without
    experts."""
    router = router_of(model)
    return router.num_experts * (1 - (1 - router.num_chosen / router.num_experts) ** rows) if router else 0.0


def router_of(model: spec.ModelSpec) -> spec.Router | None:
    """Returns the router of the first mixture, or None."""
    return next((layer.ffn.router for layer in model.layers if isinstance(layer.ffn, spec.Experts)), None)


def _cache_bytes(model: spec.ModelSpec, context: int) -> int:
    """Returns the bytes of the cache that a token reads after ``context`` others."""
    return sum(CACHE_BYTES * per_token_dim(layer.mixer.state) * _seen(layer.mixer, context) for layer in model.layers)


def _seen(attention: spec.Mixer, context: int) -> int:
    window = attention.window if isinstance(attention, spec.Attention) else 0
    return min(context, window or context)
