"""Tencent's Hunyuan, with head norms after the rotation, Hy3, with the router of DeepSeek-V3, and Youtu."""

from __future__ import annotations

from dataclasses import replace

from freedive.checkpoint.rules import Rule
from freedive.families.config import Config
from freedive.families.deepseek import DENSE, REPEATED, SPARSE
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import SHARED, Naming, feed_forward_names
from freedive.families.parts import (
    attention,
    feed_forward,
    latent_attention,
    model,
    num_layers,
    router,
    with_shared,
)
from freedive.model.spec import Attention, Experts, Layer, ModelSpec, Router


def _hunyuan(config: Config) -> ModelSpec:
    config.count("num_experts", 1, most=1)
    layer = Layer(_norm_after_rope(config), feed_forward(config))
    return model("hunyuan_v1_dense", config, [layer] * num_layers(config))


def _hunyuan_moe(config: Config) -> ModelSpec:
    """Returns the specification; the number, width and shared number of experts per token may differ by layer."""
    total, attn, dense = num_layers(config), _norm_after_rope(config), feed_forward(config)
    num_experts, renormalise = config.count("num_experts"), config.flag("norm_topk_prob", True)
    lists = (
        config.counts("moe_topk", total, most=num_experts),
        config.counts("moe_intermediate_size", total, dense.dim),
        config.counts("num_shared_expert", total, 1),
    )
    layers = []
    for num_chosen, dim, num_shared in zip(*lists, strict=True):
        gate = Router(num_experts, num_chosen, renormalise=renormalise)
        moe = Experts(gate, replace(dense, dim=dim), shared=replace(dense, dim=num_shared * dense.dim))
        layers.append(Layer(attn, moe))
    return model("hunyuan_v1_moe", config, layers)


def _norm_after_rope(config: Config) -> Attention:
    bias = config.flag("attention_bias")
    attn = attention(config, qkv_bias=bias, out_bias=bias, norm_after_rope=True)
    if config.count("attention_head_dim", attn.head_dim) != attn.head_dim:
        raise config.refusal("attention_head_dim", f"differs from the {attn.head_dim} of heads")
    return replace(attn, qk_norm="head" if config.flag("use_qk_norm", True) else "")


def _hy3(config: Config) -> ModelSpec:
    total, bias = num_layers(config), config.flag("attention_bias")
    attn = attention(config, qkv_bias=bias, out_bias=bias, qk_norm="head")
    dense = Layer(attn, feed_forward(config))
    kinds = {DENSE: dense, SPARSE: replace(dense, ffn=_hy3_experts(config))}
    first = config.count("first_k_dense_replace", least=0)
    types = config.choices("mlp_layer_types", total, (DENSE, SPARSE))
    types = types or [DENSE if i < first else SPARSE for i in range(total)]
    return model("hy_v3", config, [kinds[kind] for kind in types])


def _youtu(config: Config) -> ModelSpec:
    attn = latent_attention(config, interleaved=config.flag("rope_interleave", True))
    return model("youtu", config, [Layer(attn, feed_forward(config))] * num_layers(config))


def _hy3_experts(config: Config) -> Experts:
    deepseek = router(
        config,
        score="sigmoid",
        renormalise=config.flag("route_norm", True),
        scale=config.number("router_scaling_factor"),
        choice_bias=config.flag("moe_router_enable_expert_bias", True),
    )
    expert = feed_forward(config, "moe_intermediate_size")
    return with_shared(Experts(deepseek, expert), config.count("num_shared_experts"))


def _hy3_names(spec: ModelSpec) -> list[Rule]:
    """Returns rules for the names in published files; transformers writes those of :data:`HY_V3` and common names."""
    theirs = {
        "layers.{}.ffn.router": "model.layers.{}.mlp.router.gate.weight",
        "layers.{}.ffn.choice_bias": "model.layers.{}.mlp.expert_bias",
        **feed_forward_names(SHARED, "model.layers.{}.mlp.shared_mlp."),
    }
    return [Rule(name, (ours,)) for ours, name in theirs.items()]


def _hy3_implied(config: Config) -> dict[str, int]:
    config.choice("scoring_func", ("sigmoid",))
    num_shared = config.count("shared_intermediate_size") // config.count("moe_intermediate_size")
    return {"first_k_dense_replace": 1, "num_shared_experts": num_shared}


