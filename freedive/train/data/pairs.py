"""Records of a question and its answer, under the names that data sets and tables give to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from freedive.errors import UserError
from freedive.train.data.stories import Message

QUESTIONS = ("prompt", "question", "instruction", "input", "query")
ANSWERS = ("completion", "answer", "output", "response")
"""Names of the two parts, in any case."""


def chat_of(record: Mapping[str, Any], place: str) -> list[Message]:
    """Returns the two messages of a record with a question and an answer; none if it has no such parts.

    An instruction may have an input, which stands below it in the question. Raises UserError if a part is missing,
    empty or not text, or if two of its names are used.
    """
    named = {name.strip().lower(): value for name, value in record.items() if isinstance(name, str)}
    questions, answers = ({name: named[name] for name in names if name in named} for names in (QUESTIONS, ANSWERS))
    if not (questions and answers):
        return []
    if questions.keys() == {"instruction", "input"} and questions["input"] in (None, ""):
        del questions["input"]
    joined = questions.keys() == {"instruction", "input"}
    for found in (answers, questions):
        if len(found) > 1 and not (joined and found is questions):
            raise UserError(f"{place} has both {' and '.join(found)}", "Leave out all but one of them")
        for name, value in found.items():
            if not isinstance(value, str) or not value.strip():
                raise UserError(f"{place} has no text as {name}", "Write one, or remove the record")
    question = "\n\n".join(questions.values())
    return [{"role": "user", "content": question}, {"role": "assistant", "content": next(iter(answers.values()))}]
