"""GGUF metadata -> the same configuration that config.json gives, so that a family is described once."""

from __future__ import annotations

from typing import Any

import numpy as np

from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.model.families.config import Config

KEYS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "v_head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "rotary_dim",
    "rope.freq_base": "rope_theta",
}
"""Keys after ``<architecture>.`` -> Hugging Face's."""

SCALING_KEYS = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
}
"""Likewise, for keys of the section ``rope_scaling``."""

HARMLESS = ("rope.scaling.finetuned", "tensor_data_layout")


def read_config(checkpoint: Checkpoint) -> Config:
    """The configuration of a GGUF checkpoint. Keys that no table knows keep their name, so that nobody reads them."""
    prefix = f"{checkpoint.config['general.architecture']}."
    given = {key.removeprefix(prefix): value for key, value in checkpoint.config.items() if key.startswith(prefix)}
    known = {*KEYS, *SCALING_KEYS, *HARMLESS}
    values: dict[str, Any] = {prefix + key: value for key, value in given.items() if key not in known}
    values |= {KEYS[key]: value for key, value in given.items() if key in KEYS}
    if given.get("rope.scaling.type") != "none":
        values["rope_scaling"] = {SCALING_KEYS[key]: value for key, value in given.items() if key in SCALING_KEYS}
    names = {ours: prefix + key for key, ours in KEYS.items()}
    names |= {f"rope_scaling.{ours}": prefix + key for key, ours in SCALING_KEYS.items()}
    return Config(values, _seen_in_tensors(checkpoint.tensors), names)


def _seen_in_tensors(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What llama.cpp does not write down because the tensors tell."""
    seen: dict[str, Any] = {
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_gate.bias" in tensors,
    }
    if "token_embd.weight" in tensors:
        seen["vocab_size"] = tensors["token_embd.weight"].shape[0]
    if "rope_freqs.weight" in tensors:
        seen["rope_divisors"] = _floats(tensors["rope_freqs.weight"])
    return seen


def _floats(tensor: Tensor) -> list[float]:
    if tensor.format != "F32":
        raise UserError(
            f"The tensor {tensor.name} is {tensor.format} instead of F32", "Choose another file of this model"
        )
    values: list[float] = tensor.data.view(np.float32).ravel().tolist()
    return values
