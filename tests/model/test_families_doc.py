"""docs/families.md describes every family, and no other."""

from __future__ import annotations

from pathlib import Path

from families_table import HEAD, about

from freedive.families import FAMILIES

TABLE = Path(__file__).parents[2] / "docs" / "families.md"


def test_every_family_has_its_row_and_no_other_has_one() -> None:
    text = TABLE.read_text()
    assert text.startswith(HEAD)
    rows = text.removeprefix(HEAD).splitlines()
    assert [row[2:].split(" | ")[:3] for row in rows] == [about(family).split(" | ") for family in FAMILIES]
    assert all(row.endswith("| works |") for row in rows)
