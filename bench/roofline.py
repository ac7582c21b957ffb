"""What a machine allows: bytes that a step of writing reads, operations of a prompt's token, and their limits."""

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
from freedive.native import _native

CACHE_BYTES = 2
"""Of a number in the cache: 16 bits with every engine."""


@dataclass(frozen=True)
class Limits:
    """Of this machine with all threads: bytes read per second; operations per second by type and instruction."""

    bandwidth: float
    peaks: Mapping[str, float]

    @classmethod
    def measured(cls, threads: int) -> Limits:
        found = _native.compute_peaks(threads)
        return cls(1e9 * bandwidth(threads), {f"{kind} {instruction}": peak for kind, instruction, peak in found})

    def peak(self, kind: str) -> float:
        """The best of a type (int8, bf16, fp32); 0 if the machine has no instruction for it."""
        return max((peak for name, peak in self.peaks.items() if name.startswith(kind)), default=0.0)


@dataclass(frozen=True)
class Cost:
    """What a model costs in one engine's own formats.

    ``shared``: bytes that every step of writing reads. ``experts``: those of all routed experts in all layers.
    ``token_operations``: of a prompt's token, in products with weights other than the head; attention is not counted.
    """

    model: spec.ModelSpec
    shared: float
    experts: float
    token_operations: float

    @classmethod
    def of(cls, model: spec.ModelSpec, sizes: Mapping[str, float]) -> Cost:
        """``sizes``: bytes of tensors, by names of GGUF, of Hugging Face or our own."""
        experts = sum(size for name, size in sizes.items() if "_exps." in name or ".experts." in name)
        embedding = sum(size for name, size in sizes.items() if not model.tied and ("embd" in name or "embed" in name))
        active = footprint(model, lambda name, param: 0 if name in ("embed", "head") else param.size).read
        return cls(model, sum(sizes.values()) - experts - embedding, experts, 2.0 * active)

    def step_bytes(self, work: Workload, unique: float) -> float:
        """That a step of writing reads: weights, ``unique`` experts of each layer, and the cache."""
        router = router_of(self.model)
        share = unique / router.num_experts if router else 0.0
        return self.shared + share * self.experts + work.num_prompts * _cache_bytes(self.model, work.context)

    def fraction(self, work: Workload, speed: float, unique: float, limits: Limits) -> float | None:
        """Of the physical limit, at a ``speed`` in tokens/s; None where there is no measure of it."""
        if not work.reads:
            return speed / work.num_prompts * self.step_bytes(work, unique) / limits.bandwidth
        peak = limits.peak("int8")
        return self.token_operations * speed / peak if peak else None


def cost(path: Path, model: spec.ModelSpec) -> Cost:
    """Of ``model`` as a GGUF file, a folder of safetensors, or one of OpenVINO, whose weights count as all alike."""
    if not path.is_dir():
        return Cost.of(model, {name: tensor.data.nbytes for name, tensor in open_checkpoint(path).tensors.items()})
    if (weights := path / "model.safetensors").exists():
        return Cost.of(model, {name: tensor.data.nbytes for name, tensor in read_file(weights).items()})
    table = params(model)
    each = (path / "openvino_model.bin").stat().st_size / sum(param.size for param in table.values())
    return Cost.of(model, {name: each * param.size for name, param in table.items()})


def expected_unique(model: spec.ModelSpec, rows: int) -> float:
    """Experts of a layer that ``rows`` tokens read together, if each chooses at random; 0 in a model without."""
    router = router_of(model)
    return router.num_experts * (1 - (1 - router.num_chosen / router.num_experts) ** rows) if router else 0.0


def router_of(model: spec.ModelSpec) -> spec.Router | None:
    """How tokens choose experts, if they do."""
    return next((layer.ffn.router for layer in model.layers if isinstance(layer.ffn, spec.Experts)), None)


def _cache_bytes(model: spec.ModelSpec, context: int) -> int:
    """That a token looks back at after ``context`` others."""
    return sum(
        CACHE_BYTES * spec.per_token_dim(layer.mixer.state) * _seen(layer.mixer, context) for layer in model.layers
    )


def _seen(attention: spec.Mixer, context: int) -> int:
    window = attention.window if isinstance(attention, spec.Attention) else 0
    return min(context, window or context)
