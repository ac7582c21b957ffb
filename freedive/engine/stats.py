"""Counters of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """The engine at one moment. Apart from ``num_pages``, the size of the cache, ``num_*`` count since its start.

    Of the pages, ``known_pages`` can be found by others that begin alike, free ones among them; ``snapshots`` are
    copies of per-sequence states that others can go on from. Tokens are ``num_computed`` as input, guesses among them,
    or were found: ``num_cached`` in memory, ``num_restored`` on disk. Of ``num_generated``, ``num_accepted`` had been
    guessed right, among ``num_drafted`` guesses that were checked.
    """

    running: int
    waiting: int
    free_pages: int
    known_pages: int
    snapshots: int
    num_pages: int
    num_requests: int
    num_steps: int
    num_computed: int
    num_cached: int
    num_restored: int
    num_generated: int
    num_drafted: int
    num_accepted: int
