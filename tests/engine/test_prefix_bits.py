"""Cached pages of one request, in memory or on disk, give another request the same answer to the bit."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fake_runner import FakeTokenizer
from tiny_models import float_tensor, prompt, take_steps, tiny
from tiny_mtp import with_mtp
from weights import quantize

from freedive.checkpoint.weight_store import WeightStore, open_store, pack_model, write_store
from freedive.config import EngineConfig
from freedive.engine.engine import Engine
from freedive.engine.generation import TokenOutput
from freedive.engine.page_store import PageStore
from freedive.engine.sampling import Sampling
from freedive.model import spec
from freedive.model.batch import PAGE_TOKENS
from freedive.model.params import params
from freedive.native import _native
from freedive.ops.native import NativeRunner
from freedive.ops.paging import Paging

TEXT = prompt(300, seed=1)
CASES = [
    *((name, format, precision) for name in ("qwen3", "mistral") for format in ("f16", "int8") for precision in
      ("exact", "balanced", "fast")),
    *(("deepseek_v3", "f16", precision) for precision in ("exact", "balanced", "fast")),
    ("gpt_oss", "f16", "balanced"),
    ("gpt_oss", "int8", "fast"),
    ("deepseek_v3 with mtp", "f16", "balanced"),
    *(("lfm2", "f16", precision) for precision in ("exact", "balanced", "fast")),
    ("lfm2_moe", "f16", "balanced"),
    ("lfm2_moe", "int8", "fast"),
    *(("qwen3_5_moe", "f16", precision) for precision in ("exact", "balanced")),
    ("qwen3_next", "int8", "fast"),
    ("qwen3_5_moe with mtp", "f16", "balanced"),
    ("kimi_linear", "f16", "balanced"),
    ("gemma4", "int8", "fast"),
    ("gemma4_inputs", "f16", "balanced"),
]  # fmt: skip


@cache
def model(name: str, path: Path | None = None) -> tuple[spec.ModelSpec, WeightStore]:
    """A tiny 8-bit model, whose results depend on the rounding of its activations; its weights are in the file ``path``
    if there is one.
    """
    small = with_mtp(name.split()[0]) if "mtp" in name else tiny(name)
    roles = {key: param.role for key, param in params(small.spec).items()}

    def tensor(key: str, weight: Any) -> Any:
        rounds = roles[key] in ("linear", "embedding") and weight.shape[-1] % 32 == 0
        return quantize(key, weight, "Q8_0") if rounds else float_tensor(key, weight)

    tensors = {key: tensor(key, weight) for key, weight in small.weights.items()}
    if not path:
        return small.spec, pack_model(tensors)
    write_store(path, tensors)
    return small.spec, open_store(path)


def start(
    case: tuple[str, str, str],
    store: Path | None = None,
    num_pages: int = 120,
    paged: tuple[Path, float] | None = None,
    **config: Any,
) -> Engine:
    """Starts an engine; with ``paged`` it reads experts from this file, and this share of them fits into memory."""
    name, cache_format, precision = case
    sizes = {"num_threads": 1, "max_rows": 80, "num_pages": num_pages, "max_sequences": config.get("max_batch", 16)}
    described, weights = model(name, paged and paged[0])
    paging = Paging(int(paged[1] * weights.bytes_by_part()["experts"]), num_readers=3) if paged else None
    runner = NativeRunner(described, weights, **sizes, cache_format=cache_format, precision=precision, paging=paging)
    memories = [runner.pages, runner.states] if store else []
    stores = [PageStore(store / str(index), memory, 10**8) for index, memory in enumerate(memories) if store]
    return Engine(runner, FakeTokenizer(), EngineConfig(prefill_chunk=64, **config), *stores)


def requests() -> list[tuple[list[int], Sampling]]:
    """Returns prompts with common prefixes, of lengths for which the exact last tokens begin at any offset."""
    rng = random.Random(2)
    shared = [(TEXT[: rng.randint(40, 290)], rng.randint(0, 70)) for _ in range(6)]
    prompts = [[*begin, *prompt(own + 1, seed=own)] for begin, own in shared]
    sampling = Sampling(max_tokens=24, temperature=0.8, seed=5, ignore_eos=True, logprobs=3)
    guessed = ([5, 6, 7, 8, 9, 10, 11, 12] * 20, Sampling(max_tokens=40, temperature=0, ignore_eos=True, logprobs=1))
    biased = ([9] * 40, Sampling(max_tokens=60, temperature=0.5, seed=3, logit_bias={20: 9, 21: 8}, ignore_eos=True))
    again = [(tokens, sampling) for tokens in (TEXT, *prompts, TEXT, TEXT[:96], TEXT[:97])]
    return [*again, guessed, guessed, biased, biased]


def answer(engine: Engine, tokens: list[int], sampling: Sampling) -> tuple[list[TokenOutput], int]:
    """Returns the outputs, without timings, and the number of cached prompt tokens."""
    generation = engine.submit(tokens, sampling)
    outputs = [TokenOutput(output.events, output.token_ids, None, output.logprobs) for output in generation]
    return outputs, generation.num_cached_tokens


def computed(case: tuple[str, str, str]) -> list[list[TokenOutput]]:
    """Returns every answer of an engine without a prefix cache, and the answers of each continued conversation."""
    with start(case, prefix_cache="off", speculation="off") as engine:
        return [answer(engine, *request)[0] for request in [*requests(), *continued(case, engine)]]


def continued(case: tuple[str, str, str], engine: Engine) -> list[tuple[list[int], Sampling]]:
    """Returns three requests that continue after answers."""
    asked = []
    for tokens, sampling in requests()[:3]:
        outputs, _ = answer(engine, tokens, sampling)
        asked.append(([*tokens, *(token for output in outputs for token in output.token_ids), 9, 8, 7], sampling))
    return asked


@pytest.mark.usefixtures("steps_cost_the_same")
@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_hits_in_memory_and_on_disk_change_no_bit(case: tuple[str, str, str], tmp_path: Path) -> None:
    expected = computed(case)
    restored = []
    for _ in range(2):
        with start(case, tmp_path / "pages") as engine:
            got = [answer(engine, *request) for request in requests()]
            got += [answer(engine, *request) for request in continued(case, engine)]
            assert [outputs for outputs, _ in got] == expected
            assert sum(found for _, found in got[1:]) > 600
            assert engine.stats().num_accepted > 0
            restored.append(engine.stats().num_restored)
    assert restored[0] == 0
    assert restored[1] > 400


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_hits_of_concurrent_requests_change_no_bit(case: tuple[str, str, str]) -> None:
    expected = computed(case)[: len(requests())]
    with start(case) as engine:
        generations = [engine.submit(*request) for request in requests()]
        for generation, wanted in zip(generations, expected, strict=True):
            assert [
                TokenOutput(output.events, output.token_ids, None, output.logprobs) for output in generation
            ] == wanted
        assert engine.stats().num_cached > 0


@pytest.mark.parametrize("isa", [level for level in _native.isa_levels() if level != "scalar"])
def test_boundaries_are_where_the_bits_change(isa: str) -> None:
    """Without declared boundaries the cache depends on the tokens alone; with one it does not."""
    has_tiles = isa.startswith("amx")
    for case, boundaries in (
        (("qwen3", "f16", "exact"), ()),
        (("qwen3", "f16", "fast"), (0,) if has_tiles else ()),
        (("qwen3", "f16", "balanced"), (0,) if has_tiles else (-PAGE_TOKENS,)),
        (("deepseek_v3", "f16", "exact"), (0,)),
        (("deepseek_v3", "f16", "balanced"), (0,) if has_tiles else (-32, 0)),
    ):
        pages = []
        for given in (64, 200):
            runner = NativeRunner(
                *model(case[0]),
                num_threads=1,
                max_rows=300,
                num_pages=7,
                cache_format=case[1],
                precision=case[2],
                isa=isa,
            )
            assert runner.boundaries == boundaries
            take_steps(runner, [TEXT[:192]], [[(0, 192)]], [list(range(6))], [given])
            pages.append(runner.pages[:6].copy())
        assert (pages[0] == pages[1]).all() == (not boundaries)
        assert (pages[0][:1] == pages[1][:1]).all()
