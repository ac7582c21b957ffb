"""Experts on disk: any memory for them gives the bits of a model in memory, and faults of the disk fail one step."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import descriptions
import pytest
from patience import wait_until
from test_same_bits import LENGTHS, PROMPTS, SCHEDULES, TABLES, assert_same_bits
from tiny_models import Floats, float_tensor, take_steps, tiny, to_batch
from weights import only, quantize

from freedive.checkpoint.packed import PackedExperts
from freedive.checkpoint.tensor import Tensor
from freedive.checkpoint.weight_store import WeightStore, open_store, pack_model, write_store
from freedive.errors import Unavailable, UserError
from freedive.model import spec
from freedive.model.batch import Batch, UnreadableWeights
from freedive.model.params import expert_of
from freedive.ops.expert_order import read_order
from freedive.ops.native import NativeRunner
from freedive.ops.paging import ExpertTraffic, Paging

MANY = descriptions.model(descriptions.PLAIN, descriptions.experts(num_experts=70, num_chosen=5))
"""A step reads more experts of a layer than a wave has."""

UNEVEN = descriptions.with_layers(
    descriptions.Layer(descriptions.PLAIN, descriptions.experts(num_experts=40)),
    descriptions.Layer(descriptions.PLAIN, descriptions.DENSE),
    descriptions.Layer(
        descriptions.PLAIN, replace(descriptions.experts(num_experts=3), expert=descriptions.FeedForward(300))
    ),
    descriptions.Layer(descriptions.PLAIN, descriptions.experts(num_experts=33, num_chosen=1)),
)
"""Layers with different numbers of experts of different sizes."""

MODELS = ("many experts", "uneven", "qwen3_moe", "deepseek_v3", "gpt_oss", "qwen3_5_moe", "llama4")
"""Plain experts, uneven layers, a shared expert, biases, per-sequence states, and weighted inputs."""

ONCE = [[(request, length)] for request, length in enumerate(LENGTHS)]


@cache
def model(name: str) -> tuple[spec.ModelSpec, dict[str, Tensor]]:
    """Returns a tiny model. The experts of some of its layers are in F16, so that records have two sizes."""
    described = {"many experts": MANY, "uneven": UNEVEN}.get(name)
    made, weights = (described, descriptions.weights(described)) if described else (tiny(name).spec, tiny(name).weights)
    tensors = {key: float_tensor(key, values) for key, values in weights.items()}
    for key in list(tensors):
        if expert_of(key) and int(key.split(".")[1]) % 2 and weights[key].ndim == 2:
            tensors[key] = quantize(key, weights[key], "F16")
    return made, tensors


@pytest.fixture(scope="module")
def store_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], WeightStore]:
    folder = tmp_path_factory.mktemp("stores")

    def opened(name: str) -> WeightStore:
        path = folder / f"{name}.fdv"
        if not path.exists():
            write_store(path, model(name)[1])
        return open_store(path)

    return opened


def runner(name: str, store: WeightStore, paging: Paging | None = None, **options: Any) -> NativeRunner:
    sizes = {"num_threads": 1, "max_rows": 400, "num_pages": 14}
    return NativeRunner(model(name)[0], store, paging=paging, **(sizes | options))


def prompts_of(name: str) -> list[list[int]]:
    vocab = model(name)[0].vocab_size
    return [[token % vocab for token in tokens] for tokens in PROMPTS]


def logits(name: str, paged: NativeRunner, schedule: Sequence[Sequence[tuple[int, int]]] = ONCE) -> list[Floats]:
    return take_steps(paged, prompts_of(name), schedule, TABLES)


@cache
def resident(name: str, precision: str) -> list[Floats]:
    """Returns the logits of a model in memory."""
    return logits(name, runner(name, pack_model(model(name)[1]), precision=precision))


def traffic(paged: NativeRunner) -> list[ExpertTraffic]:
    cache = paged.expert_cache()
    assert cache
    return cache.layers


def used_bytes(paged: NativeRunner) -> int:
    cache = paged.expert_cache()
    assert cache
    return cache.used_bytes


def expert_bytes(store: WeightStore) -> int:
    return store.bytes_by_part()["experts"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("share", only([0.3], [0.0, 0.3, 0.7, 1.0]))
@pytest.mark.parametrize(("schedule", "threads"), [("in company", 2), ("token by token", 1), ("chunks of 16", 3)])
def test_experts_on_disk_give_the_bits_of_experts_in_memory(
    store_of: Callable[[str], WeightStore], name: str, share: float, schedule: str, threads: int
) -> None:
    store = store_of(name)
    paging = Paging(int(share * expert_bytes(store)), num_readers=1 + threads % 3)
    paged = runner(name, store, paging, num_threads=threads, precision="balanced")
    assert_same_bits(logits(name, paged, SCHEDULES[schedule]), resident(name, "balanced"))
    layers = traffic(paged)
    assert all(layer.hits + layer.misses > 0 for layer in layers)
    if share == 1:  # everything is read once
        assert sum(layer.read_bytes for layer in layers) <= expert_bytes(store)


@pytest.mark.parametrize("seed", range(3))
def test_random_schedules_of_experts_on_disk_do_not_show(store_of: Callable[[str], WeightStore], seed: int) -> None:
    rng = random.Random(seed)
    store = store_of("many experts")
    paging = Paging(int(rng.random() * expert_bytes(store)), num_readers=rng.randint(1, 4))
    paged = runner("many experts", store, paging, num_threads=rng.randint(1, 3))
    left, schedule = list(LENGTHS), []
    while any(left):
        step = [(request, min(rng.choice([1, 1, 5, 60]), count)) for request, count in enumerate(left) if count]
        for request, count in step:
            left[request] -= count
        schedule.append(step)
    assert_same_bits(logits("many experts", paged, schedule), resident("many experts", "exact"))


def test_memory_is_filled_before_the_first_step(store_of: Callable[[str], WeightStore]) -> None:
    store = store_of("qwen3_moe")
    paged = runner("qwen3_moe", store, Paging(expert_bytes(store)))
    wait_until(lambda: used_bytes(paged) == expert_bytes(store))
    logits("qwen3_moe", paged)
    assert sum(layer.misses for layer in traffic(paged)) == 0


def test_the_experts_that_a_step_reads_are_told(store_of: Callable[[str], WeightStore]) -> None:
    store = store_of("qwen3_moe")
    paged = runner("qwen3_moe", store, Paging(expert_bytes(store) // 4))
    for token in range(5, 40):
        before = traffic(paged)
        paged.step(Batch.whole([[token]]))
        missed = paged.missed_experts()
        assert list(map(len, missed)) == [
            now.misses - then.misses for now, then in zip(traffic(paged), before, strict=True)
        ]
        chosen = paged.chosen_experts(0).tolist()
        assert all(set(few) <= set(all_) for few, all_ in zip(missed, chosen, strict=True))
    assert any(missed)


def test_prompt_larger_than_the_memory_leaves_most_of_it_alone(store_of: Callable[[str], WeightStore]) -> None:
    """A scan that replaced the least recently used record would hit nothing, the second time as the first."""
    store = store_of("many experts")
    paged = runner("many experts", store, Paging(expert_bytes(store) * 6 // 10))
    batch = [(0, 300)]
    for _ in range(2):
        before = sum(layer.hits for layer in traffic(paged))
        take_steps(paged, prompts_of("many experts")[:1], [batch], TABLES[:1])
    hits = sum(layer.hits for layer in traffic(paged)) - before
    assert hits > 0.2 * 2 * 70


def test_experts_that_are_used_often_stay_when_others_are_used_once(store_of: Callable[[str], WeightStore]) -> None:
    store = store_of("many experts")
    paged = runner("many experts", store, Paging(expert_bytes(store) // 4))

    def misses(token: int) -> int:
        before = sum(layer.misses for layer in traffic(paged))
        paged.step(Batch.whole([[token]]))
        return sum(layer.misses for layer in traffic(paged)) - before

    for _ in range(10):
        misses(5)
    others = sum(misses(token) for token in range(6, 16))
    assert others > 2 * 70 // 4  # more than there is memory for
    assert misses(5) == 0
    for _ in range(8):
        misses(6)
    assert misses(6) == 0


def flip(path: Path, store: WeightStore) -> None:
    packed = next(packed for packed in store.values() if isinstance(packed, PackedExperts))
    assert packed.stored
    with path.open("r+b") as file:
        for record in range(packed.count):
            file.seek(packed.stored.offset + record * packed.stride + 100)
            file.write(b"\x55")


def cut(path: Path, store: WeightStore) -> None:
    packed = next(packed for packed in store.values() if isinstance(packed, PackedExperts))
    assert packed.stored
    os.truncate(path, packed.stored.offset + packed.stride // 2)


@pytest.mark.parametrize(("change", "message"), [(flip, "differs from its checksum"), (cut, "the file ends before it")])
def test_changed_file_fails_the_step_that_reads_it_and_is_read_again(
    store_of: Callable[[str], WeightStore], change: Callable[[Path, WeightStore], None], message: str, tmp_path: Path
) -> None:
    whole = store_of("gpt_oss")
    assert whole.path
    copy = tmp_path / "copy.fdv"
    copy.write_bytes(whole.path.read_bytes())
    paged = runner("gpt_oss", open_store(copy), Paging(0))
    change(copy, whole)
    for _ in range(2):
        with pytest.raises(Unavailable, match=message):
            logits("gpt_oss", paged)
    copy.write_bytes(whole.path.read_bytes())
    assert_same_bits(logits("gpt_oss", paged), resident("gpt_oss", "exact"))


def test_only_rows_that_need_an_unreadable_expert_are_named(
    store_of: Callable[[str], WeightStore], tmp_path: Path
) -> None:
    """Rows without that expert have their usual bits in the step that succeeds without the others."""
    whole = store_of("many experts")
    assert whole.path
    copy = tmp_path / "copy.fdv"
    copy.write_bytes(whole.path.read_bytes())
    store = open_store(copy)
    usual = runner("many experts", whole)
    tokens = prompts_of("many experts")[1][:12]
    alone = [[token] for token in tokens]  # requests of one token each, so that rows have nothing in common
    tables = [[page] for page in range(12)]
    step = [(request, 1) for request in range(12)]
    batch = to_batch(alone, step, [0] * 12, tables, [1] * 12)
    usual.step(batch)
    routes = usual.routes()[-1].experts  # of the last layer, behind which nothing depends on what was read
    expert = int(routes[0, 0])
    packed = [packed for packed in store.values() if isinstance(packed, PackedExperts)][-1]
    assert packed.stored
    paged = runner("many experts", store, Paging(0), num_threads=2)
    with copy.open("r+b") as file:
        file.seek(packed.stored.offset + expert * packed.stride + 100)
        file.write(b"\x55\x54\x53")
    with pytest.raises(UnreadableWeights, match="differs from its checksum") as caught:
        paged.step(batch)
    needing = [row for row in range(12) if expert in routes[row]]
    assert 0 < len(needing) < 12
    assert list(caught.value.rows) == needing
    others = [row for row in range(12) if row not in needing]
    step = [(request, 1) for request in others]
    parts = [runs.step(to_batch(alone, step, [0] * 12, tables, [1] * 12)) for runs in (paged, usual)]
    assert_same_bits([parts[0]], [parts[1]])


def test_memory_is_filled_first_with_the_experts_that_the_last_run_used_most(
    store_of: Callable[[str], WeightStore], tmp_path: Path
) -> None:
    store = store_of("many experts")
    paging = Paging(expert_bytes(store) // 4, order=tmp_path / "order.json")
    batch = to_batch([[5]], [(0, 1)], [0], [[0]], [1])

    def misses_when_filled() -> int:
        paged = runner("many experts", store, paging)
        cache = paged.expert_cache()
        assert cache
        wait_until(lambda: used_bytes(paged) == cache.slots_bytes)
        paged.step(batch)
        paged.save_order()
        return sum(layer.misses for layer in traffic(paged))

    assert misses_when_filled() > 0
    assert misses_when_filled() == 0


@pytest.mark.parametrize(
    "text", ["", "[]", '{"experts": [[0, 1], [5]]}', '{"experts": [[1, 0]]}', '{"experts": [["a"]]}', '{"experts": 3}']
)
def test_an_order_that_does_not_fit_is_ignored(
    store_of: Callable[[str], WeightStore], tmp_path: Path, text: str
) -> None:
    store, file = store_of("qwen3_moe"), tmp_path / "order.json"
    file.write_text(text)
    paged = runner("qwen3_moe", store, Paging(expert_bytes(store), order=file))
    wait_until(lambda: used_bytes(paged) == expert_bytes(store))
    assert_same_bits(logits("qwen3_moe", paged), resident("qwen3_moe", "exact"))
    paged.save_order()
    assert [len(layer) for layer in read_order(file)] == [len(layer) for layer in paged.expert_load()]


def test_an_order_that_cannot_be_written_is_no_error(store_of: Callable[[str], WeightStore], tmp_path: Path) -> None:
    paged = runner("qwen3_moe", store_of("qwen3_moe"), Paging(1 << 20, order=tmp_path / "missing" / "order.json"))
    logits("qwen3_moe", paged)
    paged.save_order()
    assert not list(tmp_path.iterdir())


def test_weights_without_a_file_cannot_be_paged() -> None:
    with pytest.raises(UserError, match="not in a file"):
        runner("qwen3_moe", pack_model(model("qwen3_moe")[1]), Paging(1 << 20))


def test_a_traced_step_tells_the_traffic_of_each_layer(store_of: Callable[[str], WeightStore]) -> None:
    store = store_of("qwen3_moe")
    paged = runner("qwen3_moe", store, Paging(expert_bytes(store) // 2))
    before = traffic(paged)
    operations = paged.trace(to_batch(prompts_of("qwen3_moe")[:1], [(0, 9)], [0], [[0]], [9]))[1]
    found = [each.traffic for each in operations if each.traffic]
    expected = [now.since(then) for now, then in zip(traffic(paged), before, strict=True)]
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    assert all(each.hits + each.misses > 0 for each in found)
    assert all(each.kind == "experts" for each in operations if each.traffic)
    assert ExpertTraffic(3, 1, 0, 0.0).hit_rate == 0.75
    whole = runner("qwen3_moe", store).trace(to_batch(prompts_of("qwen3_moe")[:1], [(0, 9)], [0], [[0]], [9]))[1]
    assert not any(each.traffic for each in whole)


def test_memory_of_paged_experts_is_counted(store_of: Callable[[str], WeightStore]) -> None:
    store = store_of("qwen3_moe")
    paged, whole = (runner("qwen3_moe", store, paging) for paging in (Paging(expert_bytes(store) // 2), None))
    assert whole.num_bytes - paged.num_bytes == pytest.approx(expert_bytes(store) / 2, rel=0.1)
    logits("qwen3_moe", paged)
    assert 0 < used_bytes(paged) <= expert_bytes(store) // 2
    assert paged.resident_bytes() > used_bytes(paged)
