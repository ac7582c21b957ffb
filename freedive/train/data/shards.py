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
    """Write ``documents`` (tokens, weights of their losses) and return the manifest, which comes last.

    ``num_bytes`` of text they were, so that a loss can be told in bits per byte.
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
    """What :func:`write_shards` has written, mapped. UserError where it is not there or of another tokenizer."""

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
    """Documents in a new order each epoch, without end. ``state`` is where it stands."""

    def __init__(self, shards: Shards, seed: int) -> None:
        self._shards = shards
        self._seed = seed
        self.state = {"epoch": 0, "document": 0, "offset": 0}

    def take(self, num_tokens: int, length: int) -> Sequences:
        """The next documents, of about ``num_tokens``; what is longer than ``length`` comes in pieces.

        Those of one length are side by side, so that they go through attention together.
        """
        pieces, left = list[slice](), num_tokens
        while left > 0:
            begin, end = self._rest_of_document()
            piece = slice(begin, min(end, begin + length + 1))
            pieces.append(piece)
            self.state["offset"] += length
            left -= piece.stop - begin - 1
        pieces.sort(key=lambda piece: piece.stop - piece.start)
        tokens, weights = self._shards.tokens, self._shards.weights
        return Sequences.of([(tokens[piece], weights[piece].astype(np.float32)) for piece in pieces])

    def _rest_of_document(self) -> tuple[int, int]:
        """Begin and end of what is left of the document under way; the next one where nothing is."""
        starts, state = self._shards.starts, self.state
        while True:
            order = self._order(state["epoch"])
            while state["document"] < len(order):
                document = order[state["document"]]
                begin, end = int(starts[document]) + state["offset"], int(starts[document + 1])
                if begin + 1 < end:  # a last token has nothing to follow it
                    return begin, end
                state["document"], state["offset"] = state["document"] + 1, 0
            state.update(epoch=state["epoch"] + 1, document=0, offset=0)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self._seed, epoch)).permutation(len(self._shards))
        return self._permutation
