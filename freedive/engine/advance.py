"""One token more for an answer: chosen, read, and looked at whether it is the last."""

from __future__ import annotations

import time

from freedive.engine.request import FinishReason, Piece
from freedive.engine.sampler import Floats, logprobs
from freedive.engine.scheduler import Request
from freedive.text.dialects.dialect import Event


def next_piece(request: Request, logits: Floats) -> Piece:
    """Choose the next token of ``request`` under ``logits``; what it adds. Raises what sampler and guide raise."""
    token = _sample(request, logits)
    request.tokens.append(token)
    timings, num_top = request.generation.timings, request.sampling.logprobs
    timings.num_generated += 1
    timings.first_token_at = timings.first_token_at or time.perf_counter()
    events, reason = _read(request, token)
    return Piece(
        events,
        (token,),
        reason,
        None if num_top is None else (logprobs(logits, token, num_top),),
        timings if reason else None,
        request.text.stop_string,
        is_thinking=request.text.is_thinking,
        prompt_logprobs=request.scores.taken() if request.scores else (),
    )


def empty_piece(request: Request) -> Piece:
    """The only piece of a ``request`` that asks for no tokens, when its prompt has been computed."""
    prompt_logprobs = request.scores.taken() if request.scores else ()
    return Piece((), (), "length", timings=request.generation.timings, prompt_logprobs=prompt_logprobs)


def _sample(request: Request, logits: Floats) -> int:
    if not request.guide:
        return request.sampler(logits)
    token = request.sampler(logits, request.guide.allowed())
    request.guide.take(token)
    return token


def _read(request: Request, token: int) -> tuple[list[Event], FinishReason | None]:
    """The events that ``token``, the newest of ``request``, adds, and why the answer ends with it, if it does."""
    stream = request.text
    events = [] if token in request.stop_ids else stream.push(token)
    reason = _ending(request, token)
    if reason:
        events += stream.close()
    return events, "stop" if stream.stopped else reason


def _ending(request: Request, token: int) -> FinishReason | None:
    """Why the answer of ``request`` ends with ``token``, stop strings aside."""
    if token in request.stop_ids or (request.guide is not None and request.guide.complete):
        return "stop"
    if len(request.tokens) == request.max_length:
        return "length"
    return "repetition" if request.repetition and request.repetition.add(token) else None
