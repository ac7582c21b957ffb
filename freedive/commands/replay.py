"""``freedive replay FILE``: answers a recorded request again and compares the answers."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import freedive
from freedive.commands.flags import Values, settings
from freedive.config import EngineConfig, load
from freedive.engine.recording import Recording, first_difference
from freedive.errors import UserError
from freedive.files import JSON_LIMIT, quote


@settings(engine=EngineConfig)
def replay(
    file: Annotated[Path, typer.Argument(help="From freedive run --save-request or a server's /v1/requests/ID.")],
    model: Annotated[str, typer.Option(help="The model; default: the one that is recorded.")] = "",
    *,
    engine: Values,
) -> None:
    recording = read_recording(file)
    with freedive.load(model or recording.request.model, **asdict(load(EngineConfig, engine))) as loaded:
        for name, now in loaded.fingerprint.items():
            if (then := recording.made_by.get(name, "unknown")) != now:
                print(f"{name} was {quote(then)[1:-1]}, and is {now}", file=sys.stderr)
        differing = 0
        for number, (answer, reply) in enumerate(zip(recording.answers, loaded.replay(recording), strict=True), 1):
            place = first_difference(answer.token_ids, reply.token_ids)
            if place is None and answer.finish_reason == reply.finish_reason:
                print(f"answer {number}: the same, {len(reply.token_ids)} tokens")
                continue
            differing += 1
            if place is None:
                then, now, where = quote(answer.finish_reason), repr(reply.finish_reason), "in what ended it"
            else:
                then, now = (_token(loaded, ids, place) for ids in (answer.token_ids, reply.token_ids))
                where = f"at token {place + 1}"
            print(f"answer {number}: differs {where}: {then} then, {now} now")
    if differing:
        raise typer.Exit(1)


def read_recording(file: Path) -> Recording:
    """Reads a recording. Raises UserError if ``file`` cannot be read."""
    try:
        with file.open("rb") as opened:
            text = opened.read(JSON_LIMIT + 1)
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror})", "Name another file") from None
    if len(text) > JSON_LIMIT:
        raise UserError(f"{file} is longer than {JSON_LIMIT} bytes", "Name another file")
    return Recording.from_json(text)


def _token(model: freedive.LanguageModel, ids: tuple[int, ...], place: int) -> str:
    """Returns the token at ``place`` with its text."""
    if place >= len(ids):
        return "nothing"
    known = ids[place] < model.tokenizer.vocab_size
    return f"{ids[place]} {model.tokenizer.token_text(ids[place])!r}" if known else str(ids[place])
