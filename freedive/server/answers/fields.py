"""Bodies of the page's requests for answers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from freedive.errors import UserError
from freedive.server.conversations.fields import Id
from freedive.server.conversations.records import Label
from freedive.server.request_body import RequestBody

Decision = Literal["once", "always", "refuse"]
"""Whether a call may run: this one, all of its tool in this conversation, or not."""


class DecisionRequest(RequestBody):
    """The user's answer to the question about a call."""

    answer: Decision


class AnswerRequest(RequestBody):
    """Another answer to ``parent``, a message of the user, or more of the answer that ``continue`` names."""

    parent: Id | None = None
    continue_: Id | None = Field(None, alias="continue")
    model: Label = ""

    @model_validator(mode="after")
    def _names_one(self) -> AnswerRequest:
        if (self.parent is None) == (self.continue_ is None):
            raise UserError("The body must have either 'parent' or 'continue'", "Send one of them", param="parent")
        if self.model and self.continue_:
            raise UserError("A continued answer keeps its model", "Leave 'model' out", param="model")
        return self
