"""OpenAI's gpt-oss: every second layer has a window, every head a sink, every linear but the output head a bias."""

from __future__ import annotations

from dataclasses import replace

from freedive.checkpoint.rule_steps import Transpose
from freedive.checkpoint.rules import Rule
from freedive.families.config import Config
from freedive.families.family import Family
from freedive.families.gguf import Gguf
from freedive.families.names import EXPERT, Naming
from freedive.families.parts import FULL, SLIDING, attention, layer_types, model, num_layers, router, window
from freedive.model.spec import Experts, FeedForward, Layer, ModelSpec


def _gpt_oss(config: Config) -> ModelSpec:
    bias = config.flag("attention_bias")
    full = attention(config, qkv_bias=bias, out_bias=bias, sinks=True)
    kinds = {FULL: Layer(full, _experts(config))}
    kinds[SLIDING] = replace(kinds[FULL], mixer=replace(full, window=window(config)))
    types = layer_types(config, [FULL if i % 2 else SLIDING for i in range(num_layers(config))])
    return model("gpt_oss", config, [kinds[kind] for kind in types])


def _experts(config: Config) -> Experts:
    """Returns the experts; softmax over the chosen experts' logits equals softmax over all experts, renormalised."""
    config.choice("hidden_act", ("silu",))
    config.number("swiglu_alpha", 1.702, least=1.702, most=1.702)
    limit = config.number("swiglu_limit", 7.0)
    expert = FeedForward(config.count("intermediate_size"), "swiglu_oai", bias=True, limit=limit)
    return Experts(router(config, "num_local_experts", renormalise=True, bias=True), expert)


def _stacks(spec: ModelSpec) -> list[Rule]:
    """Returns rules for stacked experts, in which the outputs of gate and up alternate.

    Float matrices are [in, out]; MXFP4 matrices, whose names end with `.weight`, are [out, in].
    """
    theirs = "model.layers.{}.mlp.experts"
    gate_up, down = (f"{EXPERT}.gate", f"{EXPERT}.up"), (f"{EXPERT}.down",)
    num_pairs = spec.layers[0].ffn.expert.dim if isinstance(spec.layers[0].ffn, Experts) else 1
    return [
        Rule(f"{theirs}.gate_up_proj", gate_up, (Transpose(),), blocks=num_pairs),
        Rule(f"{theirs}.gate_up_proj.weight", gate_up, blocks=num_pairs),
        Rule(f"{theirs}.gate_up_proj_bias", tuple(f"{name}_bias" for name in gate_up), blocks=num_pairs),
        Rule(f"{theirs}.down_proj", down, (Transpose(),)),
        Rule(f"{theirs}.down_proj.weight", down),
        Rule(f"{theirs}.down_proj_bias", (f"{EXPERT}.down_bias",)),
    ]


GPT_OSS = Family(
    name="gpt_oss",
    models="gpt-oss-20b, 120b",
    architectures=("GptOssForCausalLM",),
    spec=_gpt_oss,
    defaults={
        "rms_norm_eps": 1e-5,
        "head_dim": 64,
        "sliding_window": 128,
        "attention_bias": True,
        "rope_theta": 150_000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "truncate": False,
        },
    },
    ignorable=("experts_per_token", "initial_context_length"),  # copies of other keys
    hub=Naming({"layers.{}.ffn.router": "model.layers.{}.mlp.router.weight"}, _stacks),
    gguf=Gguf(
        {"layers.{}.ffn.norm": "blk.{}.post_attention_norm.weight"},
        architecture="gpt-oss",
        keys={"attention.sliding_window": "sliding_window", "expert_feed_forward_length": None},
        implied=lambda config: {"rope_scaling": {"truncate": False}},
    ),
)
