"""Tokenised documents on disk, and an endless stream of them that can be stopped and gone on with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from freedive.errors import UserError
from freedive.train.net import Sequences

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
    """Documents one behind the other, in a new order each epoch. ``state`` is where it stands."""

    def __init__(self, shards: Shards, seed: int) -> None:
        self._shards = shards
        self._seed = seed
        self.state = {"epoch": 0, "document": 0, "offset": 0}

    def take(self, num_rows: int, length: int) -> Sequences:
        """The next ``num_rows`` rows of ``length`` tokens, and the token that follows each."""
        count = num_rows * (length + 1)
        tokens, weights = np.empty(count, np.int64), np.empty(count, np.float32)
        filled = 0
        while filled < count:
            begin, end = self._rest_of_document()
            end = min(end, begin + count - filled)
            place = slice(filled, filled + end - begin)
            tokens[place], weights[place] = self._shards.tokens[begin:end], self._shards.weights[begin:end]
            filled = place.stop
            self.state["offset"] += end - begin
        rows, shares = tokens.reshape(num_rows, -1), weights.reshape(num_rows, -1)
        return Sequences(
            np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, 1:]), np.ascontiguousarray(shares[:, 1:])
        )

    def documents(self, num_tokens: int, length: int) -> Iterator[Sequences]:
        """The next documents, whole, as a row each, until there are ``num_tokens``.

        Longer ones than ``length`` come in pieces, each beginning with the last target of that before.
        """
        taken = 0
        while taken < num_tokens:
            begin, whole = self._rest_of_document()
            end = min(whole, begin + length + 1)
            self.state["offset"] += end - begin - (end < whole)
            taken += end - begin
            if end - begin > 1:
                tokens, weights = self._shards.tokens[None, begin:end], self._shards.weights[None, begin:end]
                tokens = tokens.astype(np.int64)
                yield Sequences(tokens[:, :-1], tokens[:, 1:], weights[:, 1:].astype(np.float32))

    def _rest_of_document(self) -> tuple[int, int]:
        """Begin and end of what is left of the document under way; the next one where nothing is."""
        starts, state = self._shards.starts, self.state
        while True:
            order = self._order(state["epoch"])
            while state["document"] < len(order):
                document = order[state["document"]]
                begin, end = int(starts[document]) + state["offset"], int(starts[document + 1])
                if begin < end:
                    return begin, end
                state["document"], state["offset"] = state["document"] + 1, 0
            state.update(epoch=state["epoch"] + 1, document=0, offset=0)

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        if getattr(self, "_epoch", None) != epoch:
            self._epoch = epoch
            self._permutation = np.random.default_rng((self._seed, epoch)).permutation(len(self._shards))
        return self._permutation
