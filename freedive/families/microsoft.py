"""Microsoft's Phi-3, Phi-3.5-mini, Phi-4 and Phi-4-mini: Llama with fused projections and LongRoPE."""

from __future__ import annotations

from dataclasses import replace

from freedive.checkpoint.rules import Rule
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import Naming
from freedive.families.parts import attention, feed_forward, model, num_layers, window
from freedive.families.rope import rope
from freedive.model.spec import Layer, ModelSpec


def _phi3(config: Config) -> ModelSpec:
    attn = attention(config, window=window(config), rope=None)
    attn = replace(attn, rope=rope(config, attn.head_dim, partial=True))
    return model("phi3", config, [Layer(attn, feed_forward(config))] * num_layers(config))


def _fused(qkv: str, gate_up: str) -> list[Rule]:
    return [
        Rule(qkv, tuple(f"layers.{{}}.attn.{name}" for name in "qkv")),
        Rule(gate_up, tuple(f"layers.{{}}.ffn.{name}" for name in ("gate", "up"))),
    ]


PHI3 = Family(
    name="phi3",
    models="Phi-3-mini, Phi-3-medium, Phi-3.5-mini, Phi-4, Phi-4-mini",
    architectures=("Phi3ForCausalLM",),
    spec=_phi3,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
        "original_max_position_embeddings": 4096,
    },
    ignorable=("embd_pdrop", "full_attn_mod", "interpolate_factor", "resid_pdrop"),
    fixed={"lm_head_bias": False},
    hub=Naming(
        rules=lambda spec: _fused(
            "model.layers.{}.self_attn.qkv_proj.weight", "model.layers.{}.mlp.gate_up_proj.weight"
        )
    ),
    gguf=Gguf(
        architecture="phi3",
        keys={"attention.sliding_window": "sliding_window"},
        rules=lambda spec: _fused("blk.{}.attn_qkv.weight", "blk.{}.ffn_up.weight"),
    ),
)
