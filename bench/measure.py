"""Measures engines side by side: each in a process of its own, in interleaved rounds; the others sleep meanwhile."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engines import FAST, OURS
from workers import Worker
from workloads import (
    BATCH,
    MEGABYTES,
    PEAK_MEMORY,
    SECONDS,
    START_TO_FIRST_TOKEN,
    TOKENS_PER_S,
    WORKLOADS,
    Comparison,
    Workload,
)

from freedive.errors import UserError

STARTS = 3
"""The most new processes of each engine that are timed; one more comes first to warm the file cache."""


@dataclass
class Contestant:
    """An engine with one model; ``faults`` are the errors by workload."""

    name: str
    start: Callable[[], Worker]
    faults: dict[str, str] = field(default_factory=dict)
    worker: Worker | None = None

    def call(self, work: str, job: str, **arguments: Any) -> Any:
        """Calls the worker; returns None if it failed at this workload, now or before.

        Errors of freedive itself are raised.
        """
        if work in self.faults:
            return None
        try:
            self.worker = self.worker or self.start()
            return self.worker.call(job, **arguments)
        except UserError as error:
            if self.name == OURS:
                raise
            self.faults[work] = error.what
            self.end()
            return None

    def end(self) -> None:
        if self.worker:
            self.worker.__exit__()
        self.worker = None


@dataclass(frozen=True)
class Found:
    """The results of one group of engines: ``values`` by workload and engine, equally many in each workload.

    ``settings`` are those that an engine chose for a workload. ``unique_experts`` is the number of experts that a step
    of the batch read in a layer.
    """

    about: dict[str, dict[str, Any]]
    units: dict[str, str]
    values: dict[str, dict[str, list[float]]]
    settings: dict[str, dict[str, str]]
    unique_experts: float | None

    def comparisons(self, work: str) -> dict[str, Comparison]:
        """Returns the comparison of freedive with each peer."""
        values, unit = self.values[work], self.units[work]
        peers = [name for name in values if name not in (OURS, FAST)]
        return {name: Comparison(unit, values[OURS], values[name]) for name in peers}


def in_turns(names: Sequence[str], round: int) -> list[str]:
    """Reverses the order of the names every other round, so that a change of the machine's speed favours no engine."""
    return list(names if round % 2 == 0 else reversed(names))


def compete(
    contestants: Sequence[Contestant], rounds: int, deadline: float, source: random.Random, alone: bool
) -> Found | None:
    """Measures everything. The rounds end at the deadline (monotonic time); an engine that failed has its error in the
    report.

    If only freedive starts, nothing is measured, unless ``alone`` allows that.
    """
    about = {each.name: each.call("start", "about") for each in contestants}
    about = {name: said for name, said in about.items() if said}
    able = {each.name: each for each in contestants if each.name in about}
    if len(able) == 1 and not alone:
        able[OURS].end()
        return None
    vocab_size, room = (min(said[key] for said in about.values()) for key in ("vocab_size", "max_context"))
    works = [work for work in WORKLOADS if work.prompt + work.gen <= room]
    settings = _prepare(able, works, vocab_size, source)
    prompts = BATCH.prompts(vocab_size, source)
    unique = able[OURS].call(BATCH.name, "unique_experts", prompts=prompts, num_tokens=BATCH.gen)
    speeds = _speeds(able, works, vocab_size, source, rounds, deadline)
    for each in able.values():
        each.end()
    seconds, megabytes = _starts(able, vocab_size, source, min(rounds, STARTS), deadline)
    values = speeds | {START_TO_FIRST_TOKEN.name: seconds, PEAK_MEMORY.name: megabytes}
    units = {work.name: TOKENS_PER_S for work in works}
    units |= {START_TO_FIRST_TOKEN.name: SECONDS, PEAK_MEMORY.name: MEGABYTES}
    return Found(about, units, values, settings, unique)


SETTLE_S = 0.5
"""Pause before a measurement: threads of OpenMP, which some peers use, spin for 0.2 s after their engine's work."""

Able = Mapping[str, Contestant]
Values = dict[str, list[float]]


def _prepare(
    able: Able, works: Sequence[Workload], vocab_size: int, source: random.Random
) -> dict[str, dict[str, str]]:
    """Warms up all engines; returns the settings that each chose for each workload."""
    settings: dict[str, dict[str, str]] = {}
    for work in works:
        prompts = work.prompts(vocab_size, source)
        for name, each in able.items():
            if chosen := each.call(work.name, "prepare", prompts=prompts, num_tokens=work.gen):
                settings.setdefault(work.name, {})[name] = chosen
    return settings


def _speeds(
    able: Able, works: Sequence[Workload], vocab_size: int, source: random.Random, rounds: int, deadline: float
) -> dict[str, Values]:
    """Returns tokens/s by workload and engine."""
    values: dict[str, Values] = {work.name: {name: [] for name in able} for work in works}
    for round in range(rounds):
        began = time.monotonic()
        for work in works:
            prompts = work.prompts(vocab_size, source)
            for name in in_turns(list(able), round):
                time.sleep(SETTLE_S)
                if took := able[name].call(work.name, "generate", prompts=prompts, num_tokens=work.gen):
                    values[work.name][name].append(work.speed(*took))
        if 2 * time.monotonic() - began > deadline:
            break
    return {work: {n: got for n, got in found.items() if work not in able[n].faults} for work, found in values.items()}


def _starts(able: Able, vocab_size: int, source: random.Random, rounds: int, deadline: float) -> tuple[Values, Values]:
    """Returns the seconds to the first token and the peak memory in MB of new processes with warm files, for at least
    one round."""
    seconds: Values = {name: [] for name in able}
    megabytes: Values = {name: [] for name in able}
    for round in range(rounds + 1):
        short, long = (work.prompts(vocab_size, source) for work in (START_TO_FIRST_TOKEN, PEAK_MEMORY))
        for name in in_turns(list(able), round):
            start = time.perf_counter()
            if able[name].call(START_TO_FIRST_TOKEN.name, "generate", prompts=short, num_tokens=1):
                seconds[name].append(time.perf_counter() - start)
            if able[name].call(PEAK_MEMORY.name, "generate", prompts=long, num_tokens=PEAK_MEMORY.gen):
                megabytes[name].append(able[name].call(PEAK_MEMORY.name, "peak_memory") / 1e6)
            able[name].end()
        if round and time.monotonic() > deadline:
            break

    def measured(found: Values, work: Workload) -> Values:
        return {name: got[1:] for name, got in found.items() if work.name not in able[name].faults}

    return measured(seconds, START_TO_FIRST_TOKEN), measured(megabytes, PEAK_MEMORY)
