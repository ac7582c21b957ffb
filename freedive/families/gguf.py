"""Converts GGUF metadata to the keys of config.json, so that each family is described only once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.families.config import Config
from freedive.families.names import Naming
from freedive.families.parts import FULL, LINEAR, SLIDING

KEYS = {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_blocks",
    "nextn_predict_layers": "num_nextn_predict_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "v_head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.dimension_count": "rotary_dim",
    "rope.freq_base": "rope_theta",
    "leading_dense_block_count": "first_k_dense_replace",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_group_count": "n_group",
    "expert_group_used_count": "topk_group",
    "expert_gating_func": "scoring_func",
    "expert_weights_norm": "norm_topk_prob",
    "expert_weights_scale": "routed_scaling_factor",
}
"""GGUF key without the prefix ``<architecture>.`` -> Hugging Face key."""

SCALING_KEYS = {
    "rope.scaling.type": "rope_type",
    "rope.scaling.factor": "factor",
    "rope.scaling.original_context_length": "original_max_position_embeddings",
    "rope.scaling.attn_factor": "attention_factor",
    "rope.scaling.yarn_attn_factor": "attention_factor",
    "rope.scaling.yarn_beta_fast": "beta_fast",
    "rope.scaling.yarn_beta_slow": "beta_slow",
    "rope.scaling.yarn_log_multiplier": "yarn_log_multiplier",
    "attention.temperature_scale": "llama_4_scaling_beta",
}
"""GGUF key without the prefix ``<architecture>.`` -> Hugging Face key in the section ``rope_scaling``."""

TENSORS = {
    "attention_bias": "blk.{}.attn_q.bias",
    "attention_out_bias": "blk.{}.attn_output.bias",
    "qkv_bias": "blk.{}.attn_q.bias",
    "use_bias": "blk.{}.attn_q.bias",
    "mlp_bias": "blk.{}.ffn_gate.bias",
    "use_qk_norm": "blk.{}.attn_q_norm.weight",
    "moe_use_aux_free": "blk.{}.exp_probs_b.bias",
}
"""Boolean Hugging Face key -> the tensor that exists if it is true."""

LINEAR_SCALE = "rope.scale_linear"
"""The factor of a linear scaling, in files older than the key ``rope.scaling.type``."""

HARMLESS = ("rope.scaling.finetuned", "tensor_data_layout", LINEAR_SCALE)

ZERO_IS_ABSENT = ("expert_count", "expert_used_count")
"""Keys that converters write with the value 0 for dense models."""

SAYS_NOTHING: Mapping[str, object] = {"attention.causal": True, "pooling_type": 0}
"""Keys that have no effect with this value, and are ignored if the family does not read them."""

BY_LAYER = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
"""Keys that may be a list with one number per layer; all these numbers must be equal."""

_MOST_FREQUENCIES = 2048

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


@dataclass(frozen=True)
class Gguf(Naming):
    """The metadata and the tensor names of a family in GGUF files.

    ``architecture`` is its name in llama.cpp. If several families have the same name, the last one whose ``mark``
    exists is used; a mark is a metadata key, or a tensor name with ``{}`` for numbers. ``keys`` override :data:`KEYS`;
    a key mapped to None is ignored, because other keys have its information. ``implied`` returns further values, which
    follow from the architecture or from other keys.
    """

    architecture: str = ""
    mark: str = ""
    keys: Mapping[str, str | None] = field(default_factory=dict)
    implied: Callable[[Config], Mapping[str, Any]] = lambda config: {}


def read_config(checkpoint: Checkpoint, gguf: Gguf) -> Config:
    """Returns the configuration of a GGUF checkpoint; unknown keys keep their names, so that they are refused later."""
    prefix = f"{gguf.architecture}."
    keys = {**KEYS, **dict.fromkeys(HARMLESS), **gguf.keys}
    nothing = {
        **dict.fromkeys(ZERO_IS_ABSENT, 0),
        **{key: SAYS_NOTHING[key] for key in SAYS_NOTHING if key not in keys},
    }
    given = {
        name: value
        for key, value in checkpoint.config.items()
        if (name := key.removeprefix(prefix)) != key and (name, value) not in nothing.items()
    }
    read = {key: keys.get(key, prefix + key) for key in given if key not in SCALING_KEYS}
    values: dict[str, Any] = {ours: _spelled(key, given[key]) for key, ours in read.items() if ours}
    if given.get("rope.scaling.type") != "none" and (scaling := _scaling(given)):
        values["rope_scaling"] = scaling
    config = Config(values, names=_names(prefix, keys))
    num_mtp = config.count("num_nextn_predict_layers", 0, least=0)
    config.supply({"num_hidden_layers": config.count("num_blocks") - num_mtp})
    config.supply(_rope_divisors(checkpoint))
    config.supply(gguf.implied(config))
    config.supply(_seen_in_tensors(checkpoint))
    return config


def _scaling(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the section ``rope_scaling``; a factor without a type is that of a linear scaling."""
    scaling = {ours: given[key] for key, ours in SCALING_KEYS.items() if key in given}
    if given.get(LINEAR_SCALE, 0) not in (0, 1):
        scaling.setdefault("factor", given[LINEAR_SCALE])
    return {"rope_type": "linear", **scaling} if "factor" in scaling else scaling


