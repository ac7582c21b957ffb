"""Meta's Llama 2 and 3, and models with the same decoder: SmolLM, SmolLM2; Mistral; and Mixtral, which has experts."""

from __future__ import annotations

from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import EXPERT, Naming, feed_forward_names, interleaved_heads
from freedive.families.parts import attention, feed_forward, model, num_layers, router, window
from freedive.model.spec import Experts, Layer, ModelSpec


def _llama(config: Config) -> ModelSpec:
    bias = config.flag("attention_bias")
    layer = Layer(
        attention(config, qkv_bias=bias, out_bias=bias),
        feed_forward(config, bias=config.flag("mlp_bias")),
    )
    return model("llama", config, [layer] * num_layers(config))


def _mistral(config: Config) -> ModelSpec:
    layer = Layer(attention(config, window=window(config)), feed_forward(config))
    return model("mistral", config, [layer] * num_layers(config))


def _mixtral(config: Config) -> ModelSpec:
    moe = Experts(router(config, "num_local_experts", renormalise=True), feed_forward(config))
    layer = Layer(attention(config, window=window(config)), moe)
    return model("mixtral", config, [layer] * num_layers(config))


LLAMA = Family(
    name="llama",
    models="Llama 2, 3, 3.1, 3.2, 3.3; SmolLM, SmolLM2; DeepSeek-R1-Distill-Llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    spec=_llama,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    fixed={"is_llama_config": True, "rope_interleaved": False},
    gguf=Gguf(architecture="llama", rules=interleaved_heads),
)

MISTRAL = Family(
    name="mistral",
    models="Mistral 7B, Nemo, Small",
    architectures=("MistralForCausalLM",),
    spec=_mistral,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
)

MIXTRAL = Family(
    name="mixtral",
    models="Mixtral 8x7B, 8x22B",
    architectures=("MixtralForCausalLM",),
    spec=_mixtral,
    defaults={
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "rope_theta": 1e6,
    },
    hub=Naming(
        {
            "layers.{}.ffn.router": "model.layers.{}.block_sparse_moe.gate.weight",
            **feed_forward_names(EXPERT, "model.layers.{}.block_sparse_moe.experts.{}.", ("w1", "w3", "w2")),
        }
    ),
    gguf=Gguf(architecture="llama", mark="llama.expert_count", rules=interleaved_heads),
)
