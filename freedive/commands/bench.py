"""``freedive bench MODEL``: measures the speed of a model on this machine, with the engine that the server uses."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import freedive
from freedive import machine
from freedive.commands import trace as tracing
from freedive.commands.flags import Reference, Values, settings
from freedive.commands.formatting import size_text
from freedive.commands.timing import Spread, generate, random_prompt, readable
from freedive.config import EngineConfig, load, settings_text, variable
from freedive.engine.context_limits import ContextLimits
from freedive.engine.sampling import Sampling
from freedive.errors import UserError

if TYPE_CHECKING:
    from freedive.api import LanguageModel
    from freedive.ops.paging import ExpertTraffic

BATCH_PROMPT = 16
"""Tokens of each prompt in the measurement of many answers at once."""

ROWS = {
    "prefill_tokens_per_s": "reading {prompt} tokens, tokens/s",
    "decode_tokens_per_s": "writing {gen} tokens after them, tokens/s",
    "batch_decode_tokens_per_s": "writing {batch} answers at once, tokens/s in all",
    "first_token_s": "first token of an answer to {prompt} tokens, s",
    "startup_s": "new process to first token, s",
}
"""The results by name, with their titles in the table."""

ON_DISK = {
    "hit_rate": "experts found in memory, %",
    "read_mib_per_token": "experts read from disk, MiB a token",
    "stall_ms_per_token": "waiting for the disk, ms a token",
}
"""What experts that stay on disk cost while a prompt is read (``prefill_``) and an answer is written (``decode_``)."""

PHASES = {"prefill": "reading", "decode": "writing"}


def startup_s(model: str, config: EngineConfig) -> float:
    """Measures the seconds that a new ``freedive run`` takes to its first output."""
    given = {variable(name): str(value) for name, value in asdict(config).items() if value is not None}
    command = [
        sys.executable,
        "-m",
        "freedive",
        "run",
        model,
        "Hello",
        "--raw",
        "--temperature",
        "0",
        "--max-tokens",
        "1",
    ]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=os.environ | given) as process:
        assert process.stdout
        process.stdout.read(1)
        seconds = time.perf_counter() - start
        process.stdout.read()
    if process.returncode:
        raise UserError("A new process could not run the model", "See its message above")
    return seconds


def conditions(model: LanguageModel, config: EngineConfig) -> dict[str, Any]:
    """Returns the conditions of the measurement; accepted draft tokens make decoding faster than one token per step."""
    stats = model.engine.stats()
    return {
        "cpu": machine.cpu_name(),
        "isa": model.runner.isa,
        "threads": config.threads or machine.physical_cores(),
        "speculation": config.speculation,
        "lossy": model.lossy,
        "guesses": {"checked": stats.num_drafted, "right": stats.num_accepted},
        "freedive": freedive.__version__,
        "python": sys.version.split()[0],
    }


@settings(engine=EngineConfig)
def bench(
    model: Reference,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens to read.")] = 512,
    gen: Annotated[int, typer.Option(min=2, help="Tokens to write.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Answers to write at once.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Times that each measurement is made.")] = 5,
    trace: Annotated[bool, typer.Option(help="Measure where a step's time goes instead.")] = False,
    picture: Annotated[Path | None, typer.Option(help="Draw the trace into this file (PNG or SVG).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    *,
    engine: Values,
) -> None:
    config = load(EngineConfig, engine)
    config = replace(config, max_batch=max(config.max_batch, batch), prefix_cache=False)
    workload = {"prompt": prompt, "gen": gen, "batch": batch, "batch_prompt": BATCH_PROMPT, "repeats": repeats}
    if trace or picture:
        _trace(model, config, workload, picture, as_json)
        return
    with freedive.load(model, **asdict(config)) as loaded:
        found = _throughput(loaded, prompt, gen, batch, repeats)
        under = conditions(loaded, config)
    peak = machine.peak_memory()
    found["startup_s"] = [startup_s(model, config) for _ in range(repeats + 1)][1:]
    report = {
        "model": model,
        "conditions": under,
        "workload": workload,
        "results": {name: asdict(Spread.of(values)) for name, values in found.items()},
        "peak_memory_bytes": peak,
    }
    if as_json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)


def _throughput(model: LanguageModel, prompt: int, gen: int, batch: int, repeats: int) -> dict[str, list[float]]:
    """Returns the results of every repeat, without those of a warm-up."""
    source = random.Random(0)
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats + 1):
        one = generate(model, [random_prompt(prompt, model.runner.vocab_size, source)], gen)
        prompts = [random_prompt(BATCH_PROMPT, model.runner.vocab_size, source) for _ in range(batch)]
        many = generate(model, prompts, gen)
        figures = {
            "prefill_tokens_per_s": prompt / one.prefill_s,
            "decode_tokens_per_s": (gen - 1) / one.decode_s,
            "batch_decode_tokens_per_s": batch * (gen - 1) / many.decode_s,
            "first_token_s": one.first_token_s,
        }
        for phase, count, traffic in zip(PHASES, (prompt, gen - 1), one.traffic or (), strict=False):
            figures |= {f"{phase}_{name}": figure for name, figure in _on_disk(traffic, count).items()}
        for name, figure in figures.items():
            found[name].append(figure)
    return {name: values[1:] for name, values in found.items()}


def _on_disk(traffic: ExpertTraffic, num_tokens: int) -> dict[str, float]:
    """Returns the figures of :data:`ON_DISK`."""
    figures = traffic.hit_rate, traffic.read_bytes / (num_tokens << 20), 1e3 * traffic.stalled_s / num_tokens
    return dict(zip(ON_DISK, figures, strict=True))


def _trace(name: str, config: EngineConfig, workload: Mapping[str, int], picture: Path | None, as_json: bool) -> None:
    one = tracing.Answers(1, workload["prompt"], workload["gen"])
    many = tracing.Answers(workload["batch"], workload["batch_prompt"], workload["gen"])
    with freedive.load(name, **asdict(config)) as loaded:
        ContextLimits.of(loaded.runner, config).max_length([0] * one.prompt, Sampling(max_tokens=one.gen))
        loaded.close()  # the engine thread has ended, so this thread may use the runner
        under = conditions(loaded, config)
        steps = tracing.measure(loaded.runner, one, many, workload["repeats"])
    bandwidth = tracing.bandwidth(under["threads"])
    if picture:
        tracing.draw(_title(name, under), steps, picture)
    if as_json:
        report = {
            "model": name,
            "conditions": under | {"bandwidth_gb_per_s": bandwidth},
            "workload": workload,
            "steps": {title: tracing.as_json(summaries) for title, summaries in steps.items()},
        }
        print(json.dumps(report, indent=2))
    else:
        print(_title(name, under))
        tracing.print_tables(steps, bandwidth)


def _title(model: str, under: Mapping[str, Any]) -> str:
    return (
        f"{model} on {under['cpu']}, {under['isa']} kernels, {under['threads']} threads, "
        f"freedive {under['freedive']}, Python {under['python']}"
        + (f"; lossy: {settings_text(under['lossy'])}" if under["lossy"] else "")
    )


def _print(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table, results = Table("", "median", "lowest", "highest"), report["results"]
    on_disk = {f"{phase}_{name}": f"{word}: {text}" for phase, word in PHASES.items() for name, text in ON_DISK.items()}
    for name, text in (ROWS | on_disk).items():
        if name in results:
            factor = 100 if name.endswith("hit_rate") else 1
            figures = (readable(factor * results[name][key]) for key in ("median", "low", "high"))
            table.add_row(text.format(**report["workload"]), *figures)
    table.add_row("peak memory", size_text(report["peak_memory_bytes"]))
    console = Console()
    console.print(_title(report["model"], report["conditions"]), highlight=False)
    console.print(table)
