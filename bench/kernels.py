"""Measures the speed of each kernel at every instruction-set level: python bench/kernels.py --quick --isa avx512

A kernel runs as in a model: as an operation of a native program with random weights, on all threads, with the
operations that prepare its input. Bytes are those of weights and of cached keys and values; TOPS count multiplications
and additions.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from workers import FOLDER

import freedive
from freedive import machine
from freedive.arrays import Bytes
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.packed import FORMATS
from freedive.checkpoint.tensor import Tensor
from freedive.checkpoint.weight_store import WeightStore, pack_model
from freedive.commands.trace import Answers, OperationSummary, average, bandwidth
from freedive.errors import UserError
from freedive.model import spec
from freedive.model.params import Param, params
from freedive.native import _native
from freedive.ops.native import NativeRunner
from freedive.ops.trace import Operation

STREAMED, RESIDENT = "linear by rows, weights from memory", "linear by rows, weights in cache, one thread"
ATTENTION, EXPERTS, ROWS = "attention", "experts by tokens", "rows of floats, one thread"

COMMON_FORMATS = ("BF16", "Q8_0", "Q4_0", "Q4_K", "Q6_K", "MXFP4", "I4G64")
"""The formats of a quick run."""

NOT_FOR_USE = ("scalar", "amx-emulated")
"""Levels that only serve as references in tests."""

LEAST_STEPS = 3
STEP_ROWS = 512
ATTENTION_LAYERS = 4
"""The number of layers, so that the keys and values of one evict those of another from the inner caches."""


@dataclass(frozen=True)
class Point:
    """A point of a case: the steps that compute positions ``start`` to ``start + length`` of the answers."""

    label: str
    answers: Answers
    start: int
    length: int

    @property
    def num_rows(self) -> int:
        return self.answers.count * self.length


@dataclass(frozen=True)
class Case:
    """A model whose operation ``kind`` is timed; ``format`` is that of the weights it reads."""

    kernel: str
    name: str
    model: spec.ModelSpec
    kind: str
    format: str
    num_threads: int
    points: tuple[Point, ...]


def empty_model(**changes: Any) -> spec.ModelSpec:
    """Returns a model without layers, whose embedding is also the head."""
    shape = {"vocab_size": 512, "hidden_dim": 64, "layers": (), "max_context": 1 << 16}
    return spec.ModelSpec(**{"family": "none", "norm_eps": 1e-6, "tied": True, **shape, **changes})


def linears(kernel: str, formats: Iterable[str], width: int, num_bytes: int, num_threads: int) -> Iterator[Case]:
    """Yields cases that time the head of a model without layers, for several numbers of rows, in every format."""
    points = tuple(Point(str(rows), Answers(rows, 1, 1), 0, 1) for rows in (1, 2, 4, 8, 16, 48))
    for format in formats:
        panel = _native.packed_bytes(FORMATS[format], 32, width)
        model = empty_model(hidden_dim=width, vocab_size=max(1, num_bytes // panel) * 32)
        yield Case(kernel, format, model, "head", format, num_threads, points)


ROPE = spec.Rope(64, tuple(10000.0 ** (-i / 32) for i in range(32)))
TINY_ATTENTION = spec.Attention(1, 1, 32, None, 0.2)
TINY_FFN = spec.FeedForward(32)

HEADS: dict[str, tuple[spec.Mixer, str]] = {
    "32 heads of 128 on 4": (spec.Attention(32, 4, 128, ROPE, 0.09), "attention"),
    "latent, 16 heads, 512 + 64": (spec.LatentAttention(16, 0, 512, 128, 64, 128, ROPE, 0.07), "latent_attention"),
}

MIXTURES = {
    "8 of 128 x 768": spec.Experts(spec.Router(128, 8), spec.FeedForward(768)),
    "6 of 64 x 1408": spec.Experts(spec.Router(64, 6), spec.FeedForward(1408)),
}


def attentions(contexts: Sequence[int], num_threads: int) -> Iterator[Case]:
    """Yields cases that time attention: one token after prompts of some length, and the last tokens of such prompts."""
    points = []
    for context in contexts:
        answers = Answers(1, context, 1)
        points.append(Point(f"write after {context}", answers, context, 1))
        points.append(Point(f"read to {context}", answers, context - STEP_ROWS, STEP_ROWS))
    for name, (attn, kind) in HEADS.items():
        model = empty_model(layers=(spec.Layer(attn, TINY_FFN),) * ATTENTION_LAYERS)
        yield Case(ATTENTION, name, model, kind, "F32", num_threads, tuple(points))


def experts(formats: Iterable[str], num_threads: int) -> Iterator[Case]:
    points = tuple(Point(str(rows), Answers(1, rows, 1), 0, rows) for rows in (1, 8, STEP_ROWS))
    for format in formats:
        for name, moe in MIXTURES.items():
            model = empty_model(hidden_dim=2048, layers=(spec.Layer(TINY_ATTENTION, moe),))
            yield Case(EXPERTS, f"{name}, {format}", model, "experts", format, num_threads, points)


def rows() -> Iterator[Case]:
    """Yields cases that time operations on rows of floats, whose bytes are counted here."""
    width, label = 4096, f"{STEP_ROWS} of 4096"
    whole, apart = Answers(1, STEP_ROWS, 1), Answers(STEP_ROWS, 1, 1)
    normed = empty_model(hidden_dim=width, layers=(spec.Layer(TINY_ATTENTION, TINY_FFN, post_norms=True),))
    yield Case(ROWS, "norm", normed, "rms_norm", "F32", 1, (Point(label, whole, 0, STEP_ROWS),))
    narrow = empty_model(hidden_dim=width, vocab_size=32)
    yield Case(ROWS, "norm, quantise, one panel", narrow, "head", "Q4_0", 1, (Point(label, apart, 0, 1),))


def random_weights(case: Case, num_threads: int) -> WeightStore:
    """Returns random weights: those that the timed operation reads in the case's format, the others as floats."""
    source = np.random.default_rng(0)
    timed = ".experts." if case.model.layers else "embed"
    tensors = {
        name: _random_tensor(name, param, case.format if timed in name else "F32", source)
        for name, param in params(case.model).items()
    }
    return pack_model(tensors, num_threads=num_threads)


