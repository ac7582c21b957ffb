"""The parts of a memory budget: what they add up to, when experts are paged, and whether the estimates are true."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from descriptions import with_layers

import freedive
from freedive.checkpoint.packed import Packed, PackedExperts
from freedive.checkpoint.tensor import Tensor
from freedive.checkpoint.weight_store import pack_model
from freedive.config import EngineConfig
from freedive.errors import UserError
from freedive.model.params import ExpertParams, Param, params
from freedive.model.size import ExpertLayer, WeightSizes, weight_sizes
from freedive.model.spec import Attention, DeltaRule, Experts, FeedForward, LatentAttention, Layer, ModelSpec, Router
from freedive.ops.memory_plan import (
    CACHE_SHARE,
    MARGIN_BYTES,
    MemoryPlan,
    default_budget,
    least_slot_bytes,
    packed_sizes,
    page_bytes,
    plan_memory,
)
from freedive.ops.native import NativeRunner

GIB = 1 << 30
ATTENTION = Attention(num_heads=8, num_kv_heads=4, head_dim=64, rope=None, scale=0.1)
EXPERTS = Experts(Router(num_experts=64, num_chosen=4), FeedForward(512))
MIXTURE = replace(with_layers(*[Layer(ATTENTION, EXPERTS)] * 8), hidden_dim=1024, vocab_size=8192, max_context=8192)
RECORD = 4 << 20
DENSE = 100 << 20


def stored(name: str, entry: Param | ExpertParams) -> float:
    """Experts of 4 MiB: 2 GiB in 8 layers; one dense weight has 100 MiB, the others nothing."""
    return RECORD if isinstance(entry, ExpertParams) else DENSE if name == "head" else 0


def plan(memory: str | None, model: ModelSpec = MIXTURE, available: int = 64 * GIB, **settings: int) -> MemoryPlan:
    config = EngineConfig(memory=memory, max_batch=4, **settings)
    return plan_memory(model, stored, config, available=available)


def test_sizes_by_part() -> None:
    sizes = weight_sizes(MIXTURE, lambda name, entry: 10 if name == "embed" else stored(name, entry))
    assert sizes == WeightSizes(DENSE, 10, (ExpertLayer(64, 4, RECORD),) * 8)
    assert sizes.experts == 2 * GIB
    assert sizes.routed == 8 * 4 * RECORD
    assert sizes.total == 2 * GIB + DENSE + 10
    tied = weight_sizes(replace(MIXTURE, tied=True), lambda name, entry: 10 if name == "embed" else 0)
    assert (tied.dense, tied.embedding) == (10, 0)


def test_of_a_table_that_is_read_by_row_some_rows_are_counted() -> None:
    def dense(model: ModelSpec, table_bytes: int) -> int:
        def with_table(name: str, entry: Param | ExpertParams) -> float:
            return table_bytes if name == "embed" else stored(name, entry)

        return plan_memory(model, with_table, EngineConfig(memory="1GiB", max_batch=4), available=64 * GIB).dense

    wide = replace(MIXTURE, vocab_size=1 << 18)
    assert dense(wide, GIB) == DENSE + 4096 * (4096 + 4096)
    assert dense(wide, 1000) == DENSE + 1000
    with pytest.raises(UserError, match="too small"):  # the head reads all of it
        dense(replace(wide, tied=True), GIB)


@pytest.mark.parametrize("memory", ["1GiB", "1.5GiB", "2GiB"])
def test_slots_of_a_paged_model_get_what_the_others_leave(memory: str) -> None:
    made = plan(memory)
    assert made.paged
    assert made.total == made.budget == EngineConfig(memory=memory).memory_bytes
    left = made.budget - made.process - made.working - made.dense
    assert made.cache <= CACHE_SHARE * left
    assert made.slots >= (1 - CACHE_SHARE) * left


def test_steps_have_fewer_prompt_tokens_where_memory_is_short() -> None:
    short, ample = plan("2300MiB"), plan("2400MiB")
    assert not short.paged
    assert not ample.paged
    assert (short.prefill_chunk, ample.prefill_chunk) == (512, 2048)
    assert plan("2300MiB", prefill_chunk=100).prefill_chunk == 100
    assert [plan(memory).prefill_chunk for memory in ("300MiB", "400MiB", "700MiB")] == [512, 1024, 2048]


def test_a_paged_models_cache_is_as_large_as_one_context_needs() -> None:
    assert plan("2GiB").cache == 8192 * 2 * 8 * 4 * (64 + 64)
    assert plan("2GiB", max_context=4096).cache == plan("2GiB").cache // 2
    assert plan("2GiB", cache_tokens=640).cache == plan("2GiB").cache * 640 // 8192


def test_what_fits_is_resident() -> None:
    made = plan("4GiB")
    assert not made.paged
    assert made.slots == made.experts == 2 * GIB
    assert made.total <= made.budget
    assert made.cache == 4 * plan("2GiB").cache  # a full batch of full contexts
    near = plan("2400MiB")
    assert not near.paged
    assert near.total <= near.budget
    assert near.cache < made.cache


def test_the_budget_that_an_error_names_is_the_least_that_works() -> None:
    with pytest.raises(UserError, match="A memory of 200M is too small") as caught:
        plan("200M")
    assert caught.value.param == "memory"
    found = re.search(r"--memory (\d+)MiB", caught.value.remedy or "")
    assert found
    least = int(found[1])
    assert plan(f"{least}MiB").slots >= least_slot_bytes(weight_sizes(MIXTURE, stored))
    with pytest.raises(UserError, match="too small"):
        plan(f"{least - 2}MiB")


def test_a_step_needs_two_records_of_each_size() -> None:
    layers = ExpertLayer(8, 2, 4096), ExpertLayer(8, 2, 8192), ExpertLayer(8, 2, 4096)
    assert least_slot_bytes(WeightSizes(0, 0, layers)) == 2 * (4096 + 8192)


def test_a_dense_model_is_refused_if_it_does_not_fit() -> None:
    dense = replace(MIXTURE, layers=(Layer(ATTENTION, FeedForward(64)),))
    with pytest.raises(UserError, match="too small"):
        plan("150MiB", dense)
    assert not plan(None, dense, available=100 << 20).paged  # without a budget it is mapped, as it fits or not


def test_by_default_the_machine_decides() -> None:
    assert not plan(None).paged
    assert plan(None).budget == pytest.approx(0.95 * 64 * GIB)
    small = plan(None, available=2 * GIB)
    assert small.paged
    assert small.total == small.budget == 2 * GIB - MARGIN_BYTES
    assert default_budget(100) == 0


def test_a_paged_model_drafts_nothing_and_so_needs_no_such_layer() -> None:
    drafting = replace(MIXTURE, mtp=MIXTURE.layers[0])
    assert plan("64GiB", drafting).experts == 9 * 64 * RECORD
    without = plan("2GiB")
    assert plan("2GiB", drafting) == replace(without, experts=without.experts + 64 * RECORD)


def test_states_are_counted() -> None:
    delta = DeltaRule(4, 8, key_dim=64, value_dim=64, kernel=4, decay="head", decay_rank=0, gate_rank=0)
    recurrent = replace(MIXTURE, layers=(Layer(delta, EXPERTS),) * 7 + MIXTURE.layers[:1])
    made = plan("1.5GiB", recurrent)
    assert made.states >= 4 * 7 * 8 * 64 * 64 * 4
    assert made.total == made.budget


def random_weights(model: ModelSpec) -> dict[str, Packed]:
    rng = np.random.default_rng(0)
    tensors = {}
    for name, param in params(model).items():
        data = rng.standard_normal((int(np.prod(param.shape[:-1])), param.shape[-1]), np.float32)
        tensors[name] = Tensor(name, param.shape, "F32", data.view(np.uint8))
    return dict(pack_model(tensors))


LATENT = LatentAttention(
    num_heads=4, q_rank=0, kv_rank=64, nope_dim=32, rope_dim=32, value_dim=32, rope=None, scale=0.1
)


@pytest.mark.parametrize("format", ["f16", "int8", "f32"])
@pytest.mark.parametrize("mixer", [ATTENTION, LATENT], ids=["heads", "latents"])
def test_a_page_takes_what_is_planned(mixer: Attention | LatentAttention, format: str) -> None:
    if format == "int8" and mixer is LATENT:
        pytest.skip("there is no int8 cache of latents")
    model = with_layers(Layer(mixer, FeedForward(64)), Layer(ATTENTION, FeedForward(32)))
    runner = NativeRunner(model, random_weights(model), num_threads=1, max_rows=4, num_pages=2, cache_format=format)
    assert runner.page_bytes <= page_bytes(model, format) <= 1.05 * runner.page_bytes


def test_packed_weights_have_the_sizes_that_are_planned() -> None:
    model = with_layers(Layer(ATTENTION, replace(EXPERTS, expert=FeedForward(32))))
    weights = random_weights(model)
    sizes = weight_sizes(model, packed_sizes(weights))
    assert sizes.total == sum(each.data.nbytes for each in weights.values())
    [layer] = sizes.layers
    experts = weights["layers.0.ffn.experts"]
    assert isinstance(experts, PackedExperts)
    assert (layer.count, layer.record_bytes) == (64, experts.stride)


MEASURE = """
import re
import freedive
from freedive.text.format import Format

with freedive.load("nano", prefix_cache=False) as model:
    str(model.complete("Once upon a time " * 25, max_tokens=20))
    str(model.complete("x", max_tokens=8, format=Format("json_object")))
    text = open("/proc/self/smaps_rollup").read()
    print(int(re.search(r"^Rss:\\s+(\\d+)", text, re.M)[1]) * 1024 - model.resident_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_a_process_takes_about_what_is_planned() -> None:
    with freedive.load("nano", prefix_cache=False) as model:
        vocab_size = model.runner.vocab_size
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    made = plan("4GiB", replace(MIXTURE, vocab_size=vocab_size))
    assert 0.4 * made.process < int(done.stdout) < made.process + made.working
