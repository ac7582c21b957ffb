"""The JSON objects that requests, answers and settings are made of."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]
"""A JSON object, parsed."""
