"""Message content in parts, for several APIs: text parts are kept, other modalities are replaced or refused."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from freedive.errors import UserError
from freedive.server.request_body import ignore, listed, only, type_of

MODALITIES = {
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
"""Types of parts that a text model cannot read, and the modality of each."""

_TEXTS = {"input_text": "text", "output_text": "text", "refusal": "refusal", "text": "text"}
"""Types of text parts of all APIs, and the field that holds the text."""

_HELD: Mapping[tuple[str | None, str | None], str] = {
    ("search_result", None): "content",
    ("document", "text"): "data",
    ("document", "content"): "content",
}
"""The field that holds a text or text parts, by the types of the part and of its source."""


def content_validator(*kinds: str, param: str = "messages") -> Callable[[Any], Any]:
    """Returns a validator of a list of parts, which converts strings and text parts of other APIs to ``kinds[0]``.

    The validator refuses parts of types that are not in ``kinds`` before their fields are validated.
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
    part = _opened(part)
    kind = type_of(part)
    if kind in _TEXTS and kind not in kinds:
        return {**part, "type": text, "text": part.get(_TEXTS[kind])}
    return part


def _opened(part: Any) -> Any:
    """Returns Anthropic's search results and documents of text as text: title, source, context, and what they hold.

    Raises UserError if one of these is no text.
    """
    source = part.get("source") if isinstance(part, dict) else None
    held = _HELD.get((type_of(part), type_of(source)))
    if not held:
        return part
    content = listed((source if isinstance(source, dict) else part).get(held))
    heads = [part.get("title"), None if isinstance(source, dict) else source, part.get("context")]
    lines = [head for head in heads if head is not None]
    lines += map(_text_of, content) if isinstance(content, list) else [content]
    if not all(isinstance(line, str) for line in lines):
        raise UserError(f"'{part['type']}' holds something that is not text", "Send text parts", param="content")
    opened = {"context", "source", "title"} | (set() if isinstance(source, dict) else {held})
    for name in source.keys() - {"media_type", "type", held} if isinstance(source, dict) else ():
        ignore(name)
    rest = {name: value for name, value in part.items() if name not in opened}
    return rest | {"type": "text", "text": "\n".join(filter(None, lines))}


def _text_of(part: Any) -> Any:
    """Returns the text of a text part, and reports its other fields as ignored; None for any other part."""
    if type_of(part) != "text":
        return part if isinstance(part, str) else None
    for name in part.keys() - {"type", "text"}:
        if part[name] is not None:
            ignore(name)
    return part.get("text")


def placeholder(thing: str) -> str:
    """Returns the text that replaces an image, audio, video or file, and reports ``thing`` as ignored."""
    ignore(thing)
    return f"[{thing}: this model cannot {'hear' if thing == 'audio' else 'see'} it]"


def is_under_way(body: Mapping[str, Any], messages: Iterable[Any]) -> bool:
    """Whether refusing a part would break a running conversation: it has an assistant message, or tools.

    Agents send the first message again in every request, so an image in it would make every later request fail.
    """
    return bool(body.get("tools")) or any(map(is_the_assistants, messages))


def readable(body: Any, allowed: Collection[str] = ()) -> Any:
    """Returns ``body`` with messages that a text model can read, if their conversation is under way.

    Images, audio, video and files become a text that names them. Assistant parts of types that are not ``allowed`` are
    dropped and reported. In a new conversation all parts stay, and the validator refuses them.
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
    """Returns ``part`` with texts in place of images, audio, video and files, also in nested parts."""
    part = _with_readable_content(part)
    if type_of(part) == "document":
        part = part | {"source": _with_readable_content(part.get("source"))}
    part = _opened(part)
    kind = type_of(part)
    return {"type": "text", "text": placeholder(MODALITIES[kind])} if kind in MODALITIES else part


def _with_readable_content(holder: Any) -> Any:
    parts = holder.get("content") if isinstance(holder, dict) else None
    return holder | {"content": [readable_part(part) for part in parts]} if isinstance(parts, list) else holder


def _is_allowed(part: Any, allowed: Collection[str]) -> bool:
    kind = type_of(part)
    if kind is None or kind in allowed or kind in _TEXTS:
        return True
    ignore(f"content.{kind}")
    return False
