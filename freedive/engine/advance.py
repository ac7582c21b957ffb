"""One token more for an answer: chosen, read as text, and looked at whether it is the last."""

from __future__ import annotations

import time

from freedive.engine.request import FinishReason, Piece
from freedive.engine.sampler import Floats, logprobs
from freedive.engine.scheduler import Request


def next_piece(request: Request, logits: Floats) -> Piece:
    """Choose the next token of ``request`` under ``logits``; what it adds. Raises what sampler and guide raise."""
    token = _sample(request, logits)
    request.tokens.append(token)
    timings, num_top = request.generation.timings, request.sampling.logprobs
    timings.num_generated += 1
    timings.first_token_at = timings.first_token_at or time.perf_counter()
    text, reason = _read(request, token)
    details = None if num_top is None else (logprobs(logits, token, num_top),)
    return Piece(text, (token,), reason, details, timings if reason else None, request.text.stop_string)


def _sample(request: Request, logits: Floats) -> int:
    if not request.guide:
        return request.sampler(logits)
    token = request.sampler(logits, request.guide.allowed())
    request.guide.take(token)
    return token


def _read(request: Request, token: int) -> tuple[str, FinishReason | None]:
    """The text that ``token``, the newest of ``request``, adds, and why the answer ends with it, if it does."""
    stream = request.text
    if token in request.stop_ids:
        return stream.close(), "stop"
    text = stream.push(token)
    complete = request.guide is not None and request.guide.complete
    at_end = len(request.tokens) == request.max_length
    if complete or at_end:
        text += stream.close()
    return text, "stop" if stream.stopped or complete else "length" if at_end else None
