"""A model's answer to one question of the data, to be compared before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from freedive.engine.kvcache import pages_for
from freedive.model.batch import Batch, StateUpdates
from freedive.ops.torch import TorchRunner
from freedive.train.data.stories import Record
from freedive.train.finetune.base_model import BaseModel
from freedive.train.model.net import unstacked

MAX_TOKENS = 64
"""The most tokens of an answer."""

OPENING_SHARE = 3
"""A third of a text without a question, at most so many characters, is its beginning."""
MAX_OPENING = 200


@dataclass(frozen=True)
class Question:
    """A ``prompt`` of tokens, the ``text`` that is shown for it, and the ``expected`` answer of the data."""

    prompt: Sequence[int]
    text: str
    expected: str


def question_of(base: BaseModel, records: Sequence[Record]) -> Question | None:
    """Returns the question of the first record that has one whose answer fits into the model's context."""
    for record in records:
        question = _of_text(base, record["text"]) if "text" in record else _of_chat(base, record["messages"])
        if question and 0 < len(question.prompt) <= base.model.max_context - MAX_TOKENS:
            return question
    return None


def _of_text(base: BaseModel, text: str) -> Question:
    length = min(MAX_OPENING, len(text) // OPENING_SHARE)
    opening = text[:length].rpartition(" ")[0] or text[:length]
    prompt = base.tokenizer.encode(opening, add_special=True, parse_special=False)
    return Question(prompt, opening, text[len(opening) :])


def _of_chat(base: BaseModel, messages: Sequence[Mapping[str, str]]) -> Question | None:
    roles = [message["role"] for message in messages]
    index = next((index for index, role in enumerate(roles) if role == "assistant"), 0)
    if not index or roles[index - 1] != "user":
        return None
    before = [{key: message[key] for key in ("role", "content")} for message in messages[:index]]
    prompt = base.tokenizer.encode(base.template.render(before))
    return Question(prompt, before[-1]["content"], messages[index]["content"])


def answer(base: BaseModel, weights: Mapping[str, Tensor], question: Question) -> str:
    """Returns the most probable answer with stacked ``weights``, without special tokens."""
    prompt = question.prompt
    pages = pages_for(len(prompt) + MAX_TOKENS)
    with torch.no_grad():
        flat = dict(unstacked({name: weight.detach() for name, weight in weights.items()}))
    runner = TorchRunner(base.model, flat, num_pages=pages, num_slots=1)
    tokens, start = list(prompt), 0
    while len(tokens) < len(prompt) + MAX_TOKENS:
        logits = runner.step(_step(tokens, start, len(prompt), pages))
        start = len(tokens)
        tokens.append(int(logits[0].argmax()))
        if tokens[-1] in base.tokenizer.stop_ids:
            break
    return base.tokenizer.decode(tokens[len(prompt) :]).strip()


def _step(tokens: Sequence[int], start: int, num_prompt: int, pages: int) -> Batch:
    """Returns the step that computes the tokens from ``start`` on."""
    fed = np.array(tokens[start:], np.int32)
    lengths, starts = np.array([len(fed)], np.int32), np.array([start], np.int32)
    return Batch(
        tokens=fed,
        lengths=lengths,
        starts=starts,
        pages=np.arange(pages, dtype=np.int32)[None],
        output_rows=lengths - 1,
        prompts=np.array([num_prompt], np.int32),
        states=StateUpdates.plain(np.zeros(1, np.int32), starts, lengths),
    )
