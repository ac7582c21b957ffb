"""Formats sizes, counts and tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def size_text(size: float) -> str:
    """Formats bytes in decimal units, as disks and model hubs do."""
    for unit, name in ((1e9, "GB"), (1e6, "MB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size / 1e3:.1f} kB"


def count_text(count: float) -> str:
    """Formats a number of parameters with three digits, as model cards do: 671B, 1.03T."""
    rounded = float(f"{count:.3g}")
    for unit, name in ((1e12, "T"), (1e9, "B")):
        if rounded >= unit:
            return f"{rounded / unit:g}{name}"
    return f"{rounded / 1e6:g}M"


def table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns rows of equally many texts as lines, each column as wide as its longest text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of equally many texts, each column as wide as its longest text."""
    print("\n".join(table_lines(rows)))


def print_facts(facts: Mapping[str, str]) -> None:
    """Prints names and texts as a table of two columns without lines."""
    from rich.console import Console
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for name, text in facts.items():
        table.add_row(name, text)
    Console(highlight=False, markup=False).print(table)
