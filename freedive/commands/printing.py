"""Prints an answer: its text on standard output, its thoughts on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from freedive.commands.formatting import size_text
from freedive.text.dialects.dialect import Event, Text, Thought

if TYPE_CHECKING:
    from freedive.api import LanguageModel


def print_paging(model: LanguageModel) -> None:
    """Says on standard error, if that is a terminal, that experts of ``model`` stay on disk."""
    if sys.stderr.isatty() and (cache := model.expert_cache()):
        memory = size_text(cache.slots_bytes)
        print(f"experts stay on disk, {memory} of them in memory; freedive plan tells more", file=sys.stderr)


def print_answer(events: Iterable[Event]) -> str:
    """Prints the text as it arrives, and thoughts dimmed on standard error if that is a terminal; returns the text."""
    watched, thinking, written = sys.stderr.isatty(), False, ""
    for event in events:
        if isinstance(event, Thought) and watched:
            typer.secho(event.text, dim=True, nl=False, err=True)
            thinking = True
        elif isinstance(event, Text):
            if thinking:
                print("\n", file=sys.stderr, flush=True)
                thinking = False
            print(event.text, end="", flush=True)
            written += event.text
    return written