def _random_tensor(name: str, param: Param, format: str, source: np.random.Generator) -> Tensor:
    *rows, width = param.shape
    if format == "F32":
        values = source.standard_normal((int(np.prod(rows)), width), np.float32) * np.float32(width**-0.5)
        return Tensor(name, param.shape, format, values.view(np.uint8))
    return Tensor(name, param.shape, format, random_blocks(format, rows[0], width, source))


def random_blocks(format: str, rows: int, width: int, source: np.random.Generator) -> Bytes:
    """Returns random blocks whose bytes are small positive numbers in any float format of a block's scales."""
    block, num_bytes = BLOCKS[format]
    data = np.frombuffer(source.bytes(rows * width // block * num_bytes), np.uint8)
    exponent = 0x60 if format == "MXFP4" else 0x20  # MXFP4 scales are powers of two from 2^-127 on, others half floats
    return (data & np.uint8(0x1F) | np.uint8(exponent)).reshape(rows, -1)


def timed(runner: NativeRunner, kind: str, point: Point, seconds: float) -> OperationSummary:
    """Times the operation in steps of new random tokens, for ``seconds``."""
    source = np.random.default_rng(0)
    steps: list[list[Operation]] = []
    began = time.monotonic()
    while len(steps) <= LEAST_STEPS or time.monotonic() - began < seconds:
        batch = point.answers.batch(point.start, point.length, source, runner.vocab_size)
        steps.append(runner.trace(batch)[1])
    (summary,) = (summary for summary in average(steps[1:]) if summary.kind == kind)
    return summary


def figures(case: Case, levels: Iterable[str], seconds: float) -> Iterator[dict[str, Any]]:
    """Yields the figures of every point of the case at every level, ready for JSON."""
    weights = random_weights(case, machine.physical_cores())
    pages = max(point.answers.num_pages for point in case.points)
    max_rows = max(point.num_rows for point in case.points)
    for level in levels:
        runner = NativeRunner(
            case.model, weights, num_threads=case.num_threads, max_rows=max_rows, num_pages=pages, isa=level
        )
        max((point.answers for point in case.points), key=lambda answers: answers.prompt).read(runner)
        for point in case.points:
            summary = timed(runner, case.kind, point, seconds)
            floats = summary.count * point.num_rows * case.model.hidden_dim
            read = 4 * floats if case.kernel == ROWS else summary.bytes
            yield {
                "kernel": case.kernel,
                "case": case.name,
                "isa": level,
                "threads": case.num_threads,
                "point": point.label,
                "seconds": summary.seconds / summary.count,
                "gb_per_s": read / summary.seconds / 1e9,
                "tops": summary.tops,
            }


def print_tables(report: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(f"{report['cpu']}, {report['threads']} threads, {report['bandwidth_gb_per_s']:.1f} GB/s from memory")
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for figure in report["figures"]:
        groups.setdefault((figure["kernel"], figure["isa"]), []).append(figure)
    for (kernel, level), found in groups.items():
        labels = list(dict.fromkeys(figure["point"] for figure in found))
        table = Table("", *labels, box=SIMPLE, padding=0)
        for case in dict.fromkeys(figure["case"] for figure in found):
            cells = {figure["point"]: _cell(figure) for figure in found if figure["case"] == case}
            table.add_row(case, *(cells[label] for label in labels))
        console.print(f"[bold]{kernel}, {level}: GB/s and TOPS[/]", table)


def _cell(figure: Mapping[str, Any]) -> str:
    return f"{figure['gb_per_s']:.1f} {figure['tops']:.2f}" if figure["tops"] else f"{figure['gb_per_s']:.1f}"


def cases(formats: Sequence[str], threads: int, megabytes: int, quick: bool) -> list[Case]:
    mixtures = [format for format in ("Q4_0", "Q8_0") if format in formats and not (quick and format == "Q8_0")]
    return [
        *linears(STREAMED, formats, 4096, megabytes << 20, threads),
        *linears(RESIDENT, formats, 2048, 1 << 19, 1),
        *attentions((STEP_ROWS,) if quick else (STEP_ROWS, 4096), threads),
        *experts(mixtures, threads),
        *rows(),
    ]


def main(
    isa: Annotated[list[str] | None, typer.Option(help="Levels; default: those for use.")] = None,
    format: Annotated[list[str] | None, typer.Option(help="Formats; default: all, or the common ones.")] = None,
    kernel: Annotated[str, typer.Option(help="Only kernels whose names begin so: linear, attention, ...")] = "",
    threads: Annotated[int | None, typer.Option(min=1, help="Default: the physical cores.")] = None,
    megabytes: Annotated[int, typer.Option(help="Weights that stream: several times what caches hold.")] = 128,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer formats, contexts and repeats.")] = False,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "results" / "kernels.json",
) -> None:
    """Measure the kernels."""
    count, levels = (
        threads or machine.physical_cores(),
        isa or [each for each in _native.isa_levels() if each not in NOT_FOR_USE],
    )
    formats = format or (COMMON_FORMATS if quick else tuple(FORMATS))
    if unknown := [each for each in formats if each not in FORMATS]:
        raise UserError(f"There is no format {unknown[0]}", f"Choose from {', '.join(FORMATS)}")
    chosen = [case for case in cases(formats, count, megabytes, quick) if case.kernel.startswith(kernel)]
    found: list[dict[str, Any]] = []
    with Progress(console=Console(stderr=True)) as bar:
        for case in bar.track(chosen, description="measuring"):
            found += figures(case, levels, 0.02 if quick else 0.05)
    report = {
        "cpu": machine.cpu_name(),
        "threads": count,
        "freedive": freedive.__version__,
        "bandwidth_gb_per_s": bandwidth(count),
        "figures": found,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    print_tables(report)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
