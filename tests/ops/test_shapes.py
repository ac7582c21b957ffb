"""Descriptions that no tiny model has: together they have every trait, odd sizes, and every kind of router."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
from descriptions import ATTENTIONS, DESCRIPTIONS, LATENT, PLAIN, VOCAB, experts, model, weights
from tiny_models import Floats, pack_floats, prompt, take_steps
from weights import BEST_LEVEL

from freedive.errors import UserError
from freedive.model.batch import MAX_DRAFT
from freedive.model.spec import Attention, Experts, FeedForward, LatentAttention, ModelSpec
from freedive.ops.fuse import fuse, until_result
from freedive.ops.native import NativeRunner
from freedive.ops.record import record
from freedive.ops.reference import ReferenceRunner

PROMPTS, TABLES = [prompt(50, vocab=VOCAB), prompt(33, seed=1, vocab=VOCAB)], [[3, 0], [1, 2]]
SCHEDULE = [[(0, 31), (1, 33)], [(0, 1)], [(0, 18)]]


def native(described: ModelSpec, values: dict[str, Floats], level: str | None = None) -> NativeRunner:
    return NativeRunner(
        described, pack_floats(values), num_threads=1, max_rows=64, num_pages=4, cache_format="f32", isa=level
    )


def assert_close(described: ModelSpec, level: str, given: list[int] | None = None) -> None:
    values = weights(described)
    got = take_steps(native(described, values, level), PROMPTS, SCHEDULE, TABLES, given)
    expected = take_steps(ReferenceRunner(described, values, num_pages=4), PROMPTS, SCHEDULE, TABLES)
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize("level", BEST_LEVEL)
@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_native_equals_reference(name: str, level: str) -> None:
    assert_close(DESCRIPTIONS[name], level)


@pytest.mark.parametrize("level", BEST_LEVEL)
@pytest.mark.parametrize("given", [[0, 0], [1, 9], [40, 33]])
@pytest.mark.parametrize("name", [name for name in ATTENTIONS if "latents" in name])
def test_absorbed_attention_equals_expanded(name: str, given: list[int], level: str) -> None:
    """The reference expands all keys; the kernels expand only those of the first ``given`` positions."""
    assert_close(DESCRIPTIONS[name], level, given)


@pytest.mark.parametrize(
    "name", [name for name, described in DESCRIPTIONS.items() if isinstance(described.layers[0].ffn, Experts)]
)
def test_native_chooses_the_experts_of_the_reference(name: str) -> None:
    described, chosen = DESCRIPTIONS[name], []
    values = weights(described)
    reference = ReferenceRunner(described, values, num_pages=4)
    runner = native(described, values)
    for seed in range(4):
        (batch,) = [take_steps(runner, [prompt(32, seed, VOCAB)], [[(0, 32)]], [[1]])]
        take_steps(reference, [prompt(32, seed, VOCAB)], [[(0, 32)]], [[1]])
        assert len(batch) == 1
        for got, expected in zip(runner.routes(), reference.routes, strict=True):
            np.testing.assert_array_equal(got.experts, expected.experts)
            np.testing.assert_allclose(got.weights, expected.weights, atol=1e-5)
            assert np.issubdtype(got.experts.dtype, np.integer)
            chosen.append(got.experts)
    assert len(np.unique(np.concatenate(chosen))) > 1


EMBEDDING = ["Select", "FusedNorm"]
"""Operations that run only if states are requested, not logits."""


def test_norms_after_branches_add_the_residual_and_scale_the_layer() -> None:
    described = DESCRIPTIONS["norms after branches with norms of their own"]
    names = [type(phase.operation).__name__ for phase in until_result(fuse(record(described)))]
    experts = ["FusedLinear", "FusedExperts", "FusedNorm", "FusedGlu", "FusedLinear", "FusedNorm", "FusedNorm"]
    layer = ["FusedLinear", "FusedAttention", "FusedLinear", "FusedNorm", *experts]
    assert names == ["Embed", *layer * 2, "Select", "FusedLinear"]


def test_a_dense_layer_is_five_phases() -> None:
    described = model(replace(PLAIN, qk_norm="head", qkv_bias=True))
    names = [type(phase.operation).__name__ for phase in fuse(record(described))]
    layer = ["FusedLinear", "FusedAttention", "FusedLinear", "FusedGlu", "FusedLinear"]
    assert names == ["Embed", *layer * 2, "Select", "FusedLinear", *EMBEDDING]


def test_a_layer_of_latents_and_experts_is_six_operations() -> None:
    moe = replace(experts(), shared=FeedForward(30))
    names = [type(phase.operation).__name__ for phase in fuse(record(model(LATENT, moe)))]
    mixer = ["FusedLinear", "FusedLinear", "LatentAttention", "FusedLinear"]
    assert names == ["Embed", *[*mixer, "FusedLinear", "FusedExperts"] * 2, "Select", "FusedLinear", *EMBEDDING]


def test_an_unknown_level_is_refused_with_the_known_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    described = model(PLAIN)
    monkeypatch.setenv("FREEDIVE_ISA", "mmx")
    with pytest.raises(UserError, match=re.escape("level 'mmx' is not on this machine; it has: scalar")):
        native(described, weights(described))
    monkeypatch.setenv("FREEDIVE_ISA", "scalar")
    assert native(described, weights(described)).isa == "scalar"


def test_a_cache_beyond_all_memory_is_refused() -> None:
    described = model(PLAIN)
    with pytest.raises(UserError, match=r"A key-value cache of .* GiB does not fit\. Lower cache_tokens"):
        NativeRunner(described, pack_floats(weights(described)), num_threads=1, max_rows=8, num_pages=2**31 - 1)


def test_bytes_count_the_inputs_of_draft_tokens() -> None:
    described = DESCRIPTIONS["delta rule"]
    packed = pack_floats(weights(described))
    runner = NativeRunner(described, packed, num_threads=1, max_rows=8, num_pages=4, max_sequences=3)
    rest = runner.num_bytes - runner.pages.nbytes - runner.states.nbytes - sum(w.data.nbytes for w in packed.values())
    assert rest == 4 * 3 * MAX_DRAFT * sum(part.input_dim for part in described.per_sequence)


def test_heads_wider_than_the_kernels_are_refused() -> None:
    described = model(Attention(num_heads=1, num_kv_heads=1, head_dim=640, rope=None, scale=0.05))
    with pytest.raises(UserError, match="640"):
        native(described, weights(described))


def test_wide_latents_and_too_many_experts_are_refused() -> None:
    wide = LatentAttention(1, 0, 600, 16, 16, 16, rope=LATENT.rope, scale=1.0)
    for described, number in ((model(wide), "616"), (model(PLAIN, experts(2000)), "2000")):
        with pytest.raises(UserError, match=number):
            NativeRunner(described, {}, num_threads=1, max_rows=8, num_pages=1)