_HEAD_NORMS = {
    "layers.{}.attn.q_norm": "model.layers.{}.self_attn.query_layernorm.weight",
    "layers.{}.attn.k_norm": "model.layers.{}.self_attn.key_layernorm.weight",
}
_DEFAULTS = {"rms_norm_eps": 1e-5, "max_position_embeddings": 2048}
_UNUSED = (
    "cla_share_factor",
    "class_num",
    "dense_list",
    "eod_token_id",
    "im_end_id",
    "im_newline_id",
    "im_start_id",
    "mask_init_id",
    "n_group",
    "num_media_embeds",
    "org_vocab_size",
    "pad_id",
    "pool_type",
    "routed_scaling_factor",
    "sep_token_id",
    "text_end_id",
    "text_start_id",
    "topk_group",
)
"""Keys of other models with the same code: with images, classes, shared caches or groups of experts."""
_FIXED = {
    "add_classification_head": False,
    "group_limited_greedy": False,
    "mlp_bias": False,
    "moe_drop_tokens": False,
    "moe_layer_num_skipped": 0,
    "moe_random_routing_dropped_token": False,
    "norm_type": "rms",
    "position_embedding_xdrope": False,
    "use_cla": False,
    "use_mixed_mlp_moe": True,
    "use_rotary_pos_emb": True,
}

YOUTU = Family(
    name="youtu",
    models="Youtu-LLM-2B",
    architectures=("YoutuForCausalLM",),
    spec=_youtu,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "tie_word_embeddings": True,
    },
    ignorable=(*REPEATED, "embedding_initializer_range"),
)

HUNYUAN = Family(
    name="hunyuan_v1_dense",
    models="Hunyuan 0.5B to 7B",
    architectures=("HunYuanDenseV1ForCausalLM",),
    spec=_hunyuan,
    defaults=_DEFAULTS,
    ignorable=_UNUSED,
    fixed=_FIXED,
    hub=Naming(_HEAD_NORMS),
    gguf=Gguf(architecture="hunyuan-dense"),
)

HUNYUAN_MOE = Family(
    name="hunyuan_v1_moe",
    models="Hunyuan-A13B",
    architectures=("HunYuanMoEV1ForCausalLM",),
    spec=_hunyuan_moe,
    defaults=_DEFAULTS,
    ignorable=_UNUSED,
    fixed=_FIXED,
    hub=Naming(
        {
            **_HEAD_NORMS,
            "layers.{}.ffn.router": "model.layers.{}.mlp.gate.wg.weight",
            **feed_forward_names(SHARED, "model.layers.{}.mlp.shared_mlp."),
        }
    ),
    gguf=Gguf(
        architecture="hunyuan-moe",
        keys={
            "expert_used_count": "moe_topk",
            "expert_shared_count": "num_shared_expert",
            "expert_shared_feed_forward_length": None,  # a copy of intermediate_size
        },
        implied=lambda config: {"norm_topk_prob": True},
    ),
)

HY_V3 = Family(
    name="hy_v3",
    models="Hy3-preview",
    architectures=("HYV3ForCausalLM",),
    spec=_hy3,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "head_dim": 128,
        "num_key_value_heads": 8,
        "rope_theta": 11_158_840.0,
        "num_shared_experts": 1,
        "first_k_dense_replace": 1,
        "router_scaling_factor": 2.826,
    },
    ignorable=(
        "enable_attention_fp32_softmax",
        "enable_lm_head_fp32",
        "enable_moe_fp32_combine",
        "eod_token_id",
        "expert_hidden_dim",  # a copy of moe_intermediate_size
        "sep_token_id",
        "use_grouped_mm",
    ),
    fixed={"moe_router_use_sigmoid": True, "qk_norm": True},
    hub=Naming({"layers.{}.ffn.choice_bias": "model.layers.{}.mlp.e_score_correction_bias"}, _hy3_names),
    gguf=Gguf(
        {"layers.{}.ffn.choice_bias": "blk.{}.exp_probs_b"},
        architecture="hy_v3",
        keys={
            "expert_shared_feed_forward_length": "shared_intermediate_size",
            "expert_weights_norm": "route_norm",
            "expert_weights_scale": "router_scaling_factor",
        },
        implied=_hy3_implied,
    ),
)
