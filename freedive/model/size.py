"""How large a description is, and what it looks like in words."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from freedive.model.params import params
from freedive.model.spec import Attention, Experts, FeedForward, LatentAttention, Layer, Model


@dataclass(frozen=True)
class Size:
    """Parameters in all, those that one token reads, and numbers that the cache keeps of a token, windows aside."""

    total: int
    active: int
    cached: int


def size(spec: Model) -> Size:
    """Of the embedding a token reads one row, of a mixture its chosen experts."""
    table = params(spec)
    total = sum(param.size for param in table.values())
    embed = table["embed"].size if not spec.tied else 0
    idle = sum(_idle(index, layer, spec.hidden_dim) for index, layer in enumerate(spec.layers))
    return Size(total, total - embed - idle, sum(layer.attention.cache_dim for layer in spec.layers))


def _idle(index: int, layer: Layer, hidden: int) -> int:
    """Parameters of the experts that a token does not choose."""
    if not isinstance(layer.ffn, Experts):
        return 0
    expert, router = layer.ffn.expert, layer.ffn.router
    biases = 2 * expert.dim + hidden if expert.bias else 0
    return (router.num_experts - router.num_chosen) * (3 * expert.dim * hidden + biases)


def layers_in_words(spec: Model) -> list[str]:
    """Runs of like layers, from the first: ``58 x latent attention, ...; 8 of 256 experts ...``."""
    words = [f"{_mixer(layer.attention)}; {_feeder(layer.ffn)}{_norms(layer)}" for layer in spec.layers]
    return [f"{len(list(run))} x {text}" for text, run in groupby(words)]


def _mixer(attn: Attention | LatentAttention) -> str:
    if isinstance(attn, LatentAttention):
        queries = f"queries through {attn.q_rank}, " if attn.q_rank else ""
        return (
            f"latent attention, {attn.num_heads} heads of {attn.nope_dim} + {attn.rope_dim}, {queries}"
            f"{attn.kv_rank} + {attn.rope_dim} cached"
        )
    heads = f"{attn.num_heads} heads of {attn.head_dim}"
    if attn.num_kv_heads != attn.num_heads:
        heads += f" on {attn.num_kv_heads}"
    traits = {
        f"window {attn.window}": attn.window,
        f"chunks of {attn.chunk}": attn.chunk,
        "no rotation": attn.rope is None,
        "sinks": attn.sinks,
        f"soft cap {attn.softcap:g}": attn.softcap,
        "biases": attn.qkv_bias or attn.out_bias,
        {"head": "norms of heads", "full": "norms of q and k", "l2": "norms without weights"}.get(
            attn.qk_norm, ""
        ): attn.qk_norm,
    }
    return ", ".join(["attention, " + heads, *(name for name, has in traits.items() if has)])


def _feeder(ffn: FeedForward | Experts) -> str:
    if isinstance(ffn, FeedForward):
        return f"feed-forward {ffn.dim}"
    router = ffn.router
    words = f"{router.num_chosen} of {router.num_experts} experts of {ffn.expert.dim} by {router.score}"
    if router.kept_groups < router.num_groups:
        words += f" in {router.kept_groups} of {router.num_groups} groups"
    return f"{words}, {ffn.shared.dim} shared" if ffn.shared else words


def _norms(layer: Layer) -> str:
    return "; norms after both" if layer.post_norms else ""
