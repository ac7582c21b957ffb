"""The text of PDF files, read in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from freedive.errors import Unavailable, UserError
from freedive.server.conversations import pdf_worker
from freedive.server.conversations.records import MAX_TEXT

PATIENCE_S = 60
"""Seconds that a file may take: three times the limit of CPU time, for a busy machine."""
MAX_BYTES = 64 << 20
"""Bytes of a file."""

FAULTS = {
    "damaged": ("The PDF file is damaged", "Save it again, or paste its text"),
    "empty": ("The PDF file has no text, only pictures of it", "Send one with text, for example after recognition"),
    "encrypted": ("The PDF file is encrypted", "Save it without a password"),
    "long": ("The PDF file is too large to read", "Send the pages that matter"),
    "slow": ("The PDF file takes too long to read", "Send the pages that matter"),
}


def pdf_text(data: bytes) -> str:
    """Returns the text of a PDF file. Blocks: call it in a thread.

    Raises UserError for a file that is damaged, encrypted, too large, or without text, and Unavailable if no process
    can be started.
    """
    if len(data) > MAX_BYTES:
        raise UserError(*FAULTS["long"], param="base64")
    spec = find_spec("pypdf")
    assert spec
    assert spec.origin
    program = [sys.executable, "-I", "-S", pdf_worker.__file__, str(Path(spec.origin).parents[1]), str(MAX_TEXT)]
    try:
        done = subprocess.run(
            program, input=data, capture_output=True, timeout=PATIENCE_S, start_new_session=True, check=False
        )
    except subprocess.TimeoutExpired:
        raise UserError(*FAULTS["slow"], param="base64") from None
    except OSError as error:
        raise Unavailable(f"The process that reads PDF files cannot be started ({error})", "Try again") from None
    if done.returncode < 0:
        raise UserError(*FAULTS["slow"], param="base64")
    try:
        answer = json.loads(done.stdout)
    except ValueError:  # it ended without memory to say so
        answer = {"fault": "long"}
    if fault := answer.get("fault"):
        raise UserError(*FAULTS[fault], param="base64")
    return _clean(str(answer["text"]))


def _clean(text: str) -> str:
    """Returns ``text`` without what cannot be stored: zeros, and halves of surrogate pairs."""
    return text.replace("\0", "").encode(errors="replace").decode()
