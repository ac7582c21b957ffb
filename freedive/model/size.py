"""Computes the number of parameters and bytes of a model and the cost of a token, and describes its layers in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from freedive.model.params import ExpertParams, Param, entries, params, tables_by_row
from freedive.model.spec import (
    Attention,
    DeltaRule,
    Experts,
    FeedForward,
    LatentAttention,
    Layer,
    Mixer,
    ModelSpec,
    ShortConv,
)
from freedive.model.state import per_token_dim


@dataclass(frozen=True)
class Size:
    """Numbers of parameters: ``total``, and ``active``, which one token reads.

    A token reads its chosen experts and one row of the embedding. Some publishers count active parameters like this
    (DeepSeek-V3 37B, Kimi K2 32B, gpt-oss 3.6B), others with the whole embedding (Qwen3-30B-A3B 3.3B, Mixtral 12.9B),
    which is ``active + embedding``. ``embedding`` is 0 if the embedding is also the output head, which every token
    reads. MTP layers are not counted.
    """

    total: int
    active: int
    embedding: int


def size(spec: ModelSpec) -> Size:
    """Returns the numbers of parameters of ``spec``."""
    table = entries(replace(spec, mtp=None))
    total = sum(entry.size for entry in table.values())
    active = round(sum(entry.size * _share(spec, name) for name, entry in table.items()))
    return Size(total, active, 0 if spec.tied else table["embed"].size)


@dataclass(frozen=True)
class Footprint:
    """Bytes of all weights (``total``), and of the weights that one token reads (``read``)."""

    total: int
    read: int


def footprint(spec: ModelSpec, num_bytes: Callable[[str, Param], float]) -> Footprint:
    """Returns the bytes of the weights; ``num_bytes`` returns the bytes of one weight, given its canonical name."""
    stored = {name: num_bytes(name, param) for name, param in params(spec).items()}
    read = sum(taken * _share(spec, name) for name, taken in stored.items())
    return Footprint(round(sum(stored.values())), round(read))


@dataclass(frozen=True)
class ExpertLayer:
    """The routed experts of one layer: ``count`` records of ``record_bytes``, of which a token reads ``chosen``."""

    count: int
    chosen: int
    record_bytes: int


@dataclass(frozen=True)
class WeightSizes:
    """Bytes of all weights by part: ``dense`` weights, of which a token reads all; the tables of embeddings, of which
    it reads a row each (a table that is also the output head counts as dense); and the experts of each layer."""

    dense: int
    embedding: int
    layers: tuple[ExpertLayer, ...] = ()

    @property
    def experts(self) -> int:
        """Bytes of all routed experts."""
        return sum(layer.count * layer.record_bytes for layer in self.layers)

    @property
    def routed(self) -> int:
        """Bytes of the routed experts that one token reads."""
        return sum(layer.chosen * layer.record_bytes for layer in self.layers)

    @property
    def total(self) -> int:
        """Bytes of all weights."""
        return self.dense + self.embedding + self.experts


def weight_sizes(spec: ModelSpec, num_bytes: Callable[[str, Param | ExpertParams], float]) -> WeightSizes:
    """Returns the sizes of the weights; ``num_bytes`` returns the bytes of one weight, or of one expert of a layer."""
    dense = embedding = 0.0
    by_row = tables_by_row(spec)
    layers = []
    for name, entry in entries(spec).items():
        stored = num_bytes(name, entry)
        if isinstance(entry, ExpertParams):
            ffn = spec.blocks[int(name.split(".")[1])].ffn
            assert isinstance(ffn, Experts)
            layers.append(ExpertLayer(entry.count, ffn.router.num_chosen, round(stored)))
        elif name in by_row:
            embedding += stored
        else:
            dense += stored
    return WeightSizes(round(dense), round(embedding), tuple(layers))


def _share(spec: ModelSpec, name: str) -> float:
    """Returns the fraction of a weight that one token reads, on average."""
    if name in tables_by_row(spec):
        return 1 / spec.vocab_size
    if name.split(".")[2:4] == ["ffn", "experts"]:
        ffn = spec.blocks[int(name.split(".")[1])].ffn
        assert isinstance(ffn, Experts)
        return ffn.router.num_chosen / ffn.router.num_experts
    return 1.0


def cache_dim(spec: ModelSpec) -> int:
    """Returns the number of values that the cache stores for one token."""
    return sum(per_token_dim(layer.mixer.state) for layer in spec.blocks)


def state_bytes(spec: ModelSpec) -> int:
    """Returns the bytes of the per-sequence state of one sequence, which does not depend on its length."""
    return sum(4 * part.size for part in spec.per_sequence)


def cache_bound(spec: ModelSpec) -> int:
    """Returns the maximum number of cached values that layers with a window or chunks read, for any context length."""
    return sum(per_token_dim(layer.mixer.state) * _span(layer.mixer) for layer in spec.blocks)


def _span(mixer: Mixer) -> int:
    """Returns the number of positions in a window or chunk, or 0 if attention is not limited."""
    return mixer.window or mixer.chunk if isinstance(mixer, Attention) else 0


@dataclass(frozen=True)
class MixerCost:
    """The operations of a mixer without those of its weights: ``pair`` for each query and key that it attends to; with
    ``window``, a query has the last ``window`` keys, with ``chunk``, those of its own block, with 0, all earlier ones.
    A recurrence has one pair a token."""

    pair: float
    window: int = 0
    chunk: int = 0

    def operations(self, num_tokens: int) -> float:
        """Returns the operations of a prompt's first ``num_tokens`` tokens."""
        if self.chunk:
            blocks, rest = divmod(num_tokens, self.chunk)
            return self.pair * (blocks * _triangle(self.chunk) + _triangle(rest))
        inside = min(num_tokens, self.window) if self.window else num_tokens
        return self.pair * (_triangle(inside) + (num_tokens - inside) * self.window)


