"""GGUF metadata -> the same configuration that config.json gives, so that a family is described once."""

from __future__ import annotations

from typing import Any

import numpy as np

from freedive.checkpoint.tensor import Checkpoint, Tensor
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
    "rope.scaling.type": "rope_scaling.rope_type",
    "rope.scaling.factor": "rope_scaling.factor",
    "rope.scaling.original_context_length": "rope_scaling.original_max_position_embeddings",
    "rope.scaling.yarn_beta_fast": "rope_scaling.beta_fast",
    "rope.scaling.yarn_beta_slow": "rope_scaling.beta_slow",
}
"""Keys after ``<architecture>.`` -> Hugging Face's; a dot leads into a section."""

HARMLESS = ("rope.scaling.finetuned", "tensor_data_layout")


def read_config(checkpoint: Checkpoint) -> Config:
    """The configuration of a GGUF checkpoint. Keys that no table knows keep their name, and are refused if unread."""
    prefix = f"{checkpoint.config['general.architecture']}."
    values: dict[str, Any] = {}
    names: dict[str, str] = {}
    for full, value in checkpoint.config.items():
        key = full.removeprefix(prefix)
        if key == full or key in HARMLESS or (key, value) == ("rope.scaling.type", "none"):
            continue
        path = KEYS.get(key, full)
        names[path] = full
        section, _, leaf = path.partition(".") if key in KEYS else ("", "", full)
        if leaf:
            values.setdefault(section, {})[leaf] = value
        else:
            values[section] = value
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
    if "rope_freqs.weight" in tensors and tensors["rope_freqs.weight"].format == "F32":
        seen["rope_divisors"] = tensors["rope_freqs.weight"].data.view(np.float32).ravel().tolist()
    return seen
