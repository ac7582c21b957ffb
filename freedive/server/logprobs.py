"""Log-probabilities of tokens as JSON, in OpenAI's two formats; Ollama uses the chat format."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from freedive.engine.generation import TokenLogprobs
from freedive.json_object import Json
from freedive.server.model import Tokenizer


def token_name(token_id: int, tokenizer: Tokenizer) -> str:
    r"""Returns the text of a token, or its bytes in OpenAI's notation (``bytes:\xf0\x9f``) if they are not UTF-8."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def num_bytes(entries: Iterable[TokenLogprobs]) -> int:
    """Returns the approximate size of ``entries`` as JSON, in bytes."""
    return sum(128 * (1 + len(entry.top)) for entry in entries)


def logprob_object(entry: TokenLogprobs, tokenizer: Tokenizer) -> Json:
    """Returns the log-probabilities of the chosen token and of the likeliest tokens in the format of the chat API."""
    top = [_token(token_id, logprob, tokenizer) for token_id, logprob in entry.top]
    return _token(entry.token_id, entry.logprob, tokenizer) | {"top_logprobs": top}


def _token(token_id: int, logprob: float | None, tokenizer: Tokenizer) -> Json:
    bytes_ = list(tokenizer.token_bytes(token_id))
    return {"token": token_name(token_id, tokenizer), "logprob": logprob, "bytes": bytes_}


class CompletionLogprobs:
    """The log-probabilities of one answer, written part by part as the lists of OpenAI's completions API.

    ``text_offset`` of a token is the index of the character that the token starts or continues.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_chars = 0

    def skip(self, num_chars: int) -> None:
        """Excludes the next ``num_chars`` characters from the offsets, because the answer does not show them."""
        self._num_chars -= max(num_chars, 0)

    def part(self, entries: Sequence[TokenLogprobs]) -> Json:
        """Returns the lists for the next tokens."""
        return {
            "tokens": [token_name(entry.token_id, self._tokenizer) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [None if entry.logprob is None else self._top(entry) for entry in entries],
            "text_offset": [self._offset(entry.token_id) for entry in entries],
        }

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """Returns the likeliest tokens by text; of several tokens with one text, the chosen or the likeliest counts."""
        best = {token_name(token_id, self._tokenizer): logprob for token_id, logprob in reversed(entry.top)}
        name = token_name(entry.token_id, self._tokenizer)
        if name in best and entry.logprob is not None:
            best[name] = entry.logprob
        return dict(reversed(best.items()))

    def _offset(self, token: int) -> int:
        offset = max(self._num_chars, 0)
        self._num_chars += len(self._utf8.decode(self._tokenizer.token_bytes(token)))
        return offset
