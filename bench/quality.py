"""Measures how far next-token distributions are from exact ones: python bench/quality.py --model smollm2

The reference is transformers in float32 on the dequantised weights of the same GGUF. freedive's kernels and llama.cpp
are compared with it at every position of the prompts in prompts.json. Fails if freedive exceeds the bounds below or is
farther from the reference than llama.cpp.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from workers import FOLDER, Worker, peer_python, start_llama

import freedive
from freedive import machine
from freedive.arrays import Floats
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.packed import LAYOUT
from freedive.checkpoint.weight_store import open_store
from freedive.engine.kvcache import pages_for
from freedive.errors import UserError
from freedive.families import describe
from freedive.hub.cache import packed_path
from freedive.hub.sources import resolve
from freedive.model.batch import Batch
from freedive.ops.native import NativeRunner
from freedive.text.tokenizer import Tokenizer

PRECISIONS = ("exact", "balanced", "fast")
MAX_MEAN_KL = 5e-3
MIN_TOP1 = 0.97

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Closeness:
    """``kl`` [positions]: KL(reference || other) in nats.

    ``same`` [positions]: whether both have the same top token.
    """

    kl: Doubles
    same: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, reference: Floats, other: Floats) -> Closeness:
        """Compares logits [positions, vocab_size]."""
        p, q = log_softmax(reference), log_softmax(other)
        return cls((np.exp(p) * (p - q)).sum(1), reference.argmax(1) == other.argmax(1))

    @classmethod
    def joined(cls, parts: list[Closeness]) -> Closeness:
        return cls(np.concatenate([part.kl for part in parts]), np.concatenate([part.same for part in parts]))

    def report(self) -> dict[str, float]:
        return {
            "mean_kl": float(self.kl.mean()),
            "p99_kl": float(np.quantile(self.kl, 0.99)),
            "max_kl": float(self.kl.max()),
            "top1": float(self.same.mean()),
            "positions": self.kl.size,
        }


def log_softmax(logits: Floats) -> Doubles:
    """Computes log-softmax in float64, so that it adds no error to those of the engines."""
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))  # type: ignore[no-any-return]


class Reference:
    """transformers, which dequantises the GGUF to float32."""

    def __init__(self, path: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch = torch
        self._model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)

    def logits(self, tokens: list[int]) -> Floats:
        with self._torch.inference_mode():
            return self._model(self._torch.tensor([tokens])).logits[0].numpy()  # type: ignore[no-any-return]


class Native:
    """freedive's kernels with a key-value cache in ``cache_format``; each text is a prompt, computed in
    ``precision``."""

    def __init__(self, path: Path, max_rows: int, cache_format: str = "f16", precision: str = "exact") -> None:
        model, _ = describe(open_checkpoint(path))
        self._runner = NativeRunner(
            model,
            open_store(packed_path(path, LAYOUT)),
            num_threads=machine.physical_cores(),
            max_rows=max_rows,
            num_pages=pages_for(max_rows),
            cache_format=cache_format,
            precision=precision,
        )

    def logits(self, tokens: list[int]) -> Floats:
        return self._runner.step(Batch.whole([tokens], wants_all=True))


class Llama:
    """llama.cpp in the process ``worker``."""

    def __init__(self, worker: Worker, folder: Path) -> None:
        self._worker = worker
        self._file = folder / "logits.npy"

    def logits(self, tokens: list[int]) -> Floats:
        self._worker.call("logits", tokens=tokens, file=str(self._file))
        return np.load(self._file)  # type: ignore[no-any-return]


def compare(
    reference: Reference, others: Mapping[str, Native | Llama], prompts: Mapping[str, list[int]]
) -> Iterator[tuple[str, dict[str, Closeness]]]:
    """Compares each of ``others`` with the reference, prompt by prompt."""
    for name, tokens in prompts.items():
        exact = reference.logits(tokens)
        yield name, {other: Closeness.of(exact, engine.logits(tokens)) for other, engine in others.items()}


def examine(path: Path, python: Path) -> dict[str, Any]:
    """Compares all engines on all prompts; returns a report for JSON."""
    freedive.load(str(path)).close()  # packs the weights unless that was done before
    tokenizer = Tokenizer.from_gguf(open_checkpoint(path).config)
    texts: dict[str, str] = json.loads((FOLDER / "prompts.json").read_text("utf-8"))
    prompts = {name: tokenizer.encode(text, add_special=True) for name, text in texts.items()}
    longest = max(map(len, prompts.values()))
    with TemporaryDirectory() as folder, start_llama(path, machine.physical_cores(), python) as worker:
        others: dict[str, Native | Llama] = {
            **{f"freedive {precision}": Native(path, longest, precision=precision) for precision in PRECISIONS},
            "freedive exact, f32 cache": Native(path, longest, "f32"),
            "freedive exact, int8 cache": Native(path, longest, "int8"),
            "llama.cpp": Llama(worker, Path(folder)),
        }
        found = dict(compare(Reference(path), others, prompts))
    return {
        "cpu": machine.cpu_name(),
        "bounds": {"mean_kl": MAX_MEAN_KL, "top1": MIN_TOP1},
        "all": {other: Closeness.joined([each[other] for each in found.values()]).report() for other in others},
        "prompts": {name: {other: part.report() for other, part in each.items()} for name, each in found.items()},
    }


def print_tables(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console, engines = Console(highlight=False), list(report["all"])
    each = Table("mean KL by prompt", "positions", *engines)
    for name, row in report["prompts"].items():
        each.add_row(name, str(row[engines[0]]["positions"]), *(f"{row[engine]['mean_kl']:.2e}" for engine in engines))
    total = Table("against transformers", "mean KL", "99th percentile", "largest", "same first choice")
    for engine, row in report["all"].items():
        figures = (f"{row[key]:.2e}" for key in ("mean_kl", "p99_kl", "max_kl"))
        total.add_row(engine, *figures, f"{row['top1']:.2%} of {row['positions']}")
    console.print(each)
    console.print(total)


def main(
    model: Annotated[str, typer.Option(help="A name or address of a GGUF model, or a path.")] = "smollm2",
    peer: Annotated[Path | None, typer.Option("--peer-python", help="The Python that has llama-cpp-python.")] = None,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "results" / "quality.json",
) -> None:
    """Compare next-token distributions with exact ones."""
    python, path = peer_python(peer), resolve(model)
    report = {"model": model} | examine(path, python)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")
    print_tables(report)
    ours, bound = report["all"]["freedive exact"], min(MAX_MEAN_KL, report["all"]["llama.cpp"]["mean_kl"])
    if ours["mean_kl"] > bound or ours["top1"] < MIN_TOP1:
        raise UserError(f"freedive exact misses its bounds: mean KL {bound:.1e}, the same first choice {MIN_TOP1:.0%}")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
