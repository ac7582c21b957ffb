"""Prints an answer: its text on standard output, its thoughts on standard error."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import typer

from freedive.text.dialects.dialect import Event, Text, Thought


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
