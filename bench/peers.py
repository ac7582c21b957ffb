"""freedive and llama.cpp on the same file with the same threads, in turns: python bench/peers.py --model smollm2

Each engine lives in a process of its own and sleeps while the other works. A round does every workload once with each.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from workers import FOLDER, Worker, peer_python, start_freedive, start_llama

import freedive
from freedive import machine
from freedive.commands.bench import Spread, random_prompt, readable
from freedive.errors import UserError
from freedive.hub.sources import resolve

OURS, THEIRS = "freedive", "llama.cpp"
TOKENS_PER_S, SECONDS, MEGABYTES = "tokens/s", "s", "MB"

STARTS = 5
"""New processes of each engine to time; one more of each comes first and only warms the file cache."""

QUIET_LOAD = 0.5
"""Load average below which figures can be trusted: spinning threads suffer most from a busy machine, and unequally."""


@dataclass(frozen=True)
class Workload:
    """``num_prompts`` prompts of ``prompt`` tokens, answered side by side with ``gen`` tokens each; 1 only reads."""

    name: str
    num_prompts: int
    prompt: int
    gen: int

    def speed(self, prefill_s: float, decode_s: float) -> float:
        """Tokens/s read or, where more than one is written, written after the first."""
        if self.gen == 1:
            return self.num_prompts * self.prompt / prefill_s
        return self.num_prompts * (self.gen - 1) / decode_s


WORKLOADS = (
    Workload("prefill 512", 1, 512, 1),
    Workload("prefill 2048", 1, 2048, 1),
    Workload("decode 128 after 16", 1, 16, 129),
    Workload("decode 128 after 512", 1, 512, 129),
    Workload("decode 8 x 128 after 16", 8, 16, 129),
)
START_TO_FIRST_TOKEN = Workload("start to first token", 1, 16, 1)
PEAK_MEMORY = Workload("peak memory", 1, 512, 129)


@dataclass(frozen=True)
class Comparison:
    """Values of both engines, measured in pairs. ``ratios``: how many times better freedive is."""

    unit: str
    ours: list[float]
    theirs: list[float]

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.ours, self.theirs, strict=True)
        return [ours / theirs if self.unit == TOKENS_PER_S else theirs / ours for ours, theirs in pairs]

    def report(self) -> dict[str, Any]:
        """Values, medians and spreads."""
        columns = {OURS: self.ours, THEIRS: self.theirs, "ratio": self.ratios}
        return {"unit": self.unit} | {
            name: asdict(Spread.of(values)) | {"values": values} for name, values in columns.items()
        }


Starters = Mapping[str, Callable[[], Worker]]
Prompts = list[list[int]]


def in_turns(names: Sequence[str], round: int) -> list[str]:
    """Who goes first alternates, so that a machine that speeds up or slows down favours nobody."""
    return list(names if round % 2 == 0 else reversed(names))


def prompts_for(work: Workload, vocab_size: int, source: random.Random) -> Prompts:
    return [random_prompt(work.prompt, vocab_size, source) for _ in range(work.num_prompts)]


def measure_starts(starters: Starters, vocab_size: int, source: random.Random) -> dict[str, Comparison]:
    """Start to first token and peak memory, in new processes with warm files."""
    seconds: dict[str, list[float]] = {name: [] for name in starters}
    megabytes: dict[str, list[float]] = {name: [] for name in starters}
    for round in range(STARTS + 1):
        short, long = (prompts_for(work, vocab_size, source) for work in (START_TO_FIRST_TOKEN, PEAK_MEMORY))
        for name in in_turns(list(starters), round):
            start = time.perf_counter()
            with starters[name]() as worker:
                worker.call("generate", prompts=short, num_tokens=START_TO_FIRST_TOKEN.gen)
                seconds[name].append(time.perf_counter() - start)
                worker.call("generate", prompts=long, num_tokens=PEAK_MEMORY.gen)
                megabytes[name].append(worker.call("peak_memory") / 1e6)
    return {
        START_TO_FIRST_TOKEN.name: Comparison(SECONDS, seconds[OURS][1:], seconds[THEIRS][1:]),
        PEAK_MEMORY.name: Comparison(MEGABYTES, megabytes[OURS][1:], megabytes[THEIRS][1:]),
    }


def measure_speeds(
    workers: Mapping[str, Worker],
    works: Sequence[Workload],
    vocab_size: int,
    source: random.Random,
    rounds: int,
    deadline: float,
) -> tuple[dict[str, Comparison], dict[str, str]]:
    """Speeds in every workload, and the settings that llama.cpp is fastest with. The rounds end at the deadline."""
    values: dict[str, dict[str, list[float]]] = {work.name: {name: [] for name in workers} for work in works}
    settings = {}
    for work in works:
        prompts = prompts_for(work, vocab_size, source)
        chosen = {
            name: worker.call("prepare", prompts=prompts, num_tokens=work.gen) for name, worker in workers.items()
        }
        settings[work.name] = chosen[THEIRS]
    for round in range(rounds):
        began = time.monotonic()
        for work in works:
            prompts = prompts_for(work, vocab_size, source)
            for name in in_turns(list(workers), round):
                took = workers[name].call("generate", prompts=prompts, num_tokens=work.gen)
                values[work.name][name].append(work.speed(*took))
        if 2 * time.monotonic() - began > deadline:
            break
    comparisons = {name: Comparison(TOKENS_PER_S, found[OURS], found[THEIRS]) for name, found in values.items()}
    return comparisons, settings


def compare(path: Path, threads: int, python: Path, rounds: int, deadline: float) -> dict[str, Any]:
    """Everything measured, ready for JSON."""
    starters = {OURS: lambda: start_freedive(path, threads), THEIRS: lambda: start_llama(path, threads, python)}
    source = random.Random(0)
    with starters[OURS]() as ours, starters[THEIRS]() as theirs:
        about = {OURS: ours.call("about"), THEIRS: theirs.call("about")}
        vocab_size, room = (min(each[key] for each in about.values()) for key in ("vocab_size", "max_context"))
        works = [work for work in WORKLOADS if work.prompt + work.gen <= room]
        speeds, settings = measure_speeds({OURS: ours, THEIRS: theirs}, works, vocab_size, source, rounds, deadline)
    results = speeds | measure_starts(starters, vocab_size, source)
    return {
        "cpu": machine.cpu_name(),
        "threads": threads,
        "python": sys.version.split()[0],
        "engines": about,
        "llama.cpp settings": settings,
        "results": {name: comparison.report() for name, comparison in results.items()},
    }


def print_table(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", "", OURS, THEIRS, "ratio")
    for name, row in report["results"].items():
        table.add_row(name, row["unit"], _text(row[OURS]), _text(row[THEIRS]), _text(row["ratio"]))
    console = Console(highlight=False)
    console.print(
        f"{report['model']} on {report['cpu']}, {report['threads']} threads, load {report['load_before']:.1f} before; "
        "median (lowest-highest)"
    )
    for engine, about in report["engines"].items():
        console.print(f"{engine}: {about['version']}, {about['settings']}")
    console.print(table)


def _text(spread: Mapping[str, float]) -> str:
    return f"{readable(spread['median'])} ({readable(spread['low'])}-{readable(spread['high'])})"


def draw(report: Mapping[str, Any], file: Path) -> None:
    """A picture of the ratios with their spread."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("A picture needs matplotlib", "Install it: pip install matplotlib") from None

    names = list(report["results"])
    spreads = [report["results"][name]["ratio"] for name in names]
    medians = [spread["median"] for spread in spreads]
    reach = [[s["median"] - s["low"] for s in spreads], [s["high"] - s["median"] for s in spreads]]
    figure = Figure(figsize=(8, 0.5 * len(names) + 1.4), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{name}: {median:.2f}" for name, median in zip(names, medians, strict=True)]
    axes.barh(labels, medians, xerr=reach, capsize=3, color="#3b7dd8")
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel(f"times better than llama.cpp: median, lowest and highest ({report['threads']} threads)")
    axes.set_title(f"{report['model']} on {report['cpu']}")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=150)


def main(
    model: Annotated[str, typer.Option(help="A name or address of a GGUF model, or a path.")] = "smollm2",
    threads: Annotated[int | None, typer.Option(min=1, help="Of each engine; default: the physical cores.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Most rounds.")] = 9,
    minutes: Annotated[float, typer.Option(help="No round begins that would end later than this.")] = 5,
    peer: Annotated[Path | None, typer.Option("--peer-python", help="The Python that has llama-cpp-python.")] = None,
    picture: Annotated[Path | None, typer.Option(help="Draw the ratios into this file (PNG or SVG).")] = None,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "results" / "peers.json",
) -> None:
    """Compare freedive with llama.cpp."""
    deadline, load = time.monotonic() + 60 * minutes, os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(f"The machine is busy (load {load:.1f}): figures will be wrong, and late", file=sys.stderr)
    python, path = peer_python(peer), resolve(model)
    freedive.load(str(path)).close()  # packs the weights, if that is still to do
    found = compare(path, threads or machine.physical_cores(), python, rounds, deadline)
    report = {"model": model, "load_before": load} | found
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    print_table(report)
    if picture:
        draw(report, picture)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
