"""Measures the time to the first token, and the prefill and decode speed, with their spread."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import TYPE_CHECKING

from freedive.engine.sampling import Sampling

if TYPE_CHECKING:
    from freedive.api import LanguageModel
    from freedive.ops.paging import ExpertTraffic


@dataclass(frozen=True)
class Spread:
    """The spread of a repeated measurement."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Run:
    """Durations in seconds of several answers that run at the same time.

    ``first_token_s``: the longest time from submission to a first token. ``prefill_s``: from the first step until all
    have their first token. ``decode_s``: from the first of these tokens to the last token of all.
    ``traffic`` is what experts that stay on disk cost until all have their first token, and after it.
    """

    first_token_s: float
    prefill_s: float
    decode_s: float
    traffic: tuple[ExpertTraffic, ExpertTraffic] | None = None


def readable(value: float) -> str:
    """Formats a number with three significant digits, or with all digits before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def random_prompt(length: int, vocab_size: int, source: random.Random) -> list[int]:
    """Returns random token ids, which no cache contains."""
    return source.choices(range(vocab_size), k=length)


GREEDY = Sampling(temperature=0)


def generate(
    model: LanguageModel, prompts: Sequence[Sequence[int]], num_tokens: int, sampling: Sampling = GREEDY
) -> Run:
    """Answers ``prompts`` (token ids) at the same time with ``num_tokens`` tokens each.

    Several prompts are queued behind a request that keeps the engine busy, so that they start in the same step.
    """
    sampling = replace(sampling, max_tokens=num_tokens, ignore_eos=True)
    if len(prompts) > 1:
        model.engine.submit(list(prompts[0]) * len(prompts), replace(sampling, max_tokens=1))
    begin = model.expert_cache()
    generations = [model.engine.submit(prompt, sampling) for prompt in prompts]
    arriving = [iter(generation) for generation in generations]
    firsts_arrived = [next(outputs) for outputs in arriving]
    middle = model.expert_cache()
    lasts = [[first, *outputs][-1] for first, outputs in zip(firsts_arrived, arriving, strict=True)]
    end = model.expert_cache()
    timings = [last.timings or generation.timings for last, generation in zip(lasts, generations, strict=True)]
    starts = [each.submitted_at + each.queued_s for each in timings]
    firsts = [each.submitted_at + each.first_token_s for each in timings]
    ends = [first + each.decode_s for first, each in zip(firsts, timings, strict=True)]
    traffic = (middle.total.since(begin.total), end.total.since(middle.total)) if begin and middle and end else None
    first_token_s = max(each.first_token_s for each in timings)
    return Run(first_token_s, max(firsts) - min(starts), max(ends) - min(firsts), traffic)
