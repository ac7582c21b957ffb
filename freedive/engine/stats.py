"""Counters of an engine."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStats:
    """The state of the engine at one moment; ``num_*`` count since its start, except ``num_pages``.

    ``running`` and ``waiting`` are numbers of requests. The cache has ``num_pages`` pages, of which ``free_pages`` have
    no references and ``known_pages`` are registered for reuse, free pages included. ``snapshots`` is the number of
    snapshots of per-sequence states in memory. ``num_computed`` counts the input tokens of all steps, draft tokens
    included, and ``num_read`` those of prompts among them; ``num_cached`` the tokens reused from memory, and
    ``num_restored`` those read from disk. ``num_generated`` counts sampled tokens; ``num_drafted`` the draft tokens
    that were verified, and ``num_accepted`` those accepted.
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
    num_read: int
    num_cached: int
    num_restored: int
    num_generated: int
    num_drafted: int
    num_accepted: int
