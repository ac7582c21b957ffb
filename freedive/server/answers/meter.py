"""The numbers of an answer: while it waits, while it runs, and as they are stored with it."""

from __future__ import annotations

from freedive.json_object import Json
from freedive.server.completion_stream import Completions
from freedive.server.conversations.records import Message

NOTHING: Json = {
    "tokens_per_s": 0.0,
    "first_token_s": 0.0,
    "thought_s": 0.0,
    "num_tokens": 0,
    "max_context": 0,
    "prompt_tokens": 0,
    "cached_tokens": 0,
    "prefilled": 0,
    "queue_place": None,
}
"""The meter of an answer whose model is being loaded, or of a message that was not generated here."""


def running_meter(completions: Completions | None, thought_s: float) -> Json:
    """Returns the meter of an answer that runs; ``completions`` is None until its request was accepted.

    ``prefilled`` are the prompt tokens that were processed, cached ones included. ``queue_place`` is the number of
    requests that came earlier and wait like this one, None if it does not wait.
    """
    if completions is None:
        return NOTHING
    [generation], usage, timings = completions.generations, completions.usage, completions.timings
    waits = timings.started_at is None and timings.finished_at is None
    return {
        "tokens_per_s": timings.tokens_per_s,
        "first_token_s": timings.first_token_s,
        "thought_s": thought_s,
        "num_tokens": usage.total_tokens,
        "max_context": completions.model.max_context,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "prefilled": generation.num_prefilled_tokens,
        "queue_place": completions.model.engine.place(generation) if waits else None,
    }


def stored_meter(message: Message) -> Json:
    """Returns the meter of a message that has ended, from what is stored with it."""
    usage, timings = message.usage, message.timings
    numbers = {name: value for name, value in {**usage, **timings}.items() if name in NOTHING}
    return {**NOTHING, **numbers, "prefilled": usage.get("prompt_tokens", 0)}


def usage_of(completions: Completions | None, before: Json) -> Json:
    """Returns the token counts to store; those of the answer are added to those from ``before`` it was continued."""
    if completions is None:
        return before
    usage = completions.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "completion_tokens": usage.completion_tokens + before.get("completion_tokens", 0),
        "thought_tokens": usage.thought_tokens + before.get("thought_tokens", 0),
        "num_tokens": usage.total_tokens,
        "max_context": completions.model.max_context,
    }


def timings_of(completions: Completions | None, thought_s: float) -> Json:
    """Returns the durations to store, in seconds."""
    if completions is None:
        return {}
    timings = completions.timings
    names = ("queued_s", "prefill_s", "first_token_s", "decode_s", "tokens_per_s")
    return {name: round(getattr(timings, name), 4) for name in names} | {"thought_s": round(thought_s, 4)}
