"""Log-probabilities of tokens as JSON: OpenAI's form, which Ollama has taken over."""

from __future__ import annotations

from typing import Any

from freedive.engine.request import TokenLogprobs
from freedive.server.model import Tokenizer

Json = dict[str, Any]


def logprob_object(entry: TokenLogprobs, tokenizer: Tokenizer) -> Json:
    """Of the token chosen, and of the likeliest."""
    top = [_token(token_id, logprob, tokenizer) for token_id, logprob in entry.top]
    return _token(entry.token_id, entry.logprob, tokenizer) | {"top_logprobs": top}


def _token(token_id: int, logprob: float, tokenizer: Tokenizer) -> Json:
    bytes_ = list(tokenizer.token_bytes(token_id))
    return {"token": tokenizer.token_text(token_id), "logprob": logprob, "bytes": bytes_}
