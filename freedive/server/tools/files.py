"""The reader of files: those that were sent with the messages of a conversation, never those of the server's disk."""

from __future__ import annotations

import json
from collections.abc import Mapping

from freedive.errors import UserError

PART_CHARS = 4000
"""Characters of a part of a file."""


def num_parts(text: str) -> int:
    """Returns the number of parts that a text is read in."""
    return max(1, -(-len(text) // PART_CHARS))


def read_part(texts: Mapping[str, str], name: str, part: int) -> str:
    """Returns a part, counted from 1, of the file ``name`` of ``texts``. Raises UserError if there is none."""
    if name not in texts:
        known = ", ".join(map(_quoted, texts)) or "none"
        raise UserError(f"There is no file {_quoted(name[:300])}", f"The files are: {known}")
    all = num_parts(texts[name])
    if not 1 <= part <= all:
        raise UserError(f"There is no part {part} of {_quoted(name)}", f"Its parts are 1 to {all}")
    return f"Part {part} of {all} of {_quoted(name)}:\n{texts[name][(part - 1) * PART_CHARS : part * PART_CHARS]}"


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
