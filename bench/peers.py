"""Compares freedive with other engines on the same models and threads, interleaved: python bench/peers.py

Engines that read the GGUF file stay loaded together. An engine that needs another form (16-bit floats, or a 4-bit
format of its own) is measured in a pair with freedive, on the first format of a model. `--help` lists the options.
Writes a table, a JSON file with every value, and a picture.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import date
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer
from engines import ENGINES, GGUF, OURS, Engine
from measure import Contestant, Found, compete
from picture import draw
from random_models import discard, random_model
from report import accuracy, markdown, print_tables, summary
from roofline import Limits, cost
from shapes import SHAPES
from workers import FOLDER
from workloads import TOKENS_PER_S

from freedive import machine
from freedive.checkpoint.open import open_checkpoint
from freedive.errors import UserError
from freedive.families import describe
from freedive.hub.sources import resolve
from freedive.native import _native
from freedive.ops.native import isa_level

MODELS = (*SHAPES, "smollm2")

QUALITY = FOLDER / "results" / "quality.json"
"""The results of bench/quality.py: speed is not shown without accuracy."""

QUIET_LOAD = 0.5
"""The load average below which figures are reliable: a busy machine slows engines with spinning threads the most."""

LEFT_BEHIND = 0.5
"""An engine with a form of its own that never reached this share of freedive's speed is not measured with further
models: the slowest would take most of the time.

The same applies if its form could not be made or read.
"""


def groups(engines: Sequence[Engine]) -> list[list[Engine]]:
    """Returns the engines that are loaded together: all that read the GGUF file, and each of the others with freedive.

    The engine that needs the most memory is loaded first.
    """
    others = [engine for engine in engines if engine.form != GGUF]
    return [[engine for engine in engines if engine.form == GGUF], *([other, ENGINES[OURS]] for other in others)]


def examine(
    model: str, path: Path, engines: Sequence[Engine], threads: int, rounds: int, minutes: float
) -> dict[str, Any]:
    """Measures everything with one file; returns a report for JSON."""
    spec, _ = describe(open_checkpoint(path))
    source, limits = random.Random(0), Limits.measured(threads)
    founds: list[Found] = []
    faults: dict[str, dict[str, str]] = {}
    costs = {}
    for group in groups(engines):
        contestants = []
        for engine in group:
            try:
                checkpoint = engine.checkpoint(model, path)
            except UserError as error:
                faults[engine.name] = {"start": error.what}
                continue
            costs[engine.name] = cost(checkpoint, spec)
            contestants.append(Contestant(engine.name, partial(engine.start, checkpoint, threads)))
        found = compete(contestants, rounds, time.monotonic() + 60 * minutes, source, alone=not founds)
        founds += [found] if found else []
        faults |= {each.name: each.faults for each in contestants if each.faults}
    return summary(spec, founds, costs, limits) | {"faults": faults, "file_bytes": path.stat().st_size}


def left_behind(measured: Mapping[str, Any]) -> dict[str, str]:
    """Returns the engines that are not measured again, with the reason, from the models measured so far."""
    reasons = {}
    for model, found in ((title, found) for title, found in measured.items() if title.split()[0] in SHAPES):
        speeds = [row for row in found["results"].values() if row["unit"] == TOKENS_PER_S]
        for name in (each for each, engine in ENGINES.items() if engine.form != GGUF):
            shares = [1 / row["ratios"][name]["median"] for row in speeds if name in row["ratios"]]
            if "start" in found["faults"].get(name, {}):
                reasons[name] = f"left out, since it did not start with {model}"
            elif shares and max(shares) < LEFT_BEHIND:
                reasons[name] = f"left out, since with {model} it has at most {max(shares):.0%} of freedive's speed"
    return reasons


def main(
    models: Annotated[
        str, typer.Option(help=f"Of {', '.join(SHAPES)}; or names, addresses, paths of GGUF models.")
    ] = ",".join(MODELS),
    formats: Annotated[str, typer.Option(help="Of the models with random weights; all by default.")] = "",
    engines: Annotated[str, typer.Option(help=f"Of {', '.join(ENGINES)}; freedive is always there.")] = ",".join(
        ENGINES
    ),
    threads: Annotated[int | None, typer.Option(min=1, help="Of each engine; default: the physical cores.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Most rounds.")] = 7,
    minutes: Annotated[float, typer.Option(help="No round of a group begins that would end later than this.")] = 4,
    tidy: Annotated[bool, typer.Option("--tidy", help="Delete what was made of a model once it is measured.")] = False,
    name: Annotated[
        str, typer.Option(help="Of docs/NAME.md and .png, and results/NAME.json; default: peers-LEVEL of the kernels.")
    ] = "",
) -> None:
    """Compare freedive with its peers. A run that was stopped continues after the last model that it had finished."""
    chosen = [_engine(name) for name in dict.fromkeys([OURS, *_listed(engines)])]
    threads, load = threads or machine.physical_cores(), os.getloadavg()[0]
    if load > QUIET_LOAD:
        print(f"The machine is busy (load {load:.1f}): figures will be wrong, and late", file=sys.stderr)
    kernels = sha256(Path(_native.__file__).read_bytes()).hexdigest()[:12]
    conditions = {"cpu": machine.cpu_name(), "threads": threads, "python": sys.version.split()[0], "kernels": kernels}
    name = name or f"peers-{isa_level()}"
    tables, picture = (FOLDER.parent / "docs" / f"{name}.{kind}" for kind in ("md", "png"))
    output, so_far = FOLDER / "results" / f"{name}.json", FOLDER.parent / "build" / f"{name}.json"
    report: dict[str, Any] = {
        "date": date.today().isoformat(),
        **conditions,
        "load_before": load,
        "models": _measured(so_far, conditions),
    }
    so_far.parent.mkdir(exist_ok=True)
    for model in _listed(models):
        for index, format in enumerate(_formats(model, formats)):
            title = f"{model} {format}".strip()
            if title in report["models"]:
                continue
            path = random_model(model, format) if format else resolve(model)
            entered = [engine for engine in chosen if index == 0 or engine.form == GGUF]
            out = left_behind(report["models"])
            racing = [engine for engine in entered if engine.name not in out]
            report["models"][title] = found = examine(model, path, racing, threads, rounds, minutes)
            found["faults"] |= {e.name: {"take part": out[e.name]} for e in entered if e.name in out}
            so_far.write_text(json.dumps(report, indent=2) + "\n")
            if tidy and format:
                discard(model)
    so_far.replace(output)
    print_tables(report)
    draw(report, picture)
    tables.write_text(markdown(report) + accuracy(json.loads(QUALITY.read_text())))


def _measured(so_far: Path, conditions: dict[str, Any]) -> dict[str, Any]:
    """Returns the models that a stopped run under the same conditions had finished."""
    earlier = json.loads(so_far.read_text()) if so_far.exists() else {}
    return dict(earlier["models"]) if conditions.items() <= earlier.items() else {}


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _formats(model: str, wanted: str) -> list[str]:
    """Returns the formats ``wanted`` of a model with random weights; another model has one format, without a name."""
    if model not in SHAPES:
        return [""]
    return [format for format in SHAPES[model].formats if not wanted or format in _listed(wanted)]


def _engine(name: str) -> Engine:
    if name not in ENGINES:
        raise UserError(f"There is no engine {name!r}", f"Choose one of {', '.join(ENGINES)}")
    return ENGINES[name]


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
