"""Tokens and loss masks of chats and texts, for any model's tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from freedive.errors import UserError
from freedive.text.template import ChatTemplate
from freedive.text.tokenizer import Tokenizer
from freedive.train.data.stories import Message

Document = tuple[list[int], list[int]]
"""Tokens, and the weight of each one's loss: 1 or 0."""

Messages = Sequence[Message]


@dataclass(frozen=True)
class Rendered:
    """A chat as the template writes it; what the assistant says, its end included, is in ``spans`` of characters."""

    text: str
    spans: tuple[tuple[int, int], ...]


def documents(record: dict[str, Any], tokenizer: Tokenizer, template: ChatTemplate) -> Iterator[Document]:
    """What is to be learned of a record, {"text": ...} or {"messages": [...]}.

    Raises UserError where the model has no template, or one that refuses the messages or leaves answers out.
    """
    if "text" in record:
        yield _whole(record["text"], tokenizer)
        return
    for chat in rendered(record["messages"], template):
        tokens = tokenizer.encode_at(chat.text)  # one that is part of an answer is learned, as a space before it may be
        learned = [int(any(begin < to and at < end for begin, end in chat.spans)) for _, at, to in tokens]
        yield [index for index, _, _ in tokens], learned


def rendered(messages: Messages, template: ChatTemplate) -> list[Rendered]:
    """The chat, as few times as its template allows.

    Each answer is found by what the template writes before it, and with it; those with ``weight`` 0 are not learned.
    Most templates write a chat as they wrote its beginning, and more; then one rendering holds all answers. Others
    change what came before, such as those that drop former thoughts: there each answer is learned in a rendering that
    ends with it, as the model will see it.
    """
    found: list[Rendered] = []
    said = [{key: message[key] for key in ("role", "content")} for message in messages]
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or not message.get("weight", 1):
            continue
        turn = _turn(said[:index], said[index], template)
        if found and turn.text.startswith(found[-1].text):
            turn = Rendered(turn.text, found.pop().spans + turn.spans)
        found.append(turn)
    return found


def _turn(before: Messages, answer: Message, template: ChatTemplate) -> Rendered:
    """The messages ``before`` and the ``answer``, of which alone the span is.

    It begins where the text parts from a prompt for an answer, and with the answer's own words at the latest: not all
    templates prompt with what they write, such as those that open a thought. Where they part before the last question
    has ended, it is those words alone. Whitespace at the end is not learned: no model that has ended its turn goes on
    to write it.
    """
    prompt = template.render(before) if before else ""
    text = template.render([*before, answer], add_generation_prompt=False).rstrip()
    said: str = answer["content"].strip()
    place = text.rfind(said)
    if place < 0:
        raise UserError(
            f"The model's chat template does not write the answer {said[:40]!r} as it is",
            "Leave such answers out, or change them",
        )
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, text, strict=False)))
    asked: str = before[-1]["content"].strip() if before else ""
    heard = text.rfind(asked, 0, place) + len(asked)
    begin = min(place, shared) if shared >= heard else place
    return Rendered(text, ((begin, len(text)),))


def _whole(text: str, tokenizer: Tokenizer) -> Document:
    """A text between the marks of its begin and its end, as far as the model has them: all that follows on anything."""
    tokens = tokenizer.encode(text, add_special=True, parse_special=False)
    ids = {token: index for index, token in tokenizer.added_tokens.items()}
    end = ids.get(tokenizer.roles.get("eos_token", ""))
    if end is not None and tokens[-1:] != [end]:
        tokens.append(end)
    return tokens, [0] * (tokens != []) + [1] * (len(tokens) - 1)
