"""``freedive run MODEL [PROMPT]``: prints one answer, for use in pipes."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import freedive
from freedive.commands.flags import Reference, Values, settings
from freedive.commands.printing import print_answer, print_paging
from freedive.config import EngineConfig, load
from freedive.engine.recording import Recording
from freedive.engine.request import GenerationRequest
from freedive.engine.sampling import Sampling
from freedive.errors import UserError
from freedive.text.format import Format
from freedive.text.request import ChatInput, TextInput

UNPRINTED = frozenset({"logprobs", "prompt_logprobs"})
"""Sampling fields that change the report but not the text."""


@settings(sampling=Sampling, engine=EngineConfig, leave_out=UNPRINTED)
def run(
    model: Reference,
    prompt: Annotated[str, typer.Argument(help="The prompt; - or nothing reads standard input.")] = "-",
    system: Annotated[str, typer.Option(help="Instructions that precede the conversation.")] = "",
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without a chat template.")
    ] = False,
    json_schema: Annotated[
        Path | None, typer.Option("--json-schema", help="A file with the JSON schema that the answer has to match.")
    ] = None,
    save_request: Annotated[
        Path | None, typer.Option("--save-request", help="A file for the request and its answer; see freedive replay.")
    ] = None,
    *,
    sampling: Values,
    engine: Values,
) -> None:
    if prompt == "-" and sys.stdin.isatty():
        raise UserError(
            "There is no prompt", 'Write it as an argument, or pipe it in: echo "text" | freedive run MODEL'
        )
    text = sys.stdin.read().strip("\n") if prompt == "-" else prompt
    if not text.strip():
        raise UserError("The prompt is empty", "Write it as an argument, or pipe it in")
    Sampling(**sampling)  # raises UserError before the model is loaded
    format = read_format(json_schema) if json_schema else None
    config = load(EngineConfig, engine)
    loaded = freedive.load(model, **asdict(config))
    print_paging(loaded)
    try:
        instructions = ({"role": "system", "content": system},) if system else ()
        messages = (*instructions, {"role": "user", "content": text})
        asked = TextInput(text, format=format) if raw else ChatInput(messages, format=format)
        request = GenerationRequest(model, (asked,), sampling)
        [reply] = loaded.answer(request)
        written = print_answer(reply.events())
        print()
        if save_request:
            save(loaded.record(request, [reply]), save_request)
        if json_schema and not is_json(written):
            raise UserError("The answer ends before it matches the schema", "Raise --max-tokens or --max-context")
    finally:
        loaded.close()


def is_json(text: str) -> bool:
    """Returns whether ``text`` is complete JSON."""
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def save(recording: Recording, file: Path) -> None:
    """Writes ``recording`` to ``file``. Raises UserError if that fails."""
    try:
        file.write_text(recording.to_json() + "\n", "utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror})", "Name another file") from None


def read_format(file: Path) -> Format:
    """Reads a format from a file with a JSON schema. Raises UserError if it holds none."""
    try:
        return Format("json_schema", json.loads(file.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} holds no JSON schema ({error})", "Write one, as JSON, or name another file") from None
