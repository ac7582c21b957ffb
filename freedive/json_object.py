"""The type of parsed JSON objects."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
"""A parsed JSON object."""
