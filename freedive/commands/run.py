"""``freedive run MODEL [PROMPT]``: one answer, fit for pipes."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

import freedive
from freedive.commands.answer import print_answer
from freedive.commands.flags import Reference, Values, settings
from freedive.config import EngineConfig, load
from freedive.engine.request import Sampling
from freedive.errors import UserError
from freedive.text.dialects.dialect import Text

UNPRINTED = frozenset({"logprobs"})
"""Sampling fields that change what is reported, not the text."""


@settings(sampling=Sampling, engine=EngineConfig, leave_out=UNPRINTED)
def run(
    model: Reference,
    prompt: Annotated[str, typer.Argument(help="The prompt; - or nothing reads standard input.")] = "-",
    system: Annotated[str, typer.Option(help="Instructions that precede the conversation.")] = "",
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as plain text, without a chat template.")
    ] = False,
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
    Sampling(**sampling)  # refused before anything heavy is loaded
    config = load(EngineConfig, engine)
    loaded = freedive.load(model, **asdict(config))
    try:
        if raw:
            print_answer(map(Text, loaded.complete(text, **sampling)))
        else:
            instructions = [{"role": "system", "content": system}] if system else []
            print_answer(loaded.answer([*instructions, {"role": "user", "content": text}], **sampling))
        print()
    finally:
        loaded.close()
