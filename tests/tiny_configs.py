"""A tiny configuration of every family, with all its traits, that runs in milliseconds.

Prompts of at least 40 tokens exceed every window, chunk and original context here.
"""

from __future__ import annotations

from typing import Any

Settings = dict[str, Any]

BASE: Settings = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE: Settings = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE: Settings = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}
NTK_ROPE: Settings = {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0}
OSS_ROPE: Settings = {
    **YARN_ROPE,
    "rope_theta": 1.5e5,
    "factor": 8.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}
TEMPERED_ROPE: Settings = {**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
LONG_ROPE: Settings = {  # of 12 dimensions
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.0, 1.1, 1.2, 1.3, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 4.0, 8.0, 16.0],
}
LOCAL_ROPE: Settings = {"full_attention": YARN_ROPE, "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}
MOE: Settings = {"num_hidden_layers": 3, "moe_intermediate_size": 32, "num_experts_per_tok": 3}
LATENT: Settings = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 20,
}
DEEPSEEK: Settings = {**MOE, **LATENT, "first_k_dense_replace": 1}
DELTA: Settings = {
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
}
GROUPED: Settings = {"n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2}
GEMMA4: Settings = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention", "full_attention"],
    "head_dim": 16,
    "global_head_dim": 32,
    "sliding_window": 8,
    "final_logit_softcapping": 3.0,
}
LAGUNA: Settings = {
    **MOE,
    "num_hidden_layers": 4,
    "head_dim": 32,
    "num_experts": 8,
    "shared_expert_intermediate_size": 40,
    "moe_routed_scaling_factor": 2.5,
    "sliding_window": 8,
    "layer_types": ["full_attention"] + ["sliding_attention"] * 3,
    "num_attention_heads_per_layer": [4, 6, 6, 6],
    "rope_parameters": {
        "full_attention": {**YARN_ROPE, "partial_rotary_factor": 0.5},
        "sliding_attention": {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 1.0},
    },
}
GRANITE: Settings = {
    "embedding_multiplier": 3.0,
    "logits_scaling": 2.0,
    "residual_multiplier": 0.22,
    "attention_multiplier": 0.1,
}
GRANITE_MOE: Settings = {**GRANITE, "intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 3}
GRANITE_SWA: Settings = {"num_hidden_layers": 4, "sliding_window": 8, "layer_rope_theta": [0, 1e4, 5e5, 1e4]}

TINY: dict[str, tuple[str, Settings]] = {
    "llama": (
        "Llama",
        {
            "head_dim": 32,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": LLAMA3_ROPE,
        },
    ),
    "llama2": ("Llama", {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 50}),
    "llama4": (
        "Llama4",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 48,
            "intermediate_size_mlp": 96,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 8,
            "floor_scale": 4,
            "attn_scale": 0.1,
            "use_qk_norm": True,
        },
    ),
    "llama4_plain": (  # like Maverick: queries and keys without norms
        "Llama4",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 48,
            "intermediate_size_mlp": 96,
            "head_dim": 16,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "moe_layers": [0, 3],
            "no_rope_layers": [1, 0, 1, 1],
            "attention_chunk_size": 8,
            "attn_temperature_tuning": False,
            "attention_bias": True,
            "use_qk_norm": False,
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 270}),
    "mixtral": (
        "Mixtral",
        {"intermediate_size": 48, "num_local_experts": 8, "num_experts_per_tok": 2, "sliding_window": 8},
    ),
    "ministral3": ("Ministral3", {"head_dim": 32, "rope_parameters": TEMPERED_ROPE}),
    "mistral4": (
        "Mistral4",
        {**DEEPSEEK, "n_routed_experts": 8, "n_shared_experts": 1, "rope_parameters": {**TEMPERED_ROPE}},
    ),
    "mistral4_grouped": (
        "Mistral4",
        {
            **DEEPSEEK,
            **GROUPED,
            "q_lora_rank": None,
            "routed_scaling_factor": 1.7,
            "rope_parameters": {**TEMPERED_ROPE},
        },
    ),
    "phi3": ("Phi3", {"sliding_window": 48, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}),
    "phi4_mini": (  # the original context is shorter than the prompts, since transformers decides by their length
        "Phi3",
        {
            "original_max_position_embeddings": 32,
            "rope_parameters": {**LONG_ROPE, "original_max_position_embeddings": 32},
            "tie_word_embeddings": True,
        },
    ),
    "minimax_m2": (
        "MiniMaxM2",
        {"intermediate_size": 48, "head_dim": 32, "rotary_dim": 16, "num_local_experts": 8, "num_experts_per_tok": 3},
    ),
    "qwen2": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "rope_parameters": YARN_ROPE},
    ),
    "qwen2_moe": (
        "Qwen2Moe",
        {**MOE, "shared_expert_intermediate_size": 48, "num_experts": 8, "mlp_only_layers": [1]},
    ),
    "qwen2_moe_windows": (
        "Qwen2Moe",
        {
            **MOE,
            "shared_expert_intermediate_size": 48,
            "num_experts": 8,
            "norm_topk_prob": True,
            "qkv_bias": False,
            "decoder_sparse_step": 2,
            "use_sliding_window": True,
            "sliding_window": 8,
            "max_window_layers": 2,
        },
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen3_moe": (
        "Qwen3Moe",
        {**MOE, "head_dim": 32, "num_experts": 8, "norm_topk_prob": True, "mlp_only_layers": [0]},
    ),
    "olmoe": (
        "Olmoe",  # grouped heads, so that the norm of keys has a width of its own
        {"intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 3, "clip_qkv": 0.5},
    ),
    "olmo2": ("Olmo2", {}),
    "olmo3": (
        "Olmo3",
        {"num_hidden_layers": 4, "sliding_window": 8, "rope_parameters": LOCAL_ROPE},
    ),
    "flex_olmo": ("FlexOlmo", {"intermediate_size": 48, "num_experts": 8, "num_experts_per_tok": 3}),
    "exaone4": (
        "Exaone4",
        {"num_hidden_layers": 4, "head_dim": 32, "sliding_window": 8, "rope_parameters": LLAMA3_ROPE},
    ),
    "exaone4_full": (  # like the model of 1.2B
        "Exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 2, "tie_word_embeddings": True},
    ),
    "exaone_moe": (
        "ExaoneMoe",
        {**MOE, "num_hidden_layers": 4, "head_dim": 32, "sliding_window": 8, "num_experts": 8},
    ),
    "dots1": (
        "Dots1",
        {
            **MOE,
            "head_dim": 32,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "first_k_dense_replace": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "sliding_window": 8,
            "max_window_layers": 2,
        },
    ),
    "solar_open": ("SolarOpen", {**MOE, "head_dim": 32, "n_routed_experts": 8, "routed_scaling_factor": 1.5}),
    "mellum": (
        "Mellum",
        {
            **MOE,
            "num_hidden_layers": 4,
            "head_dim": 32,
            "num_experts": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
            "mlp_layer_types": ["dense"] + ["sparse"] * 3,
            "rope_parameters": LOCAL_ROPE,
        },
    ),
    "mimo_v2_flash": (
        "MiMoV2Flash",
        {
            **MOE,
            "num_hidden_layers": 4,
            "head_dim": 24,
            "v_head_dim": 16,
            "n_routed_experts": 8,
            "sliding_window": 9,
            "routed_scaling_factor": 2.5,
        },
    ),
    "step3p7": (
        "Step3p7",
        {
            **MOE,
            "num_hidden_layers": 4,
            "head_dim": 32,
            "share_expert_dim": 48,
            "n_routed_experts": 8,
            "sliding_window": 8,
            "layer_types": ["full_attention"] + ["sliding_attention"] * 3,
            "num_sliding_attention_heads": 6,
            "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
            "moe_router_scaling_factor": 2.5,
            "swiglu_limits": [0.0, 0.0, 0.375, 0.25],
            "swiglu_limits_shared": [0.5, 0.0, 0.0, 0.25],
            "rope_parameters": {
                "full_attention": {**LLAMA3_ROPE, "partial_rotary_factor": 0.5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "afmoe": (
        "Afmoe",
        {
            **MOE,
            "num_hidden_layers": 4,
            "head_dim": 32,
            "num_experts": 8,
            "num_shared_experts": 1,
            "num_dense_layers": 1,
            "route_scale": 2.8,
            "sliding_window": 8,
            "mup_enabled": True,
        },
    ),
    "muse_glimmer": (
        "MuseGlimmer",
        {
            "num_hidden_layers": 4,
            "head_dim": 32,
            "sliding_window": 8,
            "final_logit_softcapping": 3.0,
            "output_multiplier": 0.5,
            "qk_scale_factor": 1.7,
            "post_norm_eps": 1e-2,
        },
    ),
    "laguna": ("Laguna", LAGUNA),
    "laguna_elements": (
        "Laguna",
        {**LAGUNA, "gating": "per-element", "layer_types": None, "num_attention_heads_per_layer": None},
    ),
    "sarvam_moe": (
        "SarvamMoE",
        {**MOE, "head_dim": 32, "n_routed_experts": 8, "n_shared_experts": 1, "routed_scaling_factor": 2.5},
    ),
    "bailing_moe_v2": (
        "BailingMoeV2",
        {**MOE, **GROUPED, "head_dim": 32, "n_shared_experts": 1, "partial_rotary_factor": 0.5},
    ),
    "youtu": ("Youtu", LATENT),
    "deepseek_v2_lite": (
        "DeepseekV2",
        {
            **DEEPSEEK,
            "q_lora_rank": None,
            "n_routed_experts": 8,
            "n_shared_experts": 2,
            "topk_method": "greedy",
            "routed_scaling_factor": 1.7,
            "rope_parameters": {**YARN_ROPE, "mscale": 0.707, "mscale_all_dim": 0.707},
        },
    ),
    "deepseek_v2": (
        "DeepseekV2",
        {
            **DEEPSEEK,
            **GROUPED,
            "n_shared_experts": 2,
            "topk_method": "group_limited_greedy",
            "routed_scaling_factor": 16.0,
            "rope_parameters": {**YARN_ROPE, "mscale": 0.707, "mscale_all_dim": 1.0},
        },
    ),
    "deepseek_v3": (
        "DeepseekV3",
        {**DEEPSEEK, **GROUPED, "rope_parameters": {**YARN_ROPE, "mscale": 1.0, "mscale_all_dim": 1.0}},
    ),
    "moonlight": (  # Kimi K2 without latent queries
        "DeepseekV3",
        {**DEEPSEEK, "q_lora_rank": None, "n_routed_experts": 8, "n_shared_experts": 2, "n_group": 1, "topk_group": 1},
    ),
    "ernie4_5": ("Ernie4_5", {"head_dim": 32, "use_bias": True}),
    "ernie4_5_moe": (
        "Ernie4_5_Moe",
        {
            "num_hidden_layers": 3,
            "moe_intermediate_size": 32,
            "moe_num_experts": 8,
            "moe_k": 3,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
        },
    ),
    "hunyuan_dense": (
        "HunYuanDenseV1",
        {"head_dim": 32, "tie_word_embeddings": True, "rope_parameters": NTK_ROPE},
    ),
    "hunyuan_moe": (
        "HunYuanMoEV1",
        {"intermediate_size": 48, "head_dim": 16, "num_experts": 8, "moe_topk": [3, 3], "rope_parameters": NTK_ROPE},
    ),
    "hy_v3": (
        "HYV3",
        {**MOE, "head_dim": 32, "num_experts": 8, "num_shared_experts": 1, "router_scaling_factor": 2.826},
    ),
    "seed_oss": ("SeedOss", {"head_dim": 32, "attention_bias": True, "attention_out_bias": False}),
    "pangu_embedded": ("PanguEmbedded", {"intermediate_size": 128}),
    "pangu_pro_moe": (
        "PanguProMoE",
        {
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 48,
            "num_experts": 8,
            "num_experts_per_tok": 4,
        },
    ),
    "gpt_oss": (
        "GptOss",
        {
            "intermediate_size": 48,
            "head_dim": 16,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "sliding_window": 8,
            "swiglu_limit": 0.7,
            "rope_parameters": OSS_ROPE,
        },
    ),
    "gemma": ("Gemma", {"head_dim": 32, "num_key_value_heads": 1}),
    "gemma2": (
        "Gemma2",
        {
            "head_dim": 32,
            "sliding_window": 8,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 5.0,
            "final_logit_softcapping": 3.0,
        },
    ),
    "gemma3": (
        "Gemma3",
        {
            "num_hidden_layers": 3,
            "head_dim": 32,
            "sliding_window": 8,
            "sliding_window_pattern": 3,
            "query_pre_attn_scalar": 24,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            },
        },
    ),
    "gemma4": (
        "Gemma4",  # like 26B-A4B
        {
            **GEMMA4,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 3,
            "moe_intermediate_size": 32,
        },
    ),
    "gemma4_inputs": (  # like E2B
        "Gemma4",
        {
            **GEMMA4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "hidden_size_per_layer_input": 20,
            "vocab_size_per_layer_input": 128,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
        },
    ),
    "gemma4_unified": (  # like 12B and 31B
        "Gemma4Unified",
        {
            **GEMMA4,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "use_bidirectional_attention": "vision",
        },
    ),
    "granite": ("Granite", GRANITE),
    "granitemoe": ("GraniteMoe", GRANITE_MOE),
    "granitemoeshared": ("GraniteMoeShared", {**GRANITE_MOE, "shared_intermediate_size": 40}),
    "granitemoehybrid": (
        "GraniteMoeHybrid",  # the recurrent layers of other sizes are refused
        {**GRANITE_MOE, "shared_intermediate_size": 40, "layer_types": ["full_attention"] * 2},
    ),
    "granitemoehybrid_dense": (
        "GraniteMoeHybrid",
        {
            **GRANITE,
            "num_local_experts": 0,
            "shared_intermediate_size": 96,
            "layer_types": ["full_attention"] * 2,
            "position_embedding_type": "rope",
            "tie_word_embeddings": True,
        },
    ),
    "granite_swa": ("GraniteSWA", {**GRANITE, **GRANITE_SWA}),
    "granitemoe_swa": ("GraniteMoeSWA", {**GRANITE_MOE, **GRANITE_SWA}),
    "glm4": ("Glm4", {"head_dim": 32}),
    "glm4_moe": (
        "Glm4Moe",
        {
            **MOE,
            "head_dim": 32,
            "n_routed_experts": 8,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "use_qk_norm": True,
            "attention_bias": True,
            "routed_scaling_factor": 2.5,
        },
    ),
    "glm4_moe_lite": ("Glm4MoeLite", {**MOE, **LATENT, "n_routed_experts": 8}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4}),
    "smollm3_windows": (
        "SmolLM3",
        {
            "attention_bias": True,
            "mlp_bias": True,
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 8,
        },
    ),
    "lfm2": (
        "Lfm2",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "conv"],
            "conv_bias": True,
            "block_multiple_of": 32,
        },
    ),
    "lfm2_moe": (
        "Lfm2Moe",
        {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "conv", "full_attention", "conv"],
            "conv_L_cache": 4,
            "moe_intermediate_size": 32,
            "num_dense_layers": 1,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "routed_scaling_factor": 1.5,
        },
    ),
    "kimi_linear": (
        "KimiLinear",
        {
            **MOE,
            **LATENT,
            "q_lora_rank": None,
            "linear_head_dim": 20,
            "linear_num_heads": 3,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "num_experts": 8,
            "n_group": 1,
            "topk_group": 1,
        },
    ),
    "bailing_hybrid": (
        "BailingHybrid",
        {
            **MOE,
            **LATENT,
            "head_dim": 12,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "num_experts": 16,
            "num_experts_per_tok": 4,
            "n_group": 4,
            "topk_group": 2,
        },
    ),
    "qwen3_next": (
        "Qwen3Next",
        {
            **MOE,
            **DELTA,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "num_experts": 8,
            "shared_expert_intermediate_size": 48,
            "mlp_only_layers": [1],
        },
    ),
    "qwen3_5": (
        "Qwen3_5",
        {
            **DELTA,
            "num_hidden_layers": 3,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
            "linear_value_head_dim": 16,  # llama.cpp has one width for keys and values
        },
    ),
    "qwen3_5_moe": (
        "Qwen3_5Moe",
        {
            **MOE,
            **DELTA,
            "num_hidden_layers": 4,
            "linear_conv_kernel_dim": 3,
            "linear_value_head_dim": 16,
            "num_experts": 8,
            "shared_expert_intermediate_size": 48,
        },
    ),
}
"""The class name in transformers, or in tests/pangu.py, before ForCausalLM; and the differences from BASE."""
