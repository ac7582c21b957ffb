"""Checkpoints of real shapes with random weights, made on the spot: nothing is downloaded.

Fewer layers than the real models have, so that 24 GB hold them in bf16, and a small vocabulary.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.gguf_writer import write_gguf
from freedive.checkpoint.rules import maker_tensors
from freedive.checkpoint.tensor import Bytes, Checkpoint, Tensor
from freedive.model import spec
from freedive.model.families import FAMILIES, describe
from freedive.model.families.names import gguf_rules
from freedive.model.params import Param, params

VOCAB = 32000
COMMON = {
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class RandomModel:
    """A published shape: config.json, and the same as GGUF metadata (keys without the architecture)."""

    family: str
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    formats: Mapping[str, Callable[[str, Param], str]] = field(default_factory=lambda: GGUF_FORMATS)


def _uniform(format: str, head: str = "Q6_K") -> Callable[[str, Param], str]:
    def choose(name: str, param: Param) -> str:
        if param.role in ("norm", "bias", "router"):
            return "F32"
        wanted = head if name == "head" else format
        return wanted if param.shape[-1] % BLOCKS[wanted][0] == 0 else "Q8_0"

    return choose


def _mixed(name: str, param: Param) -> str:
    """Q4_K_M: six bits for the head and for `v` and `down` of every second layer."""
    part = name.split(".")
    six = part[0] == "layers" and part[-1] in ("v", "down", "kv_b") and int(part[1]) % 2 == 0
    return _uniform("Q6_K" if six else "Q4_K")(name, param)


def _mxfp4(name: str, param: Param) -> str:
    return "MXFP4" if ".experts." in name and param.role == "linear" else _uniform("Q8_0", "Q8_0")(name, param)


GGUF_FORMATS = {"Q4_0": _uniform("Q4_0"), "Q4_K_M": _mixed, "Q8_0": _uniform("Q8_0", "Q8_0")}

MODELS = {
    "qwen3-moe": RandomModel(
        "qwen3_moe",
        COMMON
        | {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "hidden_size": 2048,
            "num_hidden_layers": 7,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "head_dim": 128,
            "intermediate_size": 6144,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
            "hidden_act": "silu",
            "rope_theta": 1e6,
            "tie_word_embeddings": False,
        },
        {
            "attention.head_count": 32,
            "attention.head_count_kv": 4,
            "attention.key_length": 128,
            "attention.value_length": 128,
            "feed_forward_length": 6144,
            "expert_count": 128,
            "expert_used_count": 8,
            "expert_feed_forward_length": 768,
            "rope.freq_base": 1e6,
        },
    ),
    "deepseek-v2": RandomModel(
        "deepseek_v2",
        COMMON
        | {
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "hidden_size": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": None,
            "kv_lora_rank": 512,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "intermediate_size": 10944,
            "first_k_dense_replace": 1,
            "moe_layer_freq": 1,
            "n_routed_experts": 64,
            "n_shared_experts": 2,
            "num_experts_per_tok": 6,
            "moe_intermediate_size": 1408,
            "topk_method": "greedy",
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.0,
            "scoring_func": "softmax",
            "hidden_act": "silu",
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
        },
        {
            "attention.head_count": 16,
            "attention.head_count_kv": 1,
            "attention.kv_lora_rank": 512,
            "attention.key_length": 576,
            "attention.value_length": 512,
            "attention.key_length_mla": 192,
            "attention.value_length_mla": 128,
            "feed_forward_length": 10944,
            "leading_dense_block_count": 1,
            "expert_count": 64,
            "expert_used_count": 6,
            "expert_shared_count": 2,
            "expert_feed_forward_length": 1408,
            "expert_weights_scale": 1.0,
            "rope.dimension_count": 64,
            "rope.freq_base": 10000.0,
            "vocab_size": VOCAB,
        },
    ),
    "gpt-oss": RandomModel(
        "gpt_oss",
        COMMON
        | {
            "architectures": ["GptOssForCausalLM"],
            "model_type": "gpt_oss",
            "hidden_size": 2880,
            "num_hidden_layers": 6,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 2880,
            "num_local_experts": 32,
            "num_experts_per_tok": 4,
            "sliding_window": 128,
            "layer_types": ["sliding_attention", "full_attention"] * 3,
            "attention_bias": True,
            "swiglu_limit": 7.0,
            "rope_theta": 150000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 32.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "original_max_position_embeddings": 4096,
                "truncate": False,
            },
            "tie_word_embeddings": False,
        },
        {
            "attention.head_count": 64,
            "attention.head_count_kv": 8,
            "attention.key_length": 64,
            "attention.value_length": 64,
            "attention.sliding_window": 128,
            "feed_forward_length": 2880,
            "expert_count": 32,
            "expert_used_count": 4,
            "expert_feed_forward_length": 2880,
            "rope.freq_base": 150000.0,
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 32.0,
            "rope.scaling.original_context_length": 4096,
        },
        {"MXFP4": _mxfp4},
    ),
}


def describe_config(config: Mapping[str, Any]) -> spec.Model:
    return describe(Checkpoint("safetensors", dict(config), {}))[0]


def random_tensors(model: spec.Model, choose: Callable[[str, Param], str]) -> dict[str, Tensor]:
    """Canonical weights, made anew whenever they are read: the same each time."""
    return {name: _random_tensor(name, param, choose(name, param)) for name, param in params(model).items()}


def _random_tensor(name: str, param: Param, format: str) -> Tensor:
    seed = zlib.crc32(name.encode())
    width = param.shape[-1]

    def make(begin: int, end: int) -> Bytes:
        source = np.random.default_rng((seed, begin, end))
        if param.role in ("norm", "bias"):
            values = (param.role == "norm") + 0.02 * source.standard_normal((end - begin, width), np.float32)
            return np.ascontiguousarray(values, np.float32).view(np.uint8)
        return random_rows(format, end - begin, width, source)

    return Tensor(name, param.shape, format, make)


def random_rows(format: str, rows: int, width: int, source: np.random.Generator) -> Bytes:
    """Weights of about the size 1 / sqrt(width)."""
    size = width**-0.5
    block, num_bytes = BLOCKS[format]
    if block == 1:
        values = source.standard_normal((rows, width), np.float32) * np.float32(size)
        if format == "F32":
            return values.view(np.uint8)
        if format == "F16":
            return values.astype(np.float16).view(np.uint8)
        return np.ascontiguousarray((values.view(np.uint32) >> 16).astype(np.uint16)).view(np.uint8)
    data = np.frombuffer(source.bytes(rows * width // block * num_bytes), np.uint8).reshape(-1, num_bytes).copy()
    for at, half in SCALES[format].items():
        data[:, at : at + 2] = np.frombuffer(np.float16(half * size).tobytes(), np.uint8)
    if format == "MXFP4":
        data[:, 0] = 127 + round(np.log2(size / 3))
    return data.reshape(rows, -1)


SCALES: dict[str, dict[int, float]] = {
    "Q8_0": {0: 1 / 74},
    "Q4_0": {0: 1 / 4.6},
    "Q4_K": {0: 1 / 150, 2: 1 / 20},
    "Q6_K": {208: 1 / 1400},
    "MXFP4": {},
}
"""Where a block's half-float scales lie, and what they are for random codes of size 1."""


