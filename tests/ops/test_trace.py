"""A traced step has every phase once, with the bytes and multiply-adds of the model's size, and the same bits."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from tiny_models import prompt, tiny, to_batch

from freedive.checkpoint.packed import PackedExperts, PackedTensor
from freedive.model import spec
from freedive.model.batch import Batch
from freedive.model.params import Param
from freedive.model.size import footprint
from freedive.model.state import per_token_dim
from freedive.ops import native
from freedive.ops.fuse import fuse, until_result
from freedive.ops.native import NativeRunner
from freedive.ops.record import record
from freedive.ops.trace import PREPARATION, Operation

MODELS = ("llama", "llama4", "qwen2_moe", "qwen3_moe", "deepseek_v3", "gpt_oss")
NUM_LAYERS = {name: len(tiny(name).spec.layers) for name in MODELS}
GIVEN = 20
TOKENS = prompt(GIVEN + 4, seed=3)


def runner(name: str, num_threads: int = 1) -> NativeRunner:
    return NativeRunner(tiny(name).spec, tiny(name).packed, num_threads=num_threads, max_rows=64, num_pages=4)


def step(start: int, length: int) -> Batch:
    return to_batch([TOKENS], [(0, length)], [start], [[2]], [GIVEN])


def one_token(name: str) -> list[Operation]:
    """Returns the operations of the first decode step."""
    taking = runner(name)
    taking.step(step(0, GIVEN))
    return taking.trace(step(GIVEN, 1))[1]


def is_multiplied(name: str, weight: str, param: Param) -> bool:
    return len(param.shape) > 1 and (weight != "embed" or tiny(name).spec.tied)


def packed_bytes(name: str, weight: str, param: Param) -> int:
    """Returns the bytes that products read. Biases are left out, but those of experts are between their weights."""
    layer, _, expert = weight.partition(".experts.")
    if expert:
        experts = tiny(name).packed[f"{layer}.experts"]
        assert isinstance(experts, PackedExperts)
        index, part = expert.split(".")
        return len(experts.part(int(index), part).data)
    packed = tiny(name).packed[weight]
    assert isinstance(packed, PackedTensor)
    return len(packed.data) if is_multiplied(name, weight, param) else 0


@pytest.mark.parametrize("name", MODELS)
def test_each_phase_appears_once(name: str) -> None:
    operations = runner(name).trace(step(0, GIVEN))[1]
    assert operations[0].kind == PREPARATION
    assert len(operations) == 1 + len(until_result(fuse(record(tiny(name).spec))))
    kinds = Counter(each.kind for each in operations)
    assert kinds["attn.o"] == NUM_LAYERS[name]
    assert kinds["embed"] == kinds["select"] == kinds["head"] == 1
    layers = [each.layer for each in operations if each.kind == "attn.o"]
    assert layers == list(range(NUM_LAYERS[name]))
    assert all(each.layer is None for each in operations if each.kind in ("embed", "head"))


def latent_layers(model: spec.ModelSpec) -> list[spec.LatentAttention]:
    return [layer.mixer for layer in model.layers if isinstance(layer.mixer, spec.LatentAttention)]


@pytest.mark.parametrize("name", MODELS)
def test_a_token_reads_the_bytes_that_the_packed_model_has_for_it(name: str) -> None:
    read = sum(each.work.bytes for each in one_token(name) if each.kind not in ("attention", "embed"))
    cached = sum(2 * (GIVEN + 1) * per_token_dim(attn.state) for attn in latent_layers(tiny(name).spec))
    weights = footprint(tiny(name).spec, lambda weight, param: packed_bytes(name, weight, param))
    assert read == cached + weights.read


@pytest.mark.parametrize("name", MODELS)
def test_a_token_is_multiplied_with_every_weight_that_it_reads(name: str) -> None:
    model = tiny(name).spec
    done = sum(each.work.macs for each in one_token(name) if each.kind != "attention")
    scores = sum(
        (GIVEN + 1) * attn.num_heads * (per_token_dim(attn.state) + attn.kv_rank) for attn in latent_layers(model)
    )
    weights = footprint(model, lambda weight, param: param.size if is_multiplied(name, weight, param) else 0)
    assert done == scores + weights.read


@pytest.mark.parametrize("name", ["mistral", "llama4", "gpt_oss"])
@pytest.mark.parametrize(("start", "length"), [(0, 300), (290, 1), (130, 200)])
def test_attention_has_the_multiply_adds_of_its_mask(name: str, start: int, length: int) -> None:
    model = tiny(name).spec
    taking = NativeRunner(model, tiny(name).packed, num_threads=2, max_rows=400, num_pages=12)
    lengths = np.array([length], np.int32)
    pages = np.arange(12, dtype=np.int32)[None]
    batch = Batch(np.zeros(length, np.int32), lengths, lengths * 0 + start, pages, lengths - 1, lengths * 0 + 400)
    found = [each.work for each in taking.trace(batch)[1] if each.kind == "attention"]
    q, k = np.arange(start, start + length)[:, None], np.arange(start + length)[None]
    for work, layer in zip(found, model.layers, strict=True):
        attn = layer.mixer
        assert isinstance(attn, spec.Attention)
        mask = k <= q
        if attn.window:
            mask &= k > q - attn.window
        if attn.chunk:
            mask &= k // attn.chunk == q // attn.chunk
        assert work.macs == 2 * mask.sum() * attn.q_dim
        assert work.bytes == mask.any(0).sum() * per_token_dim(attn.state) * 2


def test_experts_count_the_bytes_of_chosen_ones() -> None:
    taking = runner("qwen3_moe")
    _, operations = taking.trace(step(0, GIVEN))
    found = [each for each in operations if each.kind == "experts"]
    for each, routes in zip(found, taking.routes(), strict=True):
        active = set(routes.experts.ravel())
        experts = tiny("qwen3_moe").packed[f"layers.{each.layer}.ffn.experts"]
        assert isinstance(experts, PackedExperts)
        assert each.work.bytes == len(active) * sum(len(experts.part(0, part).data) for part in experts.parts)
        assert 1 < len(active) < routes.experts.size


def test_the_load_of_experts_is_what_the_counted_steps_routed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LOAD_EVERY", 2)
    taking = runner("qwen3_moe")
    expected = np.array(taking.expert_load())
    assert not expected.any()
    for number, batch in enumerate((step(0, GIVEN), step(GIVEN, 1), step(GIVEN + 1, 3))):
        taking.step(batch)
        if number != 1:
            for load, routes in zip(expected, taking.routes(), strict=True):
                np.add.at(load, routes.experts, 1)
    assert taking.expert_load() == expected.tolist()
    assert runner("llama").expert_load() == []


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("name", MODELS)
def test_tracing_changes_no_bit(name: str, num_threads: int) -> None:
    plain, traced = runner(name, num_threads), runner(name, num_threads)
    for batch in (step(0, GIVEN), step(GIVEN, 1), step(GIVEN + 1, 3)):
        np.testing.assert_array_equal(plain.step(batch), traced.trace(batch)[0])


def test_the_seconds_are_those_of_the_step() -> None:
    taking, shares = runner("llama", num_threads=2), []
    for _ in range(20):
        began = time.perf_counter()
        _, operations = taking.trace(step(0, GIVEN))
        took, traced = time.perf_counter() - began, sum(each.seconds for each in operations)
        assert all(each.seconds >= 0 for each in operations)
        assert 0 < traced <= took
        shares.append(traced / took)
    assert max(shares) > 0.2  # in a step that no other program interrupted
