"""Message content in parts, as several APIs have it: text parts are kept, other modalities are replaced or refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from freedive.server.request_body import ignore, only, type_of

SENSES = {
    "audio": "audio",
    "document": "document",
    "file": "file",
    "image": "image",
    "image_file": "image",
    "image_url": "image",
    "input_audio": "audio",
    "input_file": "file",
    "input_image": "image",
    "input_video": "video",
    "video": "video",
    "video_url": "video",
}
"""Types of parts that need more than reading, and what they are."""

_TEXTS = {"input_text": "text", "output_text": "text", "refusal": "refusal", "text": "text"}
"""Types of parts that are text in one API or another, and the field that holds it."""


def content_validator(*kinds: str, param: str = "messages") -> Callable[[Any], Any]:
    """A validator of a list of parts, in which a plain string is a text part, as is text by another API's name.

    The first of ``kinds`` is the type of texts. Parts of other than these ``kinds`` are refused before their fields
    are looked at.
    """
    check = only(param, *kinds, thing="content", remedy="Send text parts")

    def checked(content: Any) -> Any:
        content = [content] if isinstance(content, str) else content
        return check([_as_text(part, kinds) for part in content]) if isinstance(content, list) else content

    return checked


def _as_text(part: Any, kinds: Collection[str]) -> Any:
    text = next(iter(kinds))
    if isinstance(part, str):
        return {"type": text, "text": part}
    kind = type_of(part)
    if kind in _TEXTS and kind not in kinds:
        return {**part, "type": text, "text": part.get(_TEXTS[kind])}
    return part


def placeholder(thing: str) -> str:
    """The text that stands for an image, or the like, in a conversation under way."""
    ignore(thing)
    return f"[{thing}: this model cannot {'hear' if thing == 'audio' else 'see'} it]"


def is_under_way(body: Mapping[str, Any], messages: Iterable[Any]) -> bool:
    """Whether a conversation must be able to go on: the assistant has spoken, or there are tools, as agents have.

    Agents keep what they sent in the first message for ever, and add to it there what the user says next.
    """
    return bool(body.get("tools")) or any(map(is_the_assistants, messages))


def readable(body: Any, allowed: Collection[str] = ()) -> Any:
    """``body`` with messages that a model of text can read, where their conversation is under way.

    Images and the like become a text that names them, and parts by the assistant that are not of its ``allowed`` types
    are left out. Where nothing is lost they stay, and are refused where parts are looked over.
    """
    messages = body.get("messages") if isinstance(body, dict) else None
    if not isinstance(messages, list) or not is_under_way(body, messages):
        return body
    return body | {"messages": [_readable(message, allowed) for message in messages]}


def is_the_assistants(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "assistant"


def _readable(message: Any, allowed: Collection[str]) -> Any:
    if not isinstance(message, dict) or not isinstance(content := message.get("content"), list):
        return message
    seen = [readable_part(part) for part in content]
    if allowed and message.get("role") == "assistant":
        seen = [part for part in seen if _is_allowed(part, allowed)] or [{"type": "text", "text": ""}]
    return message | {"content": seen}


def readable_part(part: Any) -> Any:
    """``part`` with words in place of images and the like, also in what it contains."""
    kind = type_of(part)
    if kind in SENSES:
        return {"type": "text", "text": placeholder(SENSES[kind])}
    if kind is not None and isinstance(inner := part.get("content"), list):
        return part | {"content": [readable_part(each) for each in inner]}
    return part


def _is_allowed(part: Any, allowed: Collection[str]) -> bool:
    kind = type_of(part)
    if kind is None or kind in allowed or kind in _TEXTS:
        return True
    ignore(f"content.{kind}")
    return False
