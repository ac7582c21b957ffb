"""Bodies of the page's requests about conversations."""

from __future__ import annotations

import base64
import binascii
from typing import Annotated, Literal

from pydantic import Field

from freedive.errors import UserError
from freedive.server.conversations.pdf import pdf_text
from freedive.server.conversations.records import Label, LongText, Title
from freedive.server.request_body import JsonObject, RequestBody, Text

MAX_ITEMS = 1000
PDF = "application/pdf"

Id = Annotated[Text, Field(max_length=100)]


class Settings(RequestBody):
    """What the answers of a conversation are asked with; what is absent is the server's default."""

    model: Label | None = None
    beside: Label | None = None
    """The model that answers each question, too, side by side with the first."""
    system: LongText | None = None
    sampling: JsonObject | None = None
    tools: Annotated[list[Label], Field(max_length=MAX_ITEMS)] | None = None
    response_schema: JsonObject | None = None


class CreateRequest(RequestBody):
    """A new conversation. Without a title, its first message gives it one."""

    title: Title = ""
    folder: Title = ""
    settings: Settings = Settings()
    temporary: bool = False


class ChangeRequest(RequestBody):
    """Changes of a conversation; what is absent stays. ``deleted`` false brings a deleted one back."""

    title: Title | None = None
    folder: Title | None = None
    pinned: bool | None = None
    settings: Settings | None = None
    leaf: Id | None = None
    deleted: bool | None = None


class MessageRequest(RequestBody):
    """A message of the user, or an answer that the user edited, under ``parent``; null for a first message."""

    parent: Id | None = None
    role: Literal["user", "assistant"] = "user"
    content: LongText
    reasoning: LongText = ""
    model: Label = ""
    files: Annotated[list[Id], Field(max_length=MAX_ITEMS)] = []


class FileRequest(RequestBody):
    """A file with its text or, if it is a PDF file, with its bytes in base64."""

    name: Annotated[Title, Field(min_length=1)]
    media_type: Label = "text/plain"
    text: LongText | None = None
    base64: Text | None = None

    def read(self) -> str:
        """Returns the text of the file. Blocks: call it in a thread. Raises UserError if there is none."""
        if (self.text is None) == (self.base64 is None):
            raise UserError("The body must have either 'text' or 'base64'", "Send one of them", param="text")
        if self.text is not None:
            return self.text
        if self.media_type != PDF:
            raise UserError(f"Only files of type {PDF} are sent as 'base64'", "Send the text", param="media_type")
        return pdf_text(_bytes(self.base64 or ""))


class ImportRequest(RequestBody):
    """A file with conversations, as text or in base64."""

    text: Text | None = None
    base64: Text | None = None

    def data(self) -> bytes:
        """Returns the bytes of the file. Raises UserError if it is missing or not base64."""
        if (self.text is None) == (self.base64 is None):
            raise UserError("The body must have either 'text' or 'base64'", "Send one of them", param="text")
        return self.text.encode() if self.text is not None else _bytes(self.base64 or "")


def _bytes(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise UserError("'base64' is not base64", "Encode the bytes of the file", param="base64") from None
