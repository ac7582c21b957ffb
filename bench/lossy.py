"""Measures what lossy routing costs and saves: python bench/lossy.py --model nano

The reference is freedive with all experts in memory and the model's own routing. Fewer experts a token, and a
preference for cached ones with a share of the experts in memory, are compared with it at every generated position: the
texts are given, so that all see the same tokens, of which the first ones are a prompt and each other one is a step of
decoding. Prints KL divergences, how often the first choice is the same, how many experts were found in memory, and what
was read from disk.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from quality import Closeness
from workers import FOLDER

from freedive import machine
from freedive.api import open_model, text_parts
from freedive.arrays import Floats
from freedive.config import settings_text
from freedive.engine.kvcache import pages_for
from freedive.errors import UserError
from freedive.hub.sources import resolve
from freedive.model.batch import Batch
from freedive.model.fewer_experts import with_experts_per_token
from freedive.model.size import weight_sizes
from freedive.ops.memory_plan import packed_sizes
from freedive.ops.native import NativeRunner
from freedive.ops.paging import ExpertTraffic, Paging

PROMPT = 64
"""Tokens of each text that are given at once."""

PREFERENCES = (0.0, 0.1, 0.25, 0.5, 1.0)


class Subject:
    """A model whose answers to the given ``texts`` (token ids) are computed with several routings."""

    def __init__(self, path: Path, texts: Sequence[Sequence[int]]) -> None:
        self._model, _, self._weights = open_model(path, machine.physical_cores())
        self._texts = texts
        self._longest = max(map(len, texts))
        self.sizes = weight_sizes(self._model, packed_sizes(self._weights))
        self.chosen = max((layer.chosen for layer in self.sizes.layers), default=0)

    def run(
        self, *, experts: int | None = None, share: float | None = None, preference: float = 0.0
    ) -> tuple[Floats, ExpertTraffic | None]:
        """Returns the logits of all generated positions, and the traffic of their experts.

        ``share`` of the experts are in memory, the others on disk; None: all are in memory and none on disk.
        """
        paging = None if share is None else Paging(int(share * self.sizes.experts))
        runner = NativeRunner(
            with_experts_per_token(self._model, experts) if experts else self._model,
            self._weights,
            num_threads=machine.physical_cores(),
            max_rows=PROMPT,
            num_pages=pages_for(self._longest),
            precision="balanced",
            paging=paging,
            prefer_cached_experts=preference,
        )
        logits: list[Floats] = []
        traffic: list[ExpertTraffic] = []
        for text in self._texts:
            runner.step(_step(text, 0, PROMPT))
            before = runner.expert_cache()
            logits += [runner.step(_step(text, at, at + 1)) for at in range(PROMPT, len(text))]
            if before and (after := runner.expert_cache()):
                traffic.append(after.total.since(before.total))
        return np.concatenate(logits), ExpertTraffic.sum(traffic) if traffic else None


def _step(text: Sequence[int], begin: int, end: int) -> Batch:
    """Computes tokens ``begin`` to ``end`` of ``text``, of which the first :data:`PROMPT` are the prompt."""
    pages = np.arange(pages_for(end), dtype=np.int32)
    return Batch(
        tokens=np.array(text[begin:end], np.int32),
        lengths=np.array([end - begin], np.int32),
        starts=np.array([begin], np.int32),
        pages=pages[None],
        output_rows=np.array([end - begin - 1], np.int32),
        prompts=np.array([PROMPT], np.int32),
    )


def settings_of(chosen: int, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Returns the arguments of :meth:`Subject.run` that are measured: one lossy help at a time."""
    fewer: list[dict[str, Any]] = [{"experts": count} for count in range(chosen - 1, 0, -1)]
    return fewer + [{"share": share, "preference": preference} for share in shares for preference in PREFERENCES]


def examine(subject: Subject, shares: Sequence[float]) -> list[dict[str, Any]]:
    """Returns a row of the report for each of :func:`settings_of`."""
    reference, _ = subject.run()
    rows = []
    for settings in settings_of(subject.chosen, shares):
        logits, traffic = subject.run(**settings)
        row = settings | Closeness.of(reference, logits).report()
        if traffic:
            row |= {"hit_rate": traffic.hit_rate, "read_bytes_per_token": traffic.read_bytes / len(logits)}
        print(settings_text(settings), row, file=sys.stderr)
        rows.append(row)
    return rows


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Returns the report as a table."""
    lines = ["| | mean KL | p99 | same first choice | experts hit | read, MiB/token |", "|---|---|---|---|---|---|"]
    for row in rows:
        if "experts" in row:
            name, hits, read = f"{row['experts']} experts a token", "", ""
        else:
            name = f"{row['share']:.0%} in memory, preference {row['preference']:g}"
            hits, read = f"{row['hit_rate']:.0%}", f"{row['read_bytes_per_token'] / 2**20:.2f}"
        figures = f"{row['mean_kl']:.2g} | {row['p99_kl']:.2g} | {row['top1']:.1%}"
        lines.append(f"| {name} | {figures} | {hits} | {read} |")
    return "\n".join(lines) + "\n"


def main(
    model: Annotated[str, typer.Option(help="A mixture: a name, an address, or a path.")] = "nano",
    shares: Annotated[str, typer.Option(help="Shares of the experts in memory.")] = "0.5,0.25",
    files: Annotated[
        list[Path] | None, typer.Option("--text", help="A text, may be repeated; default: docs/*.md.")
    ] = None,
    length: Annotated[int, typer.Option(min=PROMPT + 1, help="Tokens of each text, from its beginning.")] = 256,
    output: Annotated[Path, typer.Option(help="Where the JSON goes.")] = FOLDER / "results" / "lossy.json",
) -> None:
    """Compare lossy routing with a model's own."""
    path = resolve(model)
    _, checkpoint, _ = open_model(path, machine.physical_cores())
    tokenizer, _ = text_parts(path, checkpoint)
    sources = files or sorted((FOLDER.parent / "docs").glob("*.md"))
    texts = [tokenizer.encode(source.read_text("utf-8"), add_special=True)[:length] for source in sources]
    subject = Subject(path, [text for text in texts if len(text) > PROMPT])
    if not subject.chosen:
        raise UserError(f"{model} has no experts", "Name a mixture")
    rows = examine(subject, [float(share) for share in shares.split(",")])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"model": model, "cpu": machine.cpu_name(), "rows": rows}, indent=2) + "\n")
    print(markdown(rows))


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