def save_gguf(name: str, format: str, path: Path) -> None:
    """Write the model ``name`` with weights in ``format`` and a vocabulary of meaningless tokens."""
    model = MODELS[name]
    described = describe_config(model.config)
    (family,) = (family for family in FAMILIES if family.name == model.family)
    architecture = family.gguf.architecture
    rules = gguf_rules(described, family.gguf)
    tensors = maker_tensors(random_tensors(described, model.formats[format]), rules)
    config = model.config
    metadata = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        **model.metadata,
    }
    keys = {"general.architecture": architecture} | {f"{architecture}.{key}": value for key, value in metadata.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_gguf(path, keys | _vocabulary(), tensors)


def _vocabulary() -> dict[str, Any]:
    pair = BYTES[0] + BYTES[1]  # readers want one merge at least
    tokens = [*BYTES, pair, *(f"<{number}>" for number in range(len(BYTES) + 1, VOCAB))]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 257 + [4] * (VOCAB - 257),
        "tokenizer.ggml.merges": [f"{BYTES[0]} {BYTES[1]}"],
        "tokenizer.ggml.eos_token_id": VOCAB - 1,
    }


def _byte_letters() -> list[str]:
    """How byte-level BPE writes each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(rest)) for byte in range(256)]


BYTES = _byte_letters()

if __name__ == "__main__":
    save_gguf(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
