"""Random schedules: each request has the same bits in any batch as alone in an engine without a cache."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from patience import wait_until
from test_prefix_bits import TEXT, start
from tiny_models import prompt

from freedive.engine.engine import Engine
from freedive.engine.generation import Generation, TokenOutput
from freedive.engine.sampling import Sampling

Asked = tuple[list[int], Sampling]


def random_request(rng: random.Random) -> Asked:
    """Returns a prompt with a shared prefix, or with repetitions for which drafts are accepted and rejected."""
    begin = TEXT[: rng.choice([0, 31, 32, 33, 64, 95, 96, 97, rng.randint(0, 300)])]
    own = prompt(rng.randint(1, 90), seed=rng.randint(0, 3))
    if rng.random() < 0.3:
        own = own[:7] * rng.randint(2, 12)
    sampling = Sampling(
        max_tokens=rng.choice([1, 2, 33, rng.randint(1, 70)]),
        temperature=rng.choice([0, 0.7]),
        seed=rng.randint(0, 3),
        ignore_eos=True,
        logprobs=1,
        prompt_logprobs=rng.choice([None, None, None, 1]),
    )
    return begin + own, sampling


def read(generation: Generation) -> list[TokenOutput]:
    """Returns the outputs of ``generation`` without finish reasons and timings."""
    return [replace(output, finish_reason=None, timings=None) for output in generation]


def together(engine: Engine, asked: list[Asked], rng: random.Random) -> list[list[TokenOutput] | None]:
    """Returns the outputs of requests that run at the same time; None for requests that were cancelled."""
    generations = [engine.submit(tokens, sampling) for tokens, sampling in asked]
    leavers = [generation for generation in generations if rng.random() < 0.25]
    answers: dict[Generation, list[TokenOutput] | None] = dict.fromkeys(leavers)
    for generation in leavers:
        pieces = iter(generation)
        for _ in range(rng.choice([0, 0, 1, 5])):
            next(pieces, None)
        generation.cancel()
    for generation in generations:
        if generation not in answers:
            answers[generation] = read(generation)
    return [answers[generation] for generation in generations]


def damage(folder: Path, rng: random.Random) -> None:
    """Changes some files in ``folder``, as a failing disk may, or replaces them by others."""
    whole = {file: file.read_bytes() for file in sorted(folder.rglob("*.page"))}
    for file in rng.sample(list(whole), len(whole) // 3):
        data = bytearray(whole[file])
        kind = rng.randrange(5)
        if kind == 0:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[rng.randrange(len(data)) :]
        elif kind == 2:
            data += b"x"
        elif kind == 3:
            data[:] = rng.choice(list(whole.values()))
        file.unlink()
        if kind < 4:
            file.write_bytes(data)


def wait_until_idle(engine: Engine) -> None:
    """Waits for the end of all requests; a cancel takes effect after the step under way."""
    wait_until(lambda: not (engine.stats().running or engine.stats().waiting), engine.stats)


CASES = [
    ("lfm2", "f16", "balanced"),
    ("lfm2_moe", "int8", "exact"),
    ("qwen3", "f16", "fast"),
    ("qwen3_5_moe with mtp", "f16", "balanced"),
    ("gemma4_inputs", "int8", "balanced"),
]


PAGED_CASES = [
    ("lfm2_moe", "int8", "balanced"),
    ("deepseek_v3", "f16", "balanced"),
    ("gpt_oss", "f16", "fast"),
    ("qwen3_5_moe", "f16", "balanced"),
]
"""Models with experts: a short convolution, latents, sinks, the delta rule."""


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(2))
def test_random_schedules_do_not_show(case: tuple[str, str, str], seed: int, tmp_path: Path) -> None:
    run_random_schedules(case, random.Random(seed), tmp_path, [{}])


@pytest.mark.parametrize("case", PAGED_CASES)
def test_random_schedules_of_experts_on_disk_do_not_show(case: tuple[str, str, str], tmp_path: Path) -> None:
    store = tmp_path / "experts.fdv"
    shares = [{"paged": (store, share)} for share in (0.0, 0.3, 0.8)]
    run_random_schedules(case, random.Random(7), tmp_path / "pages", shares)


def run_random_schedules(
    case: tuple[str, str, str], rng: random.Random, folder: Path, ways: Sequence[dict[str, Any]]
) -> None:
    """Compares random batches of an engine, started in each of several ways, with single requests of a plain one."""
    batches = [[random_request(rng) for _ in range(rng.randint(3, 12))] for _ in range(4)]
    expected = {}
    with start(case, prefix_cache=False, speculation="off", max_batch=1) as engine:
        for tokens, sampling in (each for batch in batches for each in batch):
            expected[tuple(tokens), repr(sampling)] = read(engine.submit(tokens, sampling))
    for index in range(3):  # each time another process, which finds what those before have left on the disk
        way = ways[index % len(ways)]
        with start(case, folder, rng.choice([20, 30, 120]), max_batch=rng.choice([1, 2, 5]), **way) as engine:
            for batch in batches:
                for (tokens, sampling), got in zip(batch, together(engine, batch, rng), strict=True):
                    if got is not None:
                        assert got == expected[tuple(tokens), repr(sampling)]
            wait_until_idle(engine)
            assert engine.stats().free_pages == engine.stats().num_pages
        damage(folder, rng)
