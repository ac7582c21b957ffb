"""Models that are described from the headers of their files on a hub."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from standin import StandIn

from freedive.commands.forecast import described
from freedive.errors import NotFound, UserError
from freedive.hub import headers
from freedive.hub.sources import resolve
from freedive.model.params import Param

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 640,
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e4,
    "tie_word_embeddings": False,
}


def weights() -> bytes:
    """Returns a safetensors file with the tensors of :data:`CONFIG`."""
    shapes = {"model.embed_tokens.weight": (640, 64), "lm_head.weight": (640, 64), "model.norm.weight": (64,)}
    for layer in (f"model.layers.{index}" for index in range(2)):
        attention = {"q_proj": (128, 64), "k_proj": (64, 64), "v_proj": (64, 64), "o_proj": (64, 128)}
        shapes |= {f"{layer}.self_attn.{name}.weight": shape for name, shape in attention.items()}
        shapes |= {f"{layer}.self_attn.{name}.weight": (32,) for name in ("q_norm", "k_norm")}
        shapes |= {f"{layer}.{name}.weight": (64,) for name in ("input_layernorm", "post_attention_layernorm")}
        shapes[f"{layer}.mlp.gate.weight"] = (8, 64)
        for expert in (f"{layer}.mlp.experts.{index}" for index in range(8)):
            shapes |= {f"{expert}.{name}.weight": (32, 64) for name in ("gate_proj", "up_proj")}
            shapes[f"{expert}.down_proj.weight"] = (64, 32)
    return save({name: np.full(shape, 0.5, np.float16) for name, shape in shapes.items()})


def test_a_gguf_file_is_described_without_its_weights(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "GGUF_BYTES", 1 << 20)
    whole = resolve("nano").read_bytes()
    hub.repositories["owner/name"] = {"m-Q4_0.gguf": whole, "README.md": b"x"}
    known, here = described("hf:owner/name"), described("nano")
    assert (known.spec, known.sizes) == (here.spec, here.sizes)
    assert known.download_bytes == len(whole)
    assert here.download_bytes == 0
    assert hub.downloads == [("m-Q4_0.gguf", "bytes=0-1048575")]


@pytest.mark.parametrize("first", [64, 1 << 20], ids=["the rest is fetched", "in one piece"])
def test_a_safetensors_repository_is_described_without_its_weights(
    hub: StandIn, home: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    monkeypatch.setattr(headers, "HEAD_BYTES", first)
    files = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": weights()}
    hub.repositories["owner/name"] = files
    known = described("hf:owner/name")
    assert known.spec.family == "qwen3_moe"
    assert known.download_bytes == sum(map(len, files.values()))
    assert known.sizes.layers[0].record_bytes == 3 * 32 * 64 * 2
    assert known.stored("head", Param((640, 64), "linear")) == 640 * 64 * 2
    assert not home.exists()


def test_a_header_that_claims_too_much_is_refused(hub: StandIn) -> None:
    hub.repositories["owner/name"] = {"config.json": b"{}", "model.safetensors": b"\xff" * 100}
    with pytest.raises(UserError, match="has a header of"):
        described("hf:owner/name")


def test_a_model_that_is_missing_or_in_a_package(hub: StandIn) -> None:
    with pytest.raises(NotFound):
        described("hf:owner/missing")
    with pytest.raises(UserError, match="freedive pull smollm2"):
        described("smollm2")
