"""Records how a trained mixture routes real text, for bench/routing.py: python bench/record_routing.py --model nano

Writes recorded_routes.json: ``frequencies``, the shares of the tokens that choose the most frequent expert of a layer,
the second one and so on, as means over layers; ``repeats``, the mean share of a token's experts that the token before
it chose, too; and ``independent``, what it would be if tokens with these frequencies chose independently.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from routing import RECORD
from workers import FOLDER

from freedive import machine
from freedive.api import open_model, text_parts
from freedive.arrays import Ints
from freedive.engine.kvcache import pages_for
from freedive.errors import UserError
from freedive.hub.sources import resolve
from freedive.model.batch import Batch
from freedive.ops.native import NativeRunner


def summary(routes: Sequence[Sequence[Ints]], num_experts: Sequence[int]) -> dict[str, Any]:
    """Summarises ``routes``: for each text and layer, the experts of its tokens, [T, num_chosen]."""
    sorted_shares, repeats, independent = [], [], []
    for layer, count in enumerate(num_experts):
        texts = [text[layer] for text in routes]
        tokens, chosen = sum(map(len, texts)), texts[0].shape[1]
        shares = np.bincount(np.concatenate(texts).ravel(), minlength=count) / tokens
        again = [(text[1:, :, None] == text[:-1, None, :]).any(2).mean(1) for text in texts]
        sorted_shares.append(np.sort(shares)[::-1])
        repeats.append(float(np.concatenate(again).mean()))
        independent.append(float((shares**2).sum() / chosen))
    return {
        "tokens": sum(len(text[0]) for text in routes),
        "chosen": routes[0][0].shape[1],
        "frequencies": np.mean(sorted_shares, 0).round(5).tolist(),
        "repeats": float(np.mean(repeats)),
        "independent": float(np.mean(independent)),
    }


def main(
    model: Annotated[str, typer.Option(help="A mixture: a name, an address, or a path.")] = "nano",
    files: Annotated[
        list[Path] | None, typer.Option("--text", help="A text, may be repeated; default: docs/*.md.")
    ] = None,
    length: Annotated[int, typer.Option(min=2, help="Most tokens of each text, from its beginning.")] = 512,
) -> None:
    """Record the routing of real text."""
    path = resolve(model)
    spec, checkpoint, weights = open_model(path, machine.physical_cores())
    tokenizer, _ = text_parts(path, checkpoint)
    pages = pages_for(length)
    runner = NativeRunner(
        spec, weights, num_threads=machine.physical_cores(), max_rows=length, num_pages=pages, precision="exact"
    )
    num_experts = [len(load) for load in runner.expert_load()]
    if len(set(num_experts)) != 1:
        raise UserError(f"{model} has no experts, or layers with different numbers of them", "Name another mixture")
    routes = []
    for source in files or sorted((FOLDER.parent / "docs").glob("*.md")):
        tokens = tokenizer.encode(source.read_text("utf-8"), add_special=True)[:length]
        runner.step(Batch.whole([tokens]))
        routes.append([layer.experts for layer in runner.routes()[: len(num_experts)]])
    found = {"model": model} | summary(routes, num_experts)
    RECORD.write_text(json.dumps(found, indent=2) + "\n")
    print(found)


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
