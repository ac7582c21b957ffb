"""Routing that differs from a model's own only where it was asked for: fewer experts, and experts in memory first."""

from __future__ import annotations

import descriptions
import numpy as np
import pytest
from test_paging import model, prompts_of, runner
from test_same_bits import TABLES, assert_same_bits
from tiny_models import Floats, pack_floats, take_steps, to_batch

from freedive.checkpoint.weight_store import WeightStore, open_store, write_store
from freedive.errors import UserError
from freedive.model import spec
from freedive.model.fewer_experts import with_experts_per_token
from freedive.ops.native import NativeRunner
from freedive.ops.paging import ExpertTraffic, Paging
from freedive.ops.routes import Routes

MIXTURES = ("many experts", "deepseek_v3", "gpt_oss", "qwen3_5_moe", "llama4")
"""Softmax, groups with a bias of the choice, a softmax of the chosen logits, and sigmoids."""

SHORT = [[(0, 40)]]


def router_of(described: spec.ModelSpec, layer: int = -1) -> spec.Router:
    ffn = described.layers[layer].ffn
    assert isinstance(ffn, spec.Experts)
    return ffn.router


def native(described: spec.ModelSpec, weights: dict[str, Floats]) -> NativeRunner:
    return NativeRunner(described, pack_floats(weights), num_threads=1, max_rows=64, num_pages=4)


def test_fewer_experts_are_the_best_of_the_router_with_its_weights() -> None:
    whole = descriptions.model(descriptions.PLAIN, descriptions.experts(12, 5, renormalise=True, scale=2.0))
    weights = descriptions.weights(whole)
    routes = []
    for described in (whole, with_experts_per_token(whole, 2)):
        run = native(described, weights)
        take_steps(run, [list(range(3, 33))], [[(0, 30)]], [[0]])
        routes.append(run.routes()[0])
    all_five, best = routes
    np.testing.assert_array_equal(best.experts, all_five.experts[:, :2])
    np.testing.assert_allclose(best.weights.sum(1), 2, rtol=1e-5)
    kept = all_five.weights[:, :2]
    np.testing.assert_allclose(best.weights, 2 * kept / kept.sum(1, keepdims=True), rtol=1e-5)


def test_the_models_own_number_of_experts_changes_nothing() -> None:
    described = model("deepseek_v3")[0]
    assert with_experts_per_token(described, router_of(described).num_chosen) == described


def test_layers_with_fewer_experts_keep_them() -> None:
    uneven = with_experts_per_token(model("uneven")[0], 1)
    assert {layer.ffn.router.num_chosen for layer in uneven.layers if isinstance(layer.ffn, spec.Experts)} == {1}
    one, two = (descriptions.Layer(descriptions.PLAIN, descriptions.experts(6, count)) for count in (1, 4))
    mixed = with_experts_per_token(descriptions.with_layers(one, two), 2)
    assert [router_of(mixed, index).num_chosen for index in (0, 1)] == [1, 2]


def test_a_number_of_experts_that_a_model_cannot_have_is_refused() -> None:
    mixture = model("many experts")[0]
    for count in (0, 6):
        with pytest.raises(UserError, match="but a token of this model has 5") as caught:
            with_experts_per_token(mixture, count)
        assert caught.value.param == "experts_per_token"
    with pytest.raises(UserError, match="no experts"):
        with_experts_per_token(descriptions.model(descriptions.PLAIN), 1)
    each = descriptions.model(descriptions.PLAIN, descriptions.experts(8, 4, num_groups=2, group_choice="each"))
    with pytest.raises(UserError, match="2 groups"):
        with_experts_per_token(each, 3)
    assert router_of(with_experts_per_token(each, 2)).num_chosen == 2


@pytest.fixture(scope="module", params=MIXTURES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def store(name: str, tmp_path_factory: pytest.TempPathFactory) -> WeightStore:
    path = tmp_path_factory.mktemp("store") / "model.fdv"
    write_store(path, model(name)[1])
    return open_store(path)


def expert_bytes(store: WeightStore) -> int:
    return store.bytes_by_part()["experts"]


def paged(name: str, store: WeightStore, share: float, preference: float, threads: int = 1) -> NativeRunner:
    paging = Paging(int(share * expert_bytes(store)))
    return runner(name, store, paging, prefer_cached_experts=preference, num_threads=threads)


def decoded(run: NativeRunner, name: str) -> tuple[list[Floats], list[list[Routes]]]:
    """Computes a prompt of 8 tokens and 60 generated ones; returns the logits and routes of each step."""
    tokens, logits, routes = prompts_of(name)[0][:68], [], []
    for begin, end in ((0, 8), *((at, at + 1) for at in range(8, 68))):
        logits.append(run.step(to_batch([tokens], [(0, end - begin)], [begin], TABLES, [8])))
        routes.append(run.routes())
    return logits, routes


def hit_rate(run: NativeRunner) -> float:
    cache = run.expert_cache()
    assert cache
    return ExpertTraffic.sum(cache.layers).hit_rate


@pytest.mark.parametrize("threads", [1, 3])
def test_generated_tokens_prefer_experts_in_memory_but_keep_their_best_half(
    name: str, store: WeightStore, threads: int
) -> None:
    plain, prefers = (paged(name, store, 0.3, preference, threads) for preference in (0, 1))
    (_, own), (_, found) = decoded(plain, name), decoded(prefers, name)
    chosen = router_of(model(name)[0]).num_chosen
    assert hit_rate(prefers) > hit_rate(plain) or chosen == 1
    first, other = own[1][0], found[1][0]  # of the first layer, whose input is the same in both
    kept = (chosen + 1) // 2
    assert set(first.experts[0, :kept]) <= set(other.experts[0])
    by_expert = dict(zip(first.experts[0], first.weights[0], strict=True))
    shared = [(by_expert[e], weight) for e, weight in zip(*(row[0] for row in other), strict=True) if e in by_expert]
    ratios = [new / old for old, new in shared]
    np.testing.assert_allclose(ratios, ratios[0], rtol=1e-4)  # the weights come from the logits as they are
    assert len(set(other.experts[0])) == chosen


def test_prompts_and_models_in_memory_are_exact(name: str, store: WeightStore) -> None:
    exact = decoded(paged(name, store, 0.3, 0), name)[0]
    assert_same_bits(decoded(paged(name, store, 0.3, 1), name)[0][:1], exact[:1])
    assert_same_bits(decoded(runner(name, store, prefer_cached_experts=1.0), name)[0], exact)


def test_answers_in_a_batch_are_computed_with_experts_in_memory(store: WeightStore, name: str) -> None:
    """Rows of a step are routed by several threads, from the same state of the cache."""
    run, prompts = paged(name, store, 0.3, 1, threads=3), [tokens[:7] for tokens in prompts_of(name)]
    schedule = [[(0, 3), (1, 3), (2, 3)]] + [[(0, 1), (1, 1), (2, 1)]] * 4
    take_steps(run, prompts, schedule, TABLES, given=[3, 3, 3])
    for layer in run.routes():
        assert all(len(set(row)) == layer.experts.shape[1] for row in layer.experts)