def marks(checkpoint: Checkpoint) -> set[str]:
    """Returns all possible marks of a family: keys whose value is not 0, and tensor names with ``{}`` for numbers."""
    return {
        *(key for key, value in checkpoint.config.items() if value != 0),
        *(_NUMBER.sub("{}", name) for name in checkpoint.tensors),
    }


def _names(prefix: str, keys: Mapping[str, str | None]) -> dict[str, str]:
    """Returns Hugging Face key -> GGUF key, for error messages."""
    names = {ours: prefix + key for key, ours in keys.items() if ours}
    return names | {f"rope_scaling.{ours}": prefix + key for key, ours in SCALING_KEYS.items()}


def _spelled(key: str, value: Any) -> Any:
    """Converts the ``value`` of a GGUF ``key`` to that of Hugging Face; impossible values stay, to be refused later."""
    match key, value:
        case "expert_gating_func", int(1):
            return "softmax"
        case "expert_gating_func", int(2):
            return "sigmoid"
        case "attention.sliding_window_pattern", [*layers]:
            return [SLIDING if slides else FULL for slides in layers]
        case "attention.recurrent_layers", [*layers]:
            return [LINEAR if recurs else FULL for recurs in layers]
        case "attention.rope_pattern", [*layers]:
            return [1 if rotates else 0 for rotates in layers]
        case _, [int(first), *others] if key in BY_LAYER and all(other == first for other in others):
            return first
    return value


def _seen_in_tensors(checkpoint: Checkpoint) -> dict[str, Any]:
    """Returns the values that are not in the metadata because they follow from the tensors."""
    tensors, present = checkpoint.tensors, marks(checkpoint)
    seen: dict[str, Any] = {key: name in present for key, name in TENSORS.items()}
    seen["tie_word_embeddings"] = "output.weight" not in tensors
    keys = [name for name in tensors if name.endswith(".attn_k.weight")]
    seen["attention_k_eq_v"] = any(name.replace("attn_k", "attn_v") not in tensors for name in keys)
    if "token_embd.weight" in tensors:
        seen["vocab_size"] = tensors["token_embd.weight"].shape[0]
    seen["qk_scale_factor"] = _query_factor(tensors)
    factors = {f"{kind}_factor": f"rope_factors_{kind}.weight" for kind in ("short", "long")}
    if found := {key: _floats(tensors[name]) for key, name in factors.items() if name in tensors}:
        seen["rope_scaling"] = {"rope_type": "longrope", **found}
    return seen


def _query_factor(tensors: Mapping[str, Tensor]) -> float | None:
    """Returns the number that all norms of queries consist of (Muse Glimmer), None if their numbers differ."""
    norms = [tensor for name, tensor in tensors.items() if name.endswith(".attn_q_norm.weight")]
    found = {value for norm in norms if norm.format == "F32" for value in np.unique(norm.data.view(np.float32))}
    return float(found.pop()) if len(found) == 1 else None


def _rope_divisors(checkpoint: Checkpoint) -> dict[str, Any]:
    name = "rope_freqs.weight"
    return {"rope_divisors": _floats(checkpoint.tensors[name])} if name in checkpoint.tensors else {}


def _floats(tensor: Tensor) -> list[float]:
    """Returns the values of ``tensor``, one for each frequency of a head, which is no more than half its dimension."""
    if tensor.format != "F32" or math.prod(tensor.shape) > _MOST_FREQUENCIES:
        what = f"{tensor.format} {list(tensor.shape)} instead of at most {_MOST_FREQUENCIES} numbers in F32"
        raise UserError(f"The tensor {tensor.name} is {what}", "Choose another file of this model")
    values: list[float] = tensor.data.view(np.float32).ravel().tolist()
    return values
