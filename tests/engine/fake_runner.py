"""A fake model that stores tokens in pages, and whose logits hash all tokens that it reads back from them.

So a wrongly shared, stale, lost or misordered page changes the output or fails at once. ``alone`` computes the expected
answer of a request without pages and batches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np

from freedive.engine.sampler import Sampler
from freedive.engine.sampling import Sampling
from freedive.model.batch import PAGE_TOKENS, Batch

VOCAB = 97
END = 96
NAN = 95
"""A token after which the logits are NaN."""


def logits_of(history: np.ndarray) -> np.ndarray:
    """Returns logits, float32 [VOCAB], that depend on the tokens ``history`` alone."""
    if history[-1] == NAN:
        return np.full(VOCAB, np.nan, np.float32)
    digest = blake2b(np.asarray(history, np.int32).tobytes(), digest_size=8).digest()
    logits = np.random.default_rng(int.from_bytes(digest)).standard_normal(VOCAB).astype(np.float32) * 2
    logits[NAN] = -np.inf
    return logits


def kept(tokens: np.ndarray, start: int, prompt: int, boundaries: tuple[int, ...]) -> np.ndarray:
    """Returns the cache content for ``tokens``, the first at ``start``; it differs beyond each boundary."""
    places = np.arange(start, start + len(tokens))
    return tokens + VOCAB * sum((places >= prompt + boundary) * 2**i for i, boundary in enumerate(boundaries))


def repetitive_logits_of(history: np.ndarray) -> np.ndarray:
    """Returns logits that depend mostly on the last token, so that answers repeat themselves, and a little on all
    tokens."""
    return logits_of(history[-1:]) + logits_of(history) / 1024


class FakeRunner:
    vocab_size = VOCAB

    def __init__(
        self,
        num_pages: int = 64,
        max_context: int = 512,
        logits_of: Callable[[np.ndarray], np.ndarray] = logits_of,
        *,
        drafts: bool = False,
        boundaries: tuple[int, ...] = (),
        num_slots: int = 0,
    ) -> None:
        self.drafts = drafts
        self.pages_experts = False
        self.boundaries = boundaries
        self.logits_of = logits_of
        self.num_pages = num_pages
        self.max_context = max_context
        memory = np.full((num_pages, 2 * PAGE_TOKENS), -1, np.int32)
        self.pages = memory.view(np.uint8)
        self.tokens, self.positions = memory[:, :PAGE_TOKENS], memory[:, PAGE_TOKENS:]
        self.page_bytes = self.pages.shape[1]
        self.sums = np.full((num_slots or 1, 2 if num_slots else 0), -1, np.int64)
        """The recurrent states: the sum of the tokens up to a position, weighted by their positions; and that
        position."""
        self.states = self.sums.view(np.uint8)
        self.batches: list[Batch] = []
        self.errors: list[Exception] = []
        self.gate = threading.Event()
        """Steps wait until it is set."""
        self.gate.set()
        self.entered = threading.Event()

    def step(self, batch: Batch) -> np.ndarray:
        self.entered.set()
        assert self.gate.wait(100)
        self.batches.append(batch)
        if self.errors:
            raise self.errors.pop()
        ends = batch.starts + batch.lengths
        for array in (batch.tokens, batch.lengths, batch.starts, batch.pages, batch.output_rows):
            assert array.dtype == np.int32
        assert batch.lengths.sum() == len(batch.tokens)
        assert batch.lengths.min() > 0
        tables = [table[: -(-end // PAGE_TOKENS)] for table, end in zip(batch.pages, ends, strict=True)]
        used = np.concatenate([table[table >= 0] for table in batch.pages])
        written = {
            int(page)
            for table, start in zip(tables, batch.starts, strict=True)
            for page in table[start // PAGE_TOKENS :]
            if page >= 0
        }
        assert all((used == page).sum() == 1 for page in written), "a page that is written has two owners"
        last_rows = batch.lengths.cumsum() - 1
        self.histories: dict[Any, Any] = {}
        if self.sums.size:
            self._check_states(batch)
        for table, start, end, row, prompt in zip(tables, batch.starts, ends, last_rows, batch.prompts, strict=True):
            assert table.min() >= 0, "the page table is too short"
            places = np.arange(start, end)
            self.tokens[table[places // PAGE_TOKENS], places % PAGE_TOKENS] = kept(
                batch.tokens[row + 1 - len(places) : row + 1], start, prompt, self.boundaries
            )
            self.positions[table[places // PAGE_TOKENS], places % PAGE_TOKENS] = places
            assert (self.positions[table].ravel()[:end] == np.arange(end)).all(), "stale page"
            history = self.tokens[table].ravel()
            self.histories |= {row - end + 1 + place: history[: place + 1] for place in places}
        if self.sums.size:
            self._move_states(batch)
        return self._logits([self.histories[row] for row in batch.output_rows])

    def _check_states(self, batch: Batch) -> None:
        """Checks that each state matches the tokens before it, as they are in the pages."""
        updates = batch.states
        assert len(set(updates.slots.tolist())) == len(updates.slots)
        for slot, begin, start, table in zip(updates.slots, updates.begins, batch.starts, batch.pages, strict=True):
            assert begin <= start
            if begin:
                assert self.sums[slot].tolist() == [self._sum(table, begin), begin], "a stale state"

    def _move_states(self, batch: Batch) -> None:
        updates = batch.states
        ends = batch.starts + batch.lengths
        assert (updates.ends >= batch.starts).all()
        assert (updates.ends <= ends).all()
        for index, position, slot in updates.saves:
            assert updates.begins[index] < position <= updates.ends[index]
            assert slot not in updates.slots
            self.sums[slot] = self._sum(batch.pages[index], position), position
        for slot, end, table in zip(updates.slots, updates.ends, batch.pages, strict=True):
            self.sums[slot] = self._sum(table, end), end

    def _sum(self, table: np.ndarray, end: int) -> int:
        places = np.arange(end)
        return int((self.tokens[table].ravel()[:end].astype(np.int64) * (places + 1) ** 2).sum())

    def draft(self, tokens: np.ndarray, output_rows: np.ndarray) -> np.ndarray:
        """Predicts the next tokens, provided that ``tokens`` followed."""
        assert len(tokens) == len(self.histories)
        return self._logits([np.append(self.histories[row], tokens[row]) for row in output_rows])

    def chosen_experts(self, row: int) -> np.ndarray:
        """Two layers, whose experts say which row they are of."""
        return np.array([[row, 1], [2, -1]], np.int32)

    def missed_experts(self) -> list[list[int]]:
        return [[1], []]

    def _logits(self, histories: list[np.ndarray]) -> np.ndarray:
        return np.array([self.logits_of(history) for history in histories], np.float32).reshape(-1, VOCAB)


class FakeTokenizer:
    """Token i is the i-th character from "!"; the end token has no text."""

    stop_ids = frozenset({END})

    def stream(self, *, continues: bool = False, is_visible: Callable[[str], bool] | None = None) -> FakeDecoder:
        return FakeDecoder()


class FakeDecoder:
    def push(self, token_id: int) -> str:
        return "" if token_id == END else chr(33 + token_id)

    def flush(self) -> str:
        return ""


def text_of(tokens: list[int]) -> str:
    return "".join(chr(33 + token) for token in tokens if token != END)


def alone(prompt: list[int], sampling: Sampling, max_context: int = 512, boundaries: tuple[int, ...] = ()) -> list[int]:
    """Returns the answer's tokens, computed without an engine and without stop strings."""
    sampler = Sampler(sampling, sampling.seed or 0, prompt, VOCAB)
    tokens = list(prompt)
    longest = len(prompt) + sampling.max_tokens if sampling.max_tokens else max_context
    while len(tokens) < longest:
        tokens.append(sampler(logits_of(kept(np.array(tokens), 0, len(prompt), boundaries))))
        if tokens[-1] in sampling.stop_token_ids or (tokens[-1] == END and not sampling.ignore_eos):
            break
    return tokens[len(prompt) :]