def mixer_costs(spec: ModelSpec) -> tuple[MixerCost, ...]:
    """Returns the costs of the mixers, one for each layer."""
    return tuple(_mixer_cost(layer.mixer) for layer in spec.blocks)


def _mixer_cost(mixer: Mixer) -> MixerCost:
    match mixer:
        case Attention():
            return MixerCost(2.0 * mixer.num_heads * (mixer.head_dim + mixer.v_head_dim), mixer.window, mixer.chunk)
        case LatentAttention():  # queries meet the latent rows, which are keys and values of all heads
            return MixerCost(2.0 * mixer.num_heads * (2 * mixer.kv_rank + mixer.rope_dim))
        case DeltaRule():  # decay, product with the key, update, product with the query
            return MixerCost(7.0 * mixer.num_value_heads * mixer.key_dim * mixer.value_dim, window=1)
        case ShortConv():
            return MixerCost(2.0 * mixer.dim * mixer.kernel, window=1)


def _triangle(count: int) -> float:
    return count * (count + 1) / 2


def layers_in_words(spec: ModelSpec) -> list[str]:
    """Describes each kind of layer with its count, in order of first appearance: ``58 x latent attention, ...``."""
    kinds = Counter(f"{_mixer(layer.mixer)}; {_feeder(layer.ffn)}{_norms(layer)}" for layer in spec.layers)
    return [f"{count} x {text}" for text, count in kinds.items()]


def _mixer(attn: Mixer) -> str:
    if isinstance(attn, ShortConv):
        return f"short convolution over {attn.kernel} tokens"
    if isinstance(attn, DeltaRule):
        keys = f" on {attn.num_key_heads}" if attn.num_key_heads != attn.num_value_heads else ""
        heads = f"{attn.num_value_heads} heads of {attn.key_dim} x {attn.value_dim}{keys}"
        return f"delta rule, {heads}, decay by {attn.decay}"
    if isinstance(attn, LatentAttention):
        queries = f"queries through {attn.q_rank}, " if attn.q_rank else ""
        return (
            f"latent attention, {attn.num_heads} heads of {attn.nope_dim} + {attn.rope_dim}, {queries}"
            f"{attn.kv_rank} + {attn.rope_dim} cached"
        )
    heads = f"{attn.num_heads} heads of {attn.head_dim}"
    if attn.v_head_dim != attn.head_dim:
        heads += f" with values of {attn.v_head_dim}"
    if attn.num_kv_heads != attn.num_heads:
        heads += f" on {attn.num_kv_heads}"
    traits = {
        f"window {attn.window}": attn.window,
        f"chunks of {attn.chunk}": attn.chunk,
        "no rotation": attn.rope is None,
        "sinks": attn.sinks,
        f"soft cap {attn.softcap:g}": attn.softcap,
        "output gate": attn.output_gate,
        "values from keys": attn.values == "keys",
        f"keys and values of layer {attn.kv_layer}": attn.kv_layer >= 0,
        "temperature": attn.temperature,
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
    if router.kept_groups < router.num_groups and router.group_choice != "each":
        words += f" in {router.kept_groups} of {router.num_groups} groups"
    return f"{words}, {ffn.shared.dim} shared" if ffn.shared else words


def _norms(layer: Layer) -> str:
    return f"; norms {'' if layer.pre_norms else 'only '}after both" if layer.post_norms else ""
