"""Compiles and renders chat templates; every error of a template becomes a UserError."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from jinja2 import Template, TemplateSyntaxError

from freedive.errors import TemplateRefusal, UserError
from freedive.text.sandbox import Refused, Sandbox


class Renderer:
    """Renders templates by name; compiles each at its first use. Safe to use from several threads."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self._sources = sources
        self._compiled: dict[str, Template] = {}
        self._sandbox = Sandbox()
        self._lock = threading.Lock()

    def render(self, name: str, variables: Mapping[str, Any]) -> str:
        """Renders the template ``name`` with ``variables``. Raises UserError if it does not exist, refuses or fails."""
        with self._lock:  # the sandbox counts one rendering at a time
            try:
                self._sandbox.budget.begin()
                return self._template(name).render(variables)
            except UserError:
                raise
            except Refused as error:
                what = f"The chat template refuses these messages: {_line(error)}"
                raise TemplateRefusal(what, param="messages") from None
            except Exception as error:  # a template is untrusted code and can raise any error
                raise UserError(
                    f"The chat template fails: {_line(error) or type(error).__name__}",
                    "Check the messages' fields, or continue plain text with --raw, or by /v1/completions",
                    param="messages",
                ) from None
            finally:
                self._sandbox.budget.begin()  # it holds the values that it has measured

    def _template(self, name: str) -> Template:
        if name not in self._sources:
            known = f"only the chat templates {', '.join(self._sources)}" if self._sources else "no chat template"
            raise UserError(
                f"This model has {known}",
                "It is probably not a chat model: continue plain text with --raw, or by /v1/completions",
            )
        if name not in self._compiled:
            try:
                self._compiled[name] = self._sandbox.from_string(self._sources[name])
            except TemplateSyntaxError as error:
                raise UserError(
                    f"The model's chat template is not valid (line {error.lineno}: {_line(error)})",
                    "Continue plain text with --raw, or by /v1/completions",
                ) from None
        return self._compiled[name]


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
