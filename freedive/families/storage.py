"""Computes the size of weights from the storage format that a config.json declares, without the tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from freedive.checkpoint.quantized.discover import take_quantization
from freedive.families.config import Config
from freedive.model.params import Param


@dataclass(frozen=True)
class Storage:
    """The storage format of a model. ``bits`` is the size of one value of a quantised linear weight, scales included.

    All other weights have 16 bits: embedding, output head, the heads of latent attention and, with ``experts_only``,
    the linears outside of experts. ``method`` is the name of the quantisation method.
    """

    method: str
    bits: float
    experts_only: bool

    def num_bytes(self, name: str, param: Param) -> float:
        """Returns the bytes of the weight with the canonical ``name``."""
        quantised = param.role == "linear" and name != "head" and (".experts." in name or not self.experts_only)
        return param.size * (self.bits if quantised else 16) / 8


def declared(values: dict[str, Any]) -> Storage | None:
    """Returns the storage format that a config.json declares, or None without a quantization_config.

    Raises UserError for an unknown quantisation method, and for impossible values.
    """
    _, quantization = take_quantization(values)
    if not quantization:
        return None
    method = quantization["quant_method"]
    config = Config(quantization, prefix="quantization_config.")
    return Storage(method, _METHODS[method](config), _leaves_attention(quantization))


def _leaves_attention(quantization: Mapping[str, Any]) -> bool:
    """Returns whether attention is not quantised; in published models, then only experts are."""
    return any("self_attn" in str(quantization.get(key)) for key in ("modules_to_not_convert", "ignore"))


def _f8(config: Config) -> float:
    """Returns the bits per value: 8, plus a float32 scale per block; scales per row or tensor are not counted."""
    block = config.numbers("weight_block_size", 2, least=1, most=1 << 20)
    return 8 + 32 / (block[0] * block[1]) if block else 8.0


def _gptq_or_awq(config: Config) -> float:
    bits, group = config.choice("bits", (4, 8)), config.count("group_size", least=-1)
    return _grouped(bits, group, symmetric=False)


def _compressed_tensors(config: Config) -> float:
    weights = config.section("config_groups").section("group_0").section("weights")
    bits, group = weights.count("num_bits", most=16), weights.count("group_size", 0, least=-1)
    scale_bits = 8 if weights.choice("type", ("int", "float")) == "float" and bits == 4 else 16
    return _grouped(bits, group, symmetric=weights.flag("symmetric", True), scale_bits=scale_bits)


def _modelopt(config: Config) -> float:
    return _MODELOPT_BITS[config.choice("quant_algo", tuple(_MODELOPT_BITS))]


_MODELOPT_BITS = {"NVFP4": 4 + 8 / 16, "W4A16_NVFP4": 4 + 8 / 16, "FP8": 8.0}


def _grouped(bits: int, group: int, *, symmetric: bool, scale_bits: int = 16) -> float:
    """Returns the bits per value with a scale, and a zero point if not ``symmetric``, for each ``group``.

    If ``group`` is less than 1, a group is a whole row, whose scale is not counted.
    """
    return bits + (scale_bits + (0 if symmetric else bits)) / group if group > 0 else float(bits)


_METHODS: Mapping[str, Callable[[Config], float]] = {
    "fp8": _f8,
    "fbgemm_fp8": lambda config: 8.0,
    "mxfp4": lambda config: 4 + 8 / 32,
    "gptq": _gptq_or_awq,
    "awq": _gptq_or_awq,
    "compressed-tensors": _compressed_tensors,
    "modelopt": _modelopt,
}
