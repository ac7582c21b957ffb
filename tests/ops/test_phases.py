"""The number of phases of a layer when one token is generated, that is how often threads wait for each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from descriptions import LATENT, PLAIN, VOCAB, experts, weights, with_layers
from tiny_models import pack_floats, prompt, to_batch

from freedive.model.spec import Attention, Experts, FeedForward, LatentAttention, Layer
from freedive.ops.native import NativeRunner

MIXTURE = experts(renormalise=True)
GATED = replace(MIXTURE, shared=FeedForward(30), shared_gate=True)


def phases(layer: Layer, context: int) -> int:
    """Returns the phases that one more such layer adds to the step after ``context`` tokens."""
    one, two = (step_barriers([layer] * count, context) for count in (1, 2))
    return two - one


def step_barriers(layers: list[Layer], context: int) -> int:
    described, tokens, table = with_layers(*layers), prompt(context + 1, vocab=VOCAB), [list(range(10))]
    runner = NativeRunner(described, pack_floats(weights(described)), num_threads=2, max_rows=300, num_pages=10)
    runner.step(to_batch([tokens], [(0, context)], [0], table, [context]))
    before = runner.barriers
    runner.step(to_batch([tokens], [(0, 1)], [context], table, [context]))
    return runner.barriers - before


@pytest.mark.parametrize("moe", [MIXTURE, replace(MIXTURE, shared=FeedForward(30)), GATED])
@pytest.mark.parametrize(
    ("attention", "expected"),
    [
        (PLAIN, 6),
        (replace(PLAIN, qk_norm="head"), 6),
        (replace(PLAIN, sinks=True, window=17, qkv_bias=True, out_bias=True), 6),
        (replace(LATENT, q_rank=0), 8),
        (LATENT, 9),
    ],
)
def test_a_mixture(attention: Attention | LatentAttention, expected: int, moe: Experts) -> None:
    """Projections, attention, its output, router, gate and up, down; latent attention has products before
    and after it."""
    assert phases(Layer(attention, moe), context=20) == expected


def test_a_dense_layer() -> None:
    assert phases(Layer(PLAIN, FeedForward(50)), context=20) == 5


def test_splits_of_a_long_context_have_two_more_barriers() -> None:
    """The barriers are for the new key before, and for their sum after."""
    assert phases(Layer(PLAIN, MIXTURE), context=280) == 8
