"""``freedive doctor``: reports the processor, memory and packages of this machine."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections import defaultdict
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, distribution, requires
from pathlib import Path
from typing import Annotated, Any

import typer

import freedive
from freedive import __version__, machine
from freedive.commands import trace as tracing
from freedive.commands.formatting import print_facts, size_text
from freedive.errors import UserError
from freedive.hub import cache
from freedive.native import _native
from freedive.ops.memory_plan import default_budget
from freedive.ops.native import isa_level

FEATURES = (
    *("avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16"),
    *("amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)
"""Processor features that kernels can use, by their Linux names."""

TRACED = tracing.Answers(1, 128, 32), tracing.Answers(8, 16, 32)
"""The workloads of ``--trace``, small enough to take a second or two."""


def doctor(
    trace: Annotated[bool, typer.Option(help="Measure too where the smallest model here spends its time.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    report = examine()
    steps = _traced() if trace else {}
    if as_json:
        shown = {"steps": {title: tracing.as_json(summaries) for title, summaries in steps.items()}} if trace else {}
        print(json.dumps(report | shown, indent=2))
    else:
        print_facts(_lines(report))
        tracing.print_tables(steps, report["bandwidth"][report["threads"]])
    if report["isa"] not in report["isa_levels"]:
        raise UserError(
            f"FREEDIVE_ISA is {report['isa']!r}, which this machine does not have",
            f"Unset it, or choose one of {', '.join(report['isa_levels'])}",
        )


def examine() -> dict[str, Any]:
    """Returns all facts that the command prints: sizes in bytes, bandwidths in GB/s by the number of threads."""
    threads = machine.physical_cores()
    levels = _native.isa_levels()
    home = cache.home()
    return {
        "freedive": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": machine.cpu_name(),
        "logical_cpus": os.cpu_count(),
        "threads": threads,
        "features": _features(),
        "isa_levels": levels,
        "isa": isa_level(),
        "memory_total": machine.total_memory(),
        "memory_available": machine.available_memory(),
        "memory_budget": default_budget(machine.available_memory()),
        "bandwidth": {n: round(tracing.bandwidth(n), 1) for n in sorted({1, threads})},
        "cache": str(home),
        "disk_free": shutil.disk_usage(next(folder for folder in (home, *home.parents) if folder.exists())).free,
        "models": {model.ref: model.size for model in cache.stored()},
        "packed_stores": {path.name: path.stat().st_size for path in sorted(home.glob("packed/*/*.fdv"))},
        "extras": _extras(),
    }


def _traced() -> dict[str, list[tracing.OperationSummary]]:
    """Traces the steps of the smallest model in the cache."""
    if not (models := cache.stored()):
        raise UserError("There is no model here to trace", "Fetch one: freedive pull smollm2")
    smallest = min(models, key=lambda model: model.size)
    with freedive.load(str(smallest.path)) as loaded:
        loaded.close()
        return tracing.measure(loaded.runner, *TRACED, repeats=2)


def _features() -> list[str]:
    """Returns those of FEATURES that the processor has, or none if the system does not list them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    present = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return [name for name in FEATURES if present and name in present[1].split()]


def _extras() -> dict[str, list[str]]:
    """Returns the missing packages of each of freedive's extras."""
    missing: defaultdict[str, list[str]] = defaultdict(list)
    for requirement in _requirements():
        if extra := re.search(r"extra == [\"']([\w-]+)", requirement):
            missing[extra[1]] += [name for name in re.findall(r"^[\w.-]+", requirement) if not _installed(name)]
    return dict(missing)


def _requirements() -> Iterable[str]:
    try:
        return requires("freedive") or []
    except PackageNotFoundError:  # run from a source tree that is not installed
        return []


def _installed(package: str) -> bool:
    try:
        distribution(package)
    except PackageNotFoundError:
        return False
    return True


def _lines(report: Mapping[str, Any]) -> dict[str, str]:
    sizes = {name: sum(report[name].values()) for name in ("models", "packed_stores")}
    return {
        "freedive": f"{report['freedive']}, Python {report['python']}, {report['system']}",
        "processor": f"{report['cpu']}, {report['logical_cpus']} logical processors",
        "threads": f"{report['threads']} (physical cores that this process may use)",
        "features": " ".join(report["features"]) or "unknown",
        "kernels": f"{report['isa']} (of {', '.join(report['isa_levels'])}; FREEDIVE_ISA chooses)",
        "memory": f"{size_text(report['memory_available'])} available of {size_text(report['memory_total'])}; "
        f"a model may take {size_text(report['memory_budget'])} (--memory)",
        "bandwidth": ", ".join(
            f"{speed:g} GB/s read by {_count(n, 'thread')}" for n, speed in report["bandwidth"].items()
        ),
        "cache": f"{report['cache']}, {size_text(report['disk_free'])} free on its disk",
        "models": f"{len(report['models'])}, {size_text(sizes['models'])}",
        "packed stores": f"{len(report['packed_stores'])}, {size_text(sizes['packed_stores'])}",
    } | {
        f"extra [{name}]": f"lacks {', '.join(missing)}" if missing else "installed"
        for name, missing in report["extras"].items()
    }


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
