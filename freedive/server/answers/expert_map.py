"""What the page's expert map shows of an answer that runs: its tokens, what else was likely, and their experts."""

from __future__ import annotations

import math
from base64 import b64encode
from collections.abc import AsyncGenerator

from freedive.engine.watch import Watch, WatchedToken
from freedive.json_object import Json
from freedive.server.answers.running import RunningAnswer
from freedive.server.logprobs import token_name
from freedive.server.model import Model, Tokenizer
from freedive.server.stream import event

BATCH_S = 0.1
"""Seconds between two events, which bound how often the page draws: it may share the cores with the model."""


async def expert_events(answer: RunningAnswer) -> AsyncGenerator[bytes, None]:
    """Yields the model's shape, then the tokens from now on until the answer ends; the engine tells them meanwhile."""
    completions = await answer.submitted()
    if completions:
        model, [generation] = completions.model, completions.generations
        yield event({"model": _shape(model)})
        with generation.watches.open() as watch:
            is_over = False
            while not is_over:
                is_over = await answer.has_ended(BATCH_S)
                if tokens := _taken(watch, model.tokenizer):
                    yield event({"tokens": tokens})
    yield event({"over": True})


def _shape(model: Model) -> Json:
    """Returns the number of experts of each layer that has some, and whether experts stay on disk."""
    return {
        "experts": [len(load) for load in model.expert_load()],
        "on_disk": model.expert_cache() is not None,
    }


def _taken(watch: Watch, tokenizer: Tokenizer) -> list[Json]:
    """Returns the tokens that wait, as JSON."""
    return [_token(watch.popleft(), tokenizer) for _ in range(len(watch))]


def _token(token: WatchedToken, tokenizer: Tokenizer) -> Json:
    """Returns a token as JSON.

    ``experts`` is the base64 of uint16 [layers * num_chosen], 65535 where a layer chooses fewer; ``missed`` are the
    places in it of those that were read from disk.
    """
    return {
        "index": token.index,
        "text": token_name(token.token_id, tokenizer),
        "p": _probability(token.logprob),
        "top": [(token_name(id, tokenizer), _probability(logprob)) for id, logprob in token.top],
        "experts": b64encode(token.experts.astype("<u2").tobytes()).decode(),
        "missed": _missed_places(token),
    }


def _probability(logprob: float) -> float:
    return round(math.exp(logprob), 6)


def _missed_places(token: WatchedToken) -> list[int]:
    if not any(token.missed):
        return []
    layers = zip(token.experts.tolist(), map(set, token.missed), strict=True)
    chosen = [expert in missed for experts, missed in layers for expert in experts]
    return [place for place, is_missed in enumerate(chosen) if is_missed]
