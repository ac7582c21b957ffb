"""The parts that families are put together from: configuration keys -> pieces of a description."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

from freedive.model.families.config import Config
from freedive.model.families.rope import max_context, rope
from freedive.model.spec import Activation, Attention, FeedForward, Layer, Model


def num_layers(config: Config) -> int:
    return config.count("num_hidden_layers", most=1000)


def attention(config: Config, **traits: Any) -> Attention:
    """Grouped-query attention over everything before; ``traits`` are further fields of it."""
    num_heads = config.count("num_attention_heads", most=4096)
    num_kv_heads = config.count("num_key_value_heads", num_heads, most=4096)
    if num_heads % num_kv_heads:
        raise config.refusal("num_key_value_heads", f"({num_kv_heads}) does not divide {num_heads} heads")
    hidden_dim = config.count("hidden_size")
    if "head_dim" not in config and hidden_dim % num_heads:
        raise config.refusal("num_attention_heads", f"({num_heads}) does not divide a hidden size of {hidden_dim}")
    head_dim = config.count("head_dim", max(hidden_dim // num_heads, 1), most=4096)
    if config.count("v_head_dim", head_dim) != head_dim:
        raise config.refusal("v_head_dim", f"differs from the {head_dim} of queries and keys")
    return Attention(
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        rope=rope(config, head_dim),
        scale=head_dim**-0.5,
        **traits,
    )


def feed_forward(config: Config, *, bias: bool = False) -> FeedForward:
    return FeedForward(config.count("intermediate_size"), config.choice("hidden_act", get_args(Activation)), bias)


def model(family: str, config: Config, layers: Sequence[Layer]) -> Model:
    return Model(
        family=family,
        vocab_size=config.count("vocab_size", most=1 << 22),
        hidden_dim=config.count("hidden_size"),
        layers=tuple(layers),
        norm_eps=config.number("rms_norm_eps", most=1),
        max_context=max_context(config),
        tied=config.flag("tie_word_embeddings"),
    )
