"""``freedive version``: prints the version."""

from __future__ import annotations

import freedive


def version() -> None:
    """Prints the name and the version of this package."""
    print(f"freedive {freedive.__version__}")
