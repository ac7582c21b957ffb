"""Tokenised documents on disk, and an endless, resumable stream of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from freedive.errors import UserError
from freedive.train.data.sequences import Sequences

TOKENS, WEIGHTS, STARTS, MANIFEST = "tokens.bin", "weights.bin", "starts.npy", "manifest.json"


def write_shards(
    folder: Path,
    documents: Iterable[tuple[list[int], list[int]]],
    num_bytes: int,
    tokenizer: Path,
    vocab_size: int = 1 << 16,
) -> dict[str, Any]:
    """Writes ``documents`` (tokens and their loss weights), and the manifest last; returns the manifest.

    ``num_bytes`` is the size of the documents as UTF-8 text, from which losses are converted to bits per byte.
    """
    width = "uint16" if vocab_size <= 1 << 16 else "uint32"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    starts = [0]
    with (folder / TOKENS).open("wb") as tokens_file, (folder / WEIGHTS).open("wb") as weights_file:
        for tokens, weights in documents:
            tokens_file.write(np.array(tokens, width).tobytes())
            weights_file.write(np.array(weights, np.uint8).tobytes())
            starts.append(starts[-1] + len(tokens))
    np.save(folder / STARTS, np.array(starts, np.int64))
    manifest = {
        "tokenizer": hashlib.sha256(tokenizer.read_bytes()).hexdigest(),
        "documents": len(starts) - 1,
        "tokens": starts[-1],
        "bytes": num_bytes,
        "width": width,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return manifest


class Shards:
    """The files of :func:`write_shards`, memory-mapped.

    Raises UserError if they are missing or of another tokenizer.
    """

    def __init__(self, folder: Path, tokenizer: Path) -> None:
        file = folder / MANIFEST
        if not file.exists():
            raise UserError(f"{folder} holds no data", "Make it first: freedive train data")
        self.manifest: dict[str, Any] = json.loads(file.read_text("utf-8"))
        if self.manifest["tokenizer"] != hashlib.sha256(tokenizer.read_bytes()).hexdigest():
            raise UserError(f"{folder} was made with another tokenizer", "Make it again: freedive train data")
        self.tokens = np.memmap(folder / TOKENS, self.manifest["width"], "r")
        self.weights = np.memmap(folder / WEIGHTS, np.uint8, "r")
        self.starts: npt.NDArray[np.int64] = np.load(folder / STARTS)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def bytes_per_token(self) -> float:
        return float(self.manifest["bytes"] / self.manifest["tokens"])


class Stream:
    """An endless stream of documents, in a new random order each epoch. ``state`` is the position, for checkpoints."""

    def __init__(self, shards: Shards, seed: int) -> None:
        self._shards = shards
        self._seed = seed
        self.state = {"epoch": 0, "document": 0, "offset": 0}

    def take(self, num_tokens: int, length: int) -> Sequences:
        """Returns the next documents, of at least ``num_tokens`` tokens; longer ones than ``length`` are cut into
        chunks.

        Chunks are sorted by length, so that attention computes those of equal length together.
        """
        chunks, remaining = list[slice](), num_tokens
        while remaining > 0:
            begin, end = self._rest_of_document()
            chunk = slice(begin, min(end, begin + length + 1))
            chunks.append(chunk)
            self.state["offset"] += length
            remaining -= chunk.stop - begin - 1
        chunks.sort(key=lambda chunk: chunk.stop - chunk.start)
        tokens, weights = self._shards.tokens, self._shards.weights
        return Sequences.of([(tokens[chunk], weights[chunk].astype(np.float32)) for chunk in chunks])

    def _rest_of_document(self) -> tuple[int, int]:
        """Returns the begin and end of the rest of the current document, or of the next one if nothing is left."""
        starts, state = self._shards.starts, self.state
        while True:
            order = self._order(state["epoch"])
            while state["document"] < len(order):
                document = order[state["document"]]
                begin, end = int(starts[document]) + state["offset"], int(starts[document + 1])
                if begin + 1 < end:  # the last token of a document has no target
                    return begin, end
                state["document"], state["offset"] = state["document"] + 1, 0
            state.update(epoch=state["epoch"] + 1, document=0, offset=0)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self._seed, epoch)).permutation(len(self._shards))
        return self._permutation
