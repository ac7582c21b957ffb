"""The workloads of all engines, and their results."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from freedive.commands.timing import Spread, random_prompt

TOKENS_PER_S, SECONDS, MEGABYTES = "tokens/s", "s", "MB"

Prompts = list[list[int]]


@dataclass(frozen=True)
class Workload:
    """``num_prompts`` prompts of ``prompt`` tokens, answered at once with ``gen`` tokens each; 1 measures
    prefill only."""

    name: str
    num_prompts: int
    prompt: int
    gen: int

    @property
    def reads(self) -> bool:
        """Whether the workload measures prefill."""
        return self.gen == 1

    @property
    def context(self) -> int:
        """The mean context of a decode step, in tokens."""
        return self.prompt + self.gen // 2

    def speed(self, prefill_s: float, decode_s: float) -> float:
        """Returns the tokens/s of prefill or, with more than one token, of decoding after the first."""
        if self.reads:
            return self.num_prompts * self.prompt / prefill_s
        return self.num_prompts * (self.gen - 1) / decode_s

    def prompts(self, vocab_size: int, source: random.Random) -> Prompts:
        return [random_prompt(self.prompt, vocab_size, source) for _ in range(self.num_prompts)]


BATCH = Workload("decode 8 x 128 after 16", 8, 16, 129)
WORKLOADS = (
    Workload("prefill 512", 1, 512, 1),
    Workload("prefill 2048", 1, 2048, 1),
    Workload("decode 128 after 16", 1, 16, 129),
    Workload("decode 128 after 4096", 1, 4096, 129),
    BATCH,
)
START_TO_FIRST_TOKEN = Workload("start to first token", 1, 16, 1)
PEAK_MEMORY = Workload("peak memory", 1, 512, 129)


@dataclass(frozen=True)
class Comparison:
    """Paired values of freedive and a peer; ``ratios`` are above 1 if freedive is better."""

    unit: str
    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours / theirs if self.unit == TOKENS_PER_S else theirs / ours for ours, theirs in pairs]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Returns median and range for a report."""
    return {**asdict(Spread.of(values)), "values": list(values)}
