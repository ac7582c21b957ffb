"""Published shapes of mixtures of experts, with fewer layers and tokens, so that they fit into 24 GB
in 16-bit floats."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

VOCAB = 32000
COMMON = {
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 8192,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Shape:
    """A model's config.json, and the same as GGUF metadata: keys without the architecture.

    ``formats`` are those of its GGUF files, ``folders`` the forms of its Hugging Face folders. In GPTQ ``group``
    weights share a scale. ``rope_divisors`` are the numbers by which GGUF files divide the frequencies of RoPE.
    """

    family: str
    config: Mapping[str, Any]
    metadata: Mapping[str, Any]
    formats: tuple[str, ...] = ("Q4_0", "Q4_K_M", "Q8_0")
    folders: tuple[str, ...] = ("BF16", "GPTQ")
    group: int = 128
    rope_divisors: tuple[float, ...] = ()

    def with_layers(self, num_layers: int) -> Shape:
        """Returns the shape with another number of layers; lists of a value for each layer are repeated."""
        old = self.config["num_hidden_layers"]

        def repeated(values: Mapping[str, Any]) -> dict[str, Any]:
            return {
                key: (value * -(-num_layers // old))[:num_layers] if _by_layer(value, old) else value
                for key, value in values.items()
            }

        config = repeated(self.config) | {"num_hidden_layers": num_layers}
        return replace(self, config=config, metadata=repeated(self.metadata))


def _by_layer(value: Any, num_layers: int) -> bool:
    return isinstance(value, list) and len(value) == num_layers


SHAPES = {
    "qwen3-moe": Shape(
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
    "deepseek-v2": Shape(
        "deepseek_v2",
        COMMON
        | {
            "architectures": ["DeepseekV2ForCausalLM"],
            "model_type": "deepseek_v2",
            "hidden_size": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "q_lora_rank": 1536,  # V2-Lite has none, which llama.cpp accepts only with 26 or 27 layers
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
            "attention.q_lora_rank": 1536,
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
        group=64,
    ),
    "gpt-oss": Shape(
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
        ("MXFP4",),
        ("BF16",),
    ),
    "qwen3.6": Shape(
        "qwen3_5_moe",
        COMMON
        | {
            "architectures": ["Qwen3_5MoeForCausalLM"],
            "model_type": "qwen3_5_moe_text",
            "max_position_embeddings": 65536,
            "hidden_size": 2048,
            "num_hidden_layers": 8,
            "num_attention_heads": 16,
            "num_key_value_heads": 2,
            "head_dim": 256,
            "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 2,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_value_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 32,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 512,
            "shared_expert_intermediate_size": 512,
            "hidden_act": "silu",
            "attention_bias": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
            "tie_word_embeddings": False,
        },
        {
            "attention.head_count": 16,
            "attention.head_count_kv": 2,
            "attention.key_length": 256,
            "attention.value_length": 256,
            "full_attention_interval": 4,
            "ssm.conv_kernel": 4,
            "ssm.state_size": 128,
            "ssm.group_count": 16,
            "ssm.time_step_rank": 32,
            "ssm.inner_size": 4096,
            "expert_count": 256,
            "expert_used_count": 8,
            "expert_feed_forward_length": 512,
            "expert_shared_feed_forward_length": 512,
            "rope.dimension_count": 64,
            "rope.dimension_sections": [11, 11, 10, 0],
            "rope.freq_base": 1e7,
        },
        folders=("BF16",),
    ),
    "gemma4": Shape(
        "gemma4",
        COMMON
        | {
            "architectures": ["Gemma4ForCausalLM"],
            "model_type": "gemma4_text",
            "hidden_size": 2816,
            "num_hidden_layers": 6,
            "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
            "num_attention_heads": 16,
            "num_key_value_heads": 8,
            "num_global_key_value_heads": 2,
            "head_dim": 256,
            "global_head_dim": 512,
            "attention_k_eq_v": True,
            "sliding_window": 1024,
            "enable_moe_block": True,
            "intermediate_size": 2112,
            "num_experts": 128,
            "top_k_experts": 8,
            "moe_intermediate_size": 704,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "hidden_activation": "gelu_pytorch_tanh",
            "final_logit_softcapping": 30.0,
            "rope_parameters": {
                "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
            "tie_word_embeddings": True,
        },
        {
            "attention.head_count": 16,
            "attention.head_count_kv": [8] * 5 + [2],
            "attention.key_length": 512,
            "attention.value_length": 512,
            "attention.key_length_swa": 256,
            "attention.value_length_swa": 256,
            "attention.sliding_window": 1024,
            "attention.sliding_window_pattern": [True] * 5 + [False],
            "attention.shared_kv_layers": 0,
            "embedding_length_per_layer_input": 0,
            "feed_forward_length": 2112,
            "expert_count": 128,
            "expert_used_count": 8,
            "expert_feed_forward_length": 704,
            "final_logit_softcapping": 30.0,
            "rope.dimension_count": 512,
            "rope.dimension_count_swa": 256,
            "rope.freq_base": 1e6,
            "rope.freq_base_swa": 1e4,
        },
        ("Q4_0", "Q8_0"),
        ("BF16",),
        rope_divisors=(1.0,) * 64 + (1e30,) * 192,
    ),
}
