"""The Python examples of the documentation run as they are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import freedive

DOCS = Path(freedive.__file__).parents[1] / "docs"
PYTHON = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def test_examples_of_python_run_in_their_order() -> None:
    text = (DOCS / "python.md").read_text("utf-8")
    names: dict[str, Any] = {}
    blocks = list(PYTHON.finditer(text))
    assert len(blocks) > 8
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        exec(compile("\n" * line + block[1], "docs/python.md", "exec"), names)  # for line numbers in tracebacks
    assert names["model"].engine.failure == ""
