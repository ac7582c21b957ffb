"""Compares freedive with llama.cpp on models larger than memory: python bench/memory.py (Linux, as root)

Each start of an engine has a cgroup of its own, whose limit is a share of the model's file, and a disk without cached
files. llama.cpp maps its file. freedive gets a budget (FREEDIVE_MEMORY) that it may exceed by 5% within the limit, and
has packed its store before. Both read the same random weights, whose experts are chosen with equal frequencies (the
worst case of a cache), with those of Zipf's law or with recorded ones: see bench/routing.py. The engines take turns;
each round has other prompts. Prints tables of medians and ratios; writes them, a JSON file with every value, and a
picture.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from cgroup import memory_group
from disk import direct_speed, drop_caches, read_ahead
from engines import ENGINES, OURS, THEIRS, Engine
from measure import in_turns
from memory_report import PEAK, PLANNED, READ, draw, markdown, summary
from peers import QUIET_LOAD
from random_models import discard, layers_for, random_model
from routing import ROUTINGS, UNIFORM, ZIPF, top_share
from shapes import SHAPES, VOCAB
from workers import FOLDER, Worker
from workloads import BATCH, START_TO_FIRST_TOKEN, Prompts, Workload

from freedive import machine
from freedive.errors import UserError
from freedive.ops.native import isa_level

RACING = {OURS: ENGINES[OURS], THEIRS: replace(ENGINES[THEIRS], options=("mapped",))}

OVERRUN = 1.05
"""A budget of freedive is the limit of its cgroup over this, since it may exceed its budget by 5%."""

WARM_UP = Workload("warm-up", 1, 16, 33)
DECODE = Workload("decode 256 after 16", 1, 16, 257)
PREFILLS = Workload("prefill 512", 1, 512, 1), Workload("prefill 2048", 1, 2048, 1)

CONTEXT = 2304
"""Tokens of the key-value cache, enough for every workload and the same for all engines."""

PARTS = (0.1, 0.25, 0.5)
"""The most frequent parts of the experts whose share of all choices is reported."""


@dataclass(frozen=True)
class Usage:
    """What a worker has used since its start. ``hits`` and ``misses`` count experts, if the engine has a cache of
    them."""

    read_bytes: int
    major_faults: int
    hits: int
    misses: int

    @classmethod
    def of(cls, worker: Worker) -> Usage:
        traffic = worker.call("expert_traffic")  # first, since a worker may still be starting
        process = Path(f"/proc/{worker.process}")
        read = dict(line.split(": ") for line in (process / "io").read_text().splitlines())["read_bytes"]
        fields = (process / "stat").read_text().rpartition(")")[2].split()  # from the third field of proc(5) on
        return cls(int(read), int(fields[9]), *traffic)

    def since(self, earlier: Usage) -> Usage:
        return Usage(*(now - then for now, then in zip(_values(self), _values(earlier), strict=True)))


def _values(usage: Usage) -> tuple[int, ...]:
    return usage.read_bytes, usage.major_faults, usage.hits, usage.misses


def settings(budget: float) -> dict[str, str]:
    """Returns the settings of freedive with a budget in bytes, as environment variables."""
    return {"FREEDIVE_MEMORY": f"{int(budget / OVERRUN) >> 10}KiB", "FREEDIVE_CACHE_TOKENS": str(CONTEXT)}


def entry(engine: Engine, checkpoint: Path, threads: int, budget: float) -> tuple[object, ...]:
    """Returns the command of a worker with a budget in bytes."""
    given = (f"{name}={value}" for name, value in settings(budget).items())
    return "env", *given, *engine.command(checkpoint, threads)


def planned(checkpoint: Path, threads: int, budget: float, routing: str) -> dict[str, float]:
    """Returns what ``freedive plan`` predicts: for usual text if the routing is skewed, else for uniform routing."""
    given = settings(budget) | {"FREEDIVE_THREADS": str(threads)}
    command = [sys.executable, "-m", "freedive", "plan", str(checkpoint), "--json"]
    told = json.loads(subprocess.run(command, env=os.environ | given, capture_output=True, check=True).stdout)["speed"]
    speeds = {work.name: work.prompt / told["first_token_s"][str(work.prompt)] for work in PREFILLS}
    speeds[DECODE.name] = told["worst" if routing == UNIFORM else "usual"]
    return {f"{name}: {PLANNED}": speed for name, speed in speeds.items()}


def measure(
    engine: Engine, checkpoint: Path, threads: int, budget: int, prompts: Mapping[str, Prompts], seconds: float
) -> dict[str, float]:
    """Starts an engine with ``budget`` bytes of memory and no cached files; returns its values by row of the report.

    ``prompts`` are by workload. Decoding ends early if it would take more than about ``seconds``. Raises UserError if
    the engine ends before.
    """
    drop_caches()
    with memory_group(budget) as group:
        began = time.perf_counter()
        with Worker(*group.entering(*entry(engine, checkpoint, threads, budget))) as worker:
            first = START_TO_FIRST_TOKEN
            worker.call("generate", prompts=prompts[first.name], num_tokens=first.gen)
            values = {first.name: time.perf_counter() - began}
            _, took = worker.call("generate", prompts=prompts[WARM_UP.name], num_tokens=WARM_UP.gen)
            num_tokens = round((WARM_UP.gen - 1) * min(seconds / took, DECODE.gen / WARM_UP.gen))
            decode = replace(DECODE, gen=min(DECODE.gen, 2 + num_tokens))
            for work in (decode, *PREFILLS):
                values |= timed(worker, work, prompts[work.name])
        return values | {PEAK: group.peak / 1e6}


def timed(worker: Worker, work: Workload, prompts: Prompts) -> dict[str, float]:
    """Returns the speed of a workload, and what it used for each token that it prefilled or decoded.

    The reads of a decode's short prompt are spread over its tokens.
    """
    before = Usage.of(worker)
    speed = work.speed(*worker.call("generate", prompts=prompts, num_tokens=work.gen))
    used = Usage.of(worker).since(before)
    tokens = work.prompt if work.reads else work.gen - 1
    values = {
        work.name: speed,
        f"{work.name}: {READ}": used.read_bytes / 1e6 / tokens,
        f"{work.name}: major faults": used.major_faults / tokens,
    }
    if used.hits + used.misses:
        values[f"{work.name}: hits"] = used.hits / (used.hits + used.misses)
    return values


Values = dict[str, list[dict[str, float] | None]]
"""Engine -> its values in each round, None where it failed."""


def compete(
    path: Path,
    routing: str,
    engines: Sequence[str],
    threads: int,
    shares: Sequence[float],
    rounds: int,
    minutes: float,
    seconds: float,
) -> tuple[dict[float, Values], dict[float, dict[str, str]]]:
    """Measures the engines with each share of the file; returns their values and the faults of those that failed."""
    source, deadline = random.Random(0), time.monotonic() + 60 * minutes
    values: dict[float, Values] = {share: {name: [] for name in engines} for share in shares}
    faults: dict[float, dict[str, str]] = {share: {} for share in shares}
    works = START_TO_FIRST_TOKEN, WARM_UP, DECODE, *PREFILLS
    for round in range(rounds):
        began = time.monotonic()
        for share in shares:
            prompts = {work.name: work.prompts(VOCAB, source) for work in works}
            budget = int(share * path.stat().st_size)
            for name in in_turns(engines, round):
                got = None
                try:
                    got = measure(RACING[name], path, threads, budget, prompts, seconds)
                    got |= planned(path, threads, budget, routing) if name == OURS else {}
                except UserError as error:
                    faults[share][name] = error.what
                values[share][name].append(got)
                print(f"{path.name}, {share:.0%}, round {round}, {name}: {got or faults[share][name]}", file=sys.stderr)
        if 2 * time.monotonic() - began > deadline:
            break
    return values, faults


def choices(path: Path, threads: int, budget: float) -> tuple[dict[str, Any], dict[str, float]]:
    """Starts freedive for the first time with a model, outside a group; returns what it says of itself, and the share
    of all choices that the most frequent experts get."""
    with Worker(*entry(RACING[OURS], path, threads, budget)) as worker:
        about = worker.call("about")
        prompts = BATCH.prompts(VOCAB, random.Random(1))
        counts = worker.call("expert_counts", prompts=prompts, num_tokens=BATCH.gen)
    return about, {f"{part:.0%}": top_share(counts, part) for part in PARTS}


def main(
    models: Annotated[str, typer.Option(help=f"Of {', '.join(SHAPES)}.")] = "qwen3-moe,gpt-oss",
    routings: Annotated[str, typer.Option(help=f"Of {', '.join(ROUTINGS)}.")] = f"{UNIFORM},{ZIPF}",
    gigabytes: Annotated[float, typer.Option(help="Of each model's file.")] = 6,
    budgets: Annotated[str, typer.Option(help="Shares of the file.")] = "0.75,0.5,0.25",
    engines: Annotated[str, typer.Option(help=f"Of {', '.join(RACING)}.")] = ",".join(RACING),
    threads: Annotated[int | None, typer.Option(min=1, help="Of each engine; default: the physical cores.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Most rounds.")] = 3,
    minutes: Annotated[float, typer.Option(help="No round of a model begins that would end later than this.")] = 30,
    seconds: Annotated[float, typer.Option(help="A slower decode has fewer tokens than 256.")] = 60,
    ahead: Annotated[
        int, typer.Option("--read-ahead", help="KiB that the disk reads around a fault; 0 keeps the system's setting.")
    ] = 128,
    tidy: Annotated[bool, typer.Option("--tidy", help="Delete each model once it is measured.")] = False,
    name: Annotated[
        str, typer.Option(help="Of docs/NAME.md and .png, and results/NAME.json; default: memory-LEVEL.")
    ] = "",
) -> None:
    """Compare freedive with llama.cpp where memory is a share of the model."""
    threads, load = threads or machine.physical_cores(), os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(
            f"The machine is busy (load {load:.1f}): times will be wrong, those of spinning threads most",
            file=sys.stderr,
        )
    shares, racing = [float(share) for share in budgets.split(",")], engines.split(",")
    name = name or f"memory-{isa_level()}"
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        "cpu": machine.cpu_name(),
        "threads": threads,
        "read_ahead_kib": ahead,
        "load_before": load,
        "models": {},
    }
    output = FOLDER / "results" / f"{name}.json"
    for model in models.split(","):
        for routing in routings.split(","):
            format = SHAPES[model].formats[0]
            path = random_model(model, format, layers_for(model, format, 1e9 * gigabytes), routing)
            size = path.stat().st_size
            about, tops = choices(path, threads, max(shares) * size)
            with read_ahead(path, ahead):
                values, faults = compete(path, routing, racing, threads, shares, rounds, minutes, seconds)
            report["models"][f"{model} {format} {routing}"] = {
                "file_bytes": size,
                "freedive": about,
                "top_shares": tops,
                "disk_bytes_per_s": direct_speed(path),
                "budgets": {f"{share:.0%}": summary(values[share], faults[share]) for share in shares},
            }
            output.write_text(json.dumps(report, indent=2) + "\n")
            if tidy:
                discard(model)
    text = markdown(report)
    print(text)
    (FOLDER.parent / "docs" / f"{name}.md").write_text(text)
    draw(report, FOLDER.parent / "docs" / f"{name}.png")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the disk's setting and the group do not remain
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
