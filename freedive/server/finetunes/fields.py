"""Bodies of the page's requests about fine-tuning."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Annotated

from pydantic import Field

from freedive.errors import UserError
from freedive.server.conversations.records import Label
from freedive.server.finetunes.finetuning import SCHEME, Draft
from freedive.server.request_body import RequestBody, Text

MAX_BYTES = 16 << 20
"""Bytes of a file."""

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
COMPRESSED = b"\x1f\x8b"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class FinetuneRequest(RequestBody):
    """A file in base64, the model that learns from it, the name of the result, and the settings."""

    model: Label
    name: Label
    file: Annotated[Label, Field(min_length=1)]
    base64: Text
    epochs: Annotated[float, Field(gt=0, le=100)] | None = Draft.epochs
    rank: Annotated[int, Field(ge=1, le=256)] = Draft.rank
    learning_rate: Annotated[float, Field(gt=0, le=0.1)] = Draft.learning_rate

    def draft(self, source: str) -> Draft:
        """Returns what is asked for, on the model that the operator named ``source``. Raises UserError."""
        if not NAME.fullmatch(self.name):
            what = f"{SCHEME}{self.name[:100]} is not a name for a model"
            raise UserError(what, "Choose letters, digits, dots and dashes, at most 64", param="name")
        return Draft(
            base=self.model,
            source=source,
            name=self.name,
            file=self.file,
            data=self._bytes(),
            epochs=self.epochs,
            rank=self.rank,
            learning_rate=self.learning_rate,
        )

    def _bytes(self) -> bytes:
        if not self.file.lower().endswith(SUFFIXES):
            known = ", ".join(SUFFIXES)
            raise UserError(f"{self.file[:100]} is of a kind that is not read", f"Send one of {known}", param="file")
        try:
            data = base64.b64decode(self.base64, validate=True)
        except (binascii.Error, ValueError):
            raise UserError("'base64' is not base64", "Encode the bytes of the file", param="base64") from None
        if len(data) > MAX_BYTES:
            what = f"{self.file[:100]} is larger than {MAX_BYTES >> 20} MiB"
            raise UserError(what, "Use a smaller file, or: freedive finetune MODEL data.text=FILE", param="base64")
        if data.startswith(COMPRESSED):
            raise UserError(f"{self.file[:100]} is compressed", "Unpack it first", param="base64")
        return data
