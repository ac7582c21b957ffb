"""MiniMax's M2 to M2.7: a mixture of experts with norms of whole query and key projections."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from freedive.checkpoint.rules import Rule
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import EXPERT, Naming, feed_forward_names
from freedive.families.parts import attention, feed_forward, model, num_layers, router
from freedive.families.rope import rope
from freedive.model.spec import Experts, Layer, ModelSpec


def _minimax_m2(config: Config) -> ModelSpec:
    total = num_layers(config)
    config.counts("attn_type_list", total, 1, most=1)  # 0 is linear attention, which M1 has
    config.choice("scoring_func", ("sigmoid",))
    attn = attention(config, qk_norm="full", rope=None)
    attn = replace(attn, rope=rope(config, attn.head_dim, partial=True))
    gate = router(config, "num_local_experts", score="sigmoid", choice_bias=True, renormalise=True)
    return model("minimax_m2", config, [Layer(attn, Experts(gate, feed_forward(config)))] * total)


_MOE = "model.layers.{}.block_sparse_moe."
_BIAS = "layers.{}.ffn.choice_bias"

_DEFAULTS: Mapping[str, Any] = {
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 196608,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rope_theta": 5e6,
    "num_local_experts": 256,
    "num_experts_per_tok": 8,
}
_FIXED: Mapping[str, Any] = {
    "layernorm_full_attention_beta": 1.0,
    "layernorm_linear_attention_beta": 1.0,
    "layernorm_mlp_beta": 1.0,
    "qk_norm_type": "per_layer",
    "routed_scaling_factor": 1.0,
    "shared_intermediate_size": 0,
    "swa_rope_theta": -1.0,
    "use_qk_norm": True,
    "use_routing_bias": True,
}

MINIMAX_M2 = Family(
    name="minimax_m2",
    models="MiniMax M2, M2.1, M2.5, M2.7",
    architectures=("MiniMaxM2ForCausalLM",),
    spec=_minimax_m2,
    defaults=_DEFAULTS,
    ignorable=(  # of layers of other kinds, which these models do not have, and of MTP, which is not published
        *("max_model_len", "mlp_intermediate_size", "shared_moe_mode", "use_grouped_topk"),
        *("mtp_transformer_layers", "num_mtp_modules", "use_mtp"),
    ),
    fixed=_FIXED,
    hub=Naming(
        {
            "layers.{}.ffn.router": f"{_MOE}gate.weight",
            _BIAS: "model.layers.{}.mlp.e_score_correction_bias",  # as transformers names it
            **feed_forward_names(EXPERT, f"{_MOE}experts.{{}}.", ("w1", "w3", "w2")),
        },
        lambda spec: [Rule(f"{_MOE}e_score_correction_bias", (_BIAS,))],
    ),
    gguf=Gguf(architecture="minimax-m2", keys={"expert_feed_forward_length": None}),  # a copy of feed_forward_length
)
