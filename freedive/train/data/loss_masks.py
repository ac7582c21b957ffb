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
"""Tokens, and the loss weight of each: 1 or 0."""

Messages = Sequence[Message]


@dataclass(frozen=True)
class Rendered:
    """A chat as the template writes it; ``spans`` are the characters of the assistant's answers and of their ends."""

    text: str
    spans: tuple[tuple[int, int], ...]


def documents(record: dict[str, Any], tokenizer: Tokenizer, template: ChatTemplate) -> Iterator[Document]:
    """Yields the tokens and loss masks of a record, {"text": ...} or {"messages": [...]}.

    Raises UserError if the model has no chat template, or if the template refuses the messages or omits an answer.
    """
    if "text" in record:
        yield _whole(record["text"], tokenizer)
        return
    for chat in rendered(record["messages"], template):
        tokens = tokenizer.encode_at(chat.text)  # a token is learned if any of its characters is part of an answer
        learned = [int(any(begin < to and at < end for begin, end in chat.spans)) for _, at, to in tokens]
        yield [index for index, _, _ in tokens], learned


def rendered(messages: Messages, template: ChatTemplate) -> list[Rendered]:
    """Renders a chat as few times as its template allows, with the answers that are to be learned in ``spans``.

    Most templates only append to the text as a chat grows; then one rendering holds all answers. Others change earlier
    messages, for example drop their thoughts: there each answer has a rendering of its own that ends with it, as the
    model sees it when it is served.
    """
    found: list[Rendered] = []
    plain = [{key: message[key] for key in ("role", "content")} for message in messages]
    for index, message in enumerate(messages):
        if message["role"] != "assistant" or not message.get("weight", 1):
            continue
        turn = _turn(plain[:index], plain[index], template)
        if found and turn.text.startswith(found[-1].text):
            turn = Rendered(turn.text, found.pop().spans + turn.spans)
        found.append(turn)
    return found


def _turn(before: Messages, answer: Message, template: ChatTemplate) -> Rendered:
    """Renders the messages ``before`` and the ``answer``; the span is that of the answer alone.

    The span begins where the text first differs from the prompt for an answer, or at the answer's content if that comes
    first: some templates add to the prompt what they do not write later, such as the mark that opens a thought. If the
    two texts differ before the last question ends, the span is the content alone. Whitespace at the end is not learned,
    since a model that has ended its turn does not write it.
    """
    prompt = template.render(before) if before else ""
    text = template.render([*before, answer], add_generation_prompt=False).rstrip()
    content: str = answer["content"].strip()
    place = text.rfind(content)
    if place < 0:
        raise UserError(
            f"The model's chat template does not write the answer {content[:40]!r} as it is",
            "Leave such answers out, or change them",
        )
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(prompt, text, strict=False)))
    question: str = before[-1]["content"].strip() if before else ""
    question_end = text.rfind(question, 0, place) + len(question)
    begin = min(place, shared) if shared >= question_end else place
    return Rendered(text, ((begin, len(text)),))


def _whole(text: str, tokenizer: Tokenizer) -> Document:
    """Encodes a text between the begin and end tokens that the model has; every token after the first is learned."""
    tokens = tokenizer.encode(text, add_special=True, parse_special=False)
    ids = {token: index for index, token in tokenizer.added_tokens.items()}
    end = ids.get(tokenizer.roles.get("eos_token", ""))
    if end is not None and tokens[-1:] != [end]:
        tokens.append(end)
    return tokens, [0] * (tokens != []) + [1] * (len(tokens) - 1)
