"""Functions that families share: each converts configuration keys to a part of a specification."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from freedive.families.config import Config
from freedive.families.rope import latent_magnitude, max_context, rope
from freedive.model.spec import (
    MAX_EXPERTS,
    Activation,
    Attention,
    Experts,
    FeedForward,
    LatentAttention,
    Layer,
    ModelSpec,
    Router,
)

LINEAR = "linear_attention"
"""Name in ``layer_types`` of a layer with the gated delta rule."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""Names in ``layer_types`` of layers with full attention and with a sliding window."""

ACTIVATIONS: Mapping[str, Activation] = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh"}
"""Activation name of transformers -> activation name of a specification."""


def num_layers(config: Config) -> int:
    return config.count("num_hidden_layers", most=1000)


def attention(config: Config, **traits: Any) -> Attention:
    """Returns grouped-query attention over all earlier positions; ``traits`` are fields that are added or replaced."""
    num_heads = config.count("num_attention_heads", most=4096)
    num_kv_heads = config.count("num_key_value_heads", num_heads, most=4096)
    if num_heads % num_kv_heads:
        raise config.refusal("num_key_value_heads", f"({num_kv_heads}) does not divide {num_heads} heads")
    hidden_dim = config.count("hidden_size")
    if "head_dim" not in config and hidden_dim % num_heads:
        raise config.refusal("num_attention_heads", f"({num_heads}) does not divide a hidden size of {hidden_dim}")
    head_dim = config.count("head_dim", max(hidden_dim // num_heads, 1), most=4096)
    if "value_dim" not in traits and config.count("v_head_dim", head_dim) != head_dim:
        raise config.refusal("v_head_dim", f"differs from the {head_dim} of queries and keys")
    if "rope" not in traits:
        traits["rope"] = rope(config, head_dim)
    return Attention(num_heads, num_kv_heads, head_dim, **{"scale": head_dim**-0.5, **traits})


def latent_attention(config: Config, *, interleaved: bool, **traits: Any) -> LatentAttention:
    """Returns multi-head latent attention; ``interleaved`` is the layout of its rotated dimensions (see Rope), and
    ``traits`` are further fields.
    """
    num_heads = config.count("num_attention_heads", most=4096)
    config.count("num_key_value_heads", num_heads)  # read but not used: every head has keys and values
    nope_dim, rope_dim = config.count("qk_nope_head_dim", most=4096), config.count("qk_rope_head_dim", most=4096)
    if "rope" not in traits:
        traits["rope"] = rope(config, rope_dim, interleaved=interleaved)
    return LatentAttention(
        num_heads=num_heads,
        q_rank=config.count("q_lora_rank", 0, least=0),
        kv_rank=config.count("kv_lora_rank"),
        nope_dim=nope_dim,
        rope_dim=rope_dim,
        value_dim=config.count("v_head_dim", most=4096),
        scale=(nope_dim + rope_dim) ** -0.5 * latent_magnitude(config),
        bias=config.flag("attention_bias"),
        **traits,
    )


def feed_forward(config: Config, width: str = "intermediate_size", *, bias: bool = False) -> FeedForward:
    """Returns a gated feed-forward network; the key ``width`` has its dimension."""
    return FeedForward(config.count(width), ACTIVATIONS[config.choice("hidden_act", tuple(ACTIVATIONS))], bias)


def router(config: Config, spelling: str = "num_experts", **traits: Any) -> Router:
    """Returns a router; the number of experts is read from the key ``spelling`` or another common key.

    ``traits`` are further fields of the router.
    """
    experts = config.first("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", spelling)
    chosen = config.first("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_tok")
    num_experts = config.count(experts, most=MAX_EXPERTS)
    return Router(num_experts, config.count(chosen, most=num_experts), **traits)


def groups(config: Config, router: Router, choice: Literal["max", "top2"] = "max") -> Router:
    """Returns ``router`` restricted to the best ``topk_group`` of ``n_group`` groups of experts."""
    num_groups = config.count("n_group", 1, most=router.num_experts)
    kept_groups = config.count("topk_group", num_groups, most=num_groups)
    if router.num_experts % num_groups:
        raise config.refusal("n_group", f"({num_groups}) does not divide {router.num_experts} experts")
    if kept_groups * (router.num_experts // num_groups) < router.num_chosen:
        raise config.refusal(
            "topk_group", f"({kept_groups}) leaves fewer than the {router.num_chosen} experts of each token"
        )
    if choice == "top2" and num_groups == router.num_experts:
        raise config.refusal("n_group", f"({num_groups}) leaves no two experts to a group")
    return replace(router, num_groups=num_groups, kept_groups=kept_groups, group_choice=choice)


def with_shared(moe: Experts, num_shared: int, *, bias: bool = False) -> Experts:
    """Returns ``moe`` with ``num_shared`` shared experts, combined into one wide feed-forward network."""
    shared = replace(moe.expert, dim=num_shared * moe.expert.dim, bias=bias) if num_shared else None
    return replace(moe, shared=shared)


def clamped(ffn: FeedForward, limit: float) -> FeedForward:
    """Returns ``ffn`` with silu(gate) and up clamped to ``limit``, unless it is 0."""
    return replace(ffn, activation="clamped_silu", limit=limit) if limit else ffn


def layer_types(config: Config, otherwise: Sequence[str]) -> Sequence[str]:
    """Returns FULL or SLIDING for each layer: the list in ``layer_types``, or ``otherwise`` if it is absent."""
    return config.choices("layer_types", len(otherwise), (FULL, SLIDING)) or otherwise


def late_windows(config: Config) -> Sequence[str]:
    """Returns the type of each layer: layers from ``max_window_layers`` on have a window."""
    total = num_layers(config)
    first = config.count("max_window_layers", total, least=0)
    return layer_types(config, ([FULL] * first + [SLIDING] * total)[:total])


def rotated_layers(config: Config) -> list[bool]:
    """Returns whether each layer has rotary embeddings: all layers but every ``no_rope_layer_interval``-th, unless
    ``no_rope_layers`` lists them.
    """
    total, interval = num_layers(config), config.count("no_rope_layer_interval", 4)
    listed = config.numbers("no_rope_layers", total, least=0, most=1)
    return [bool(rotates) for rotates in listed or ((i + 1) % interval for i in range(total))]


def window(config: Config) -> int:
    """Returns the number of positions in the sliding window; 0 means all positions."""
    return config.count("sliding_window", 0, least=0, most=1 << 30)


def model(family: str, config: Config, layers: Sequence[Layer], **traits: Any) -> ModelSpec:
    """Returns the specification of the whole decoder; ``traits`` are further fields of it."""
    return ModelSpec(
        family=family,
        vocab_size=config.count("vocab_size", most=1 << 22),
        hidden_dim=config.count("hidden_size"),
        layers=tuple(layers),
        norm_eps=config.number(config.first("norm_eps", "rms_norm_eps"), most=1),
        max_context=max_context(config),
        tied=config.flag(config.first("tie_embedding", "tie_word_embeddings")),
        **traits,
    )
