"""Finds quantised weights in safetensors files and combines the tensors of each into one tensor in a block format.

    scheme                tensors; X is the logical name, which ends in Y.weight
    FP8 e4m3              X (F8_E4M3), X_scale_inv or X_scale
    int8                  X (I8), X_scale[, X_zero_point]
    int4 or int8, packed  X_packed (I32), X_scale, X_shape[, X_zero_point, X_g_idx]
    MXFP4                 X_packed (U8), X_scale; gpt-oss: Y_blocks, Y_scales
    NVFP4                 X_packed (U8), X_scale, X_global_scale; ModelOpt: X (U8), X_scale, X_scale_2
    GPTQ, AWQ             Y.qweight (I32), Y.qzeros, Y.scales[, Y.g_idx]

Which weights are quantised follows from which tensors exist. Formats and shapes are checked when a checkpoint is
opened; bytes are computed when they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freedive.checkpoint.file import PART_FORMATS
from freedive.checkpoint.quantized import schemes
from freedive.checkpoint.quantized.nvfp4 import nvfp4, nvfp4_or_mxfp4
from freedive.checkpoint.quantized.schemes import QuantizedParts, Scheme
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.files import quote

METHODS = ("fp8", "fbgemm_fp8", "compressed-tensors", "mxfp4", "modelopt", "gptq", "awq")
"""Supported values of quant_method in quantization_config."""

SCHEMES: dict[tuple[str, str], tuple[str, tuple[str, ...], Scheme]] = {
    ("F8_E4M3", ""): ("", ("_scale_inv", "_scale"), schemes.f8),
    ("I8", ""): ("", ("_scale", "_zero_point"), schemes.int8),
    ("I32", "_packed"): ("", ("_scale", "_shape", "_zero_point", "_g_idx"), schemes.packed),
    ("U8", "_packed"): ("", ("_scale", "_global_scale"), nvfp4_or_mxfp4),
    ("U8", "_blocks"): (".weight", ("_scales",), schemes.mxfp4),
    ("I32", ".qweight"): (".weight", (".qzeros", ".scales", ".g_idx"), schemes.gptq_or_awq),
    ("U8", ""): ("", ("_scale", "_scale_2"), nvfp4),
}
"""(format, name ending) of the codes of a weight -> the ending of its logical name, the endings of its other tensors,
and the function that combines them."""

_COMPANIONS = tuple({ending for _, endings, _ in SCHEMES.values() for ending in endings})
_ACTIVATION_SCALES = (
    *(f".{name}_scale" for name in ("activation", "input", "output", "q", "k", "v")),
    ".input_global_scale",
)
"""Name endings of scales for quantised activations or caches, which freedive does not use."""


def combine(checkpoint: Checkpoint) -> Checkpoint:
    """Returns the checkpoint with every quantised weight as one tensor and without ``quantization_config``.

    Raises UserError for an unknown quantisation method, and for tensors that are missing or do not match.
    """
    config, quantization = take_quantization(checkpoint.config)
    filled = ((name, t) for name, t in checkpoint.tensors.items() if 0 not in t.shape)  # files may have empty tensors
    tensors = {name: t for name, t in filled if not name.endswith(_ACTIVATION_SCALES)}
    weights: dict[str, Tensor] = {}
    used: set[str] = set()
    for name, tensor in tensors.items():
        if tensor.format not in PART_FORMATS or name.endswith(_COMPANIONS):
            continue
        for (format, codes_end), (end, companion_ends, assembler) in SCHEMES.items():
            if tensor.format == format and name.endswith(codes_end):
                stem = name.removesuffix(codes_end)
                parts = QuantizedParts(stem + end, tensor, stem, tensors)
                weights[parts.name] = assembler(parts, quantization)
                used |= {name, *(stem + companion for companion in companion_ends)}
                break
    rest = {name: tensor for name, tensor in tensors.items() if name not in used}
    _refuse_leftovers(rest, weights)
    return replace(checkpoint, config=config, tensors=rest | weights)


def take_quantization(config: dict[str, Any]) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """Returns ``config`` without ``quantization_config``, and the latter, which may be inside ``text_config``.

    Raises UserError for an unknown quantisation method.
    """
    inner = config.get("text_config")
    found = [c["quantization_config"] for c in (config, inner) if isinstance(c, dict) and c.get("quantization_config")]
    quantization: Any = found[0] if found else {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if found and method not in METHODS:
        raise UserError(
            f"The model is quantised by {quote(method)}, which freedive does not read",
            f"Choose a model with {', '.join(METHODS)}, or a GGUF file",
        )
    if isinstance(inner, dict):
        config = config | {"text_config": _without_quantization(inner)}
    return _without_quantization(config), quantization


def _without_quantization(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != "quantization_config"}


def _refuse_leftovers(rest: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    for name, tensor in rest.items():
        if tensor.format in PART_FORMATS:
            raise UserError(
                f"The tensor {quote(name)} has the type {tensor.format}, and belongs to no weight that freedive knows",
                "Choose a model in another format, such as BF16 or GGUF",
            )
        if name in weights:
            raise UserError(f"The weight {quote(name)} exists twice, plain and quantised", "Fetch the model again")
