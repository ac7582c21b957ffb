"""Writes trained weights in formats that other programs read: a Hugging Face folder, and GGUF."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.gguf_writer import Value, write_gguf
from freedive.checkpoint.rules import maker_tensors
from freedive.checkpoint.safetensors import write_safetensors
from freedive.checkpoint.tensor import Tensor
from freedive.families.deepseek import DEEPSEEK_V3
from freedive.families.names import gguf_rules, hub_rules
from freedive.json_object import Json
from freedive.model import spec
from freedive.model.params import params
from freedive.train.data.chat_tokenizer import END, GGUF_PRE, SPECIAL, TEMPLATE
from freedive.train.model.net import unstacked

SIGMOID = 2
"""The number of sigmoid router scores in llama.cpp (``expert_gating_func``)."""

Trained = Mapping[str, torch.Tensor]


def canonical(weights: Trained) -> dict[str, Tensor]:
    """Converts stacked training weights to canonical tensors in float32."""
    tensors = {}
    for name, weight in unstacked(weights):
        values = weight.detach().float().contiguous().numpy()
        tensors[name] = Tensor(name, values.shape, "F32", values.reshape(-1, values.shape[-1]).view("u1"))
    return tensors


def export_folder(model: spec.ModelSpec, config: Json, weights: Trained, tokenizer: Path, folder: Path) -> None:
    """Writes a folder that transformers, vLLM and freedive load: weights in float32, configuration, tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = maker_tensors(_ordered(model, weights), hub_rules(model, DEEPSEEK_V3.hub))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tokenizer / file, folder / file)
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2) + "\n", "utf-8")
    write_safetensors(folder / "model.safetensors", tensors, "name another folder with --run")


def export_gguf(
    model: spec.ModelSpec, config: Json, weights: Trained, tokenizer: Path, path: Path, format: str
) -> None:
    """Writes a file that llama.cpp, Ollama and freedive load, with matrices in ``format``, F32 or Q8_0."""
    table = params(model)
    tensors = {
        name: _quantised(tensor, format) if table[name].role in ("linear", "embedding") else tensor
        for name, tensor in _ordered(model, weights).items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    written = maker_tensors(tensors, gguf_rules(model, DEEPSEEK_V3.gguf))
    write_gguf(path, {**gguf_metadata(config), **gguf_vocabulary(tokenizer, config["vocab_size"])}, written)


def gguf_metadata(config: Json) -> dict[str, Value]:
    """Converts a config.json to llama.cpp's metadata keys, which identify latent attention by the width of the cache
    rows."""
    latent = config["kv_lora_rank"]
    keys: dict[str, Value] = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "vocab_size": config["vocab_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": 1,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "attention.q_lora_rank": config["q_lora_rank"],
        "attention.kv_lora_rank": latent,
        "attention.key_length": latent + config["qk_rope_head_dim"],
        "attention.value_length": latent,
        "attention.key_length_mla": config["qk_nope_head_dim"] + config["qk_rope_head_dim"],
        "attention.value_length_mla": config["v_head_dim"],
        "rope.dimension_count": config["qk_rope_head_dim"],
        "rope.freq_base": config["rope_theta"],
        "leading_dense_block_count": config["first_k_dense_replace"],
        "expert_count": config["n_routed_experts"],
        "expert_used_count": config["num_experts_per_tok"],
        "expert_shared_count": config["n_shared_experts"],
        "expert_feed_forward_length": config["moe_intermediate_size"],
        "expert_gating_func": SIGMOID,
        "expert_weights_norm": config["norm_topk_prob"],
        "expert_weights_scale": config["routed_scaling_factor"],
    }
    return {"general.architecture": "deepseek2"} | {f"deepseek2.{key}": value for key, value in keys.items()}


def gguf_vocabulary(tokenizer: Path, vocab_size: int) -> dict[str, Value]:
    """Converts the tokenizer to llama.cpp's metadata keys; ids without a learned token are marked as unused."""
    model = json.loads((tokenizer / "tokenizer.json").read_text("utf-8"))["model"]
    texts = {index: text for text, index in model["vocab"].items()}
    kinds = [3 if texts.get(index) in SPECIAL else 1 if index in texts else 5 for index in range(vocab_size)]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": GGUF_PRE,
        "tokenizer.ggml.tokens": [texts.get(index, f"[unused{index}]") for index in range(vocab_size)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": model["vocab"][SPECIAL[0]],
        "tokenizer.ggml.eos_token_id": model["vocab"][END],
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }


def _quantised(tensor: Tensor, format: str) -> Tensor:
    if tensor.format == format:
        return tensor
    from gguf import GGMLQuantizationType, quants

    return replace(tensor, format=format, source=quants.quantize(dequantize(tensor), GGMLQuantizationType[format]))


def _ordered(model: spec.ModelSpec, weights: Trained) -> dict[str, Tensor]:
    tensors = canonical(weights)
    return {name: tensors[name] for name in params(model)}
