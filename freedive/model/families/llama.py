"""Meta's Llama 2 and 3, and those who kept its decoder: SmolLM, SmolLM2; Mistral's dense models but for a window."""

from __future__ import annotations

from dataclasses import replace

from freedive.model.families.config import Config
from freedive.model.families.family import Family
from freedive.model.families.parts import attention, feed_forward, model, num_layers
from freedive.model.spec import Layer, Model


def _llama(config: Config) -> Model:
    bias = config.flag("attention_bias")
    layer = Layer(
        attention(config, qkv_bias=bias, out_bias=bias),
        feed_forward(config, bias=config.flag("mlp_bias")),
    )
    return model("llama", config, [layer] * num_layers(config))


def _mistral(config: Config) -> Model:
    window = config.count("sliding_window", 0, least=0, most=1 << 30)
    layer = Layer(replace(attention(config), window=window), feed_forward(config))
    return model("mistral", config, [layer] * num_layers(config))


LLAMA = Family(
    name="llama",
    architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
    spec=_llama,
    defaults={"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    interleaved_in_gguf=True,
)

MISTRAL = Family(
    name="mistral",
    architectures=("MistralForCausalLM",),
    spec=_mistral,
    defaults={
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
        "num_key_value_heads": 8,
        "sliding_window": 4096,
    },
    in_gguf=False,  # llama.cpp calls it llama
)
