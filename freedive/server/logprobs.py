"""Log-probabilities of tokens as JSON, in OpenAI's two formats; Ollama uses the chat format."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence

from freedive.engine.generation import TokenLogprobs
from freedive.json_object import Json
from freedive.server.model import Tokenizer


def token_name(token_id: int, tokenizer: Tokenizer) -> str:
    r"""The text of a token or, of one that is no text by itself, its bytes in OpenAI's notation: ``bytes:\xf0\x9f``."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def num_bytes(entries: Iterable[TokenLogprobs]) -> int:
    """About how long they are as JSON."""
    return sum(128 * (1 + len(entry.top)) for entry in entries)


def logprob_object(entry: TokenLogprobs, tokenizer: Tokenizer) -> Json:
    """Of the token chosen, and of the likeliest: as chats have it."""
    top = [_token(token_id, logprob, tokenizer) for token_id, logprob in entry.top]
    return _token(entry.token_id, entry.logprob, tokenizer) | {"top_logprobs": top}


def _token(token_id: int, logprob: float | None, tokenizer: Tokenizer) -> Json:
    bytes_ = list(tokenizer.token_bytes(token_id))
    return {"token": token_name(token_id, tokenizer), "logprob": logprob, "bytes": bytes_}


class CompletionLogprobs:
    """Lists as plain completions have them, of one answer in several parts.

    The place of a token in the text is that of the character that it begins or goes on with.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._place = 0

    def skip(self, num_chars: int) -> None:
        """Take note that the next characters are not shown."""
        self._place -= max(num_chars, 0)

    def part(self, entries: Sequence[TokenLogprobs]) -> Json:
        """The lists for the next tokens."""
        return {
            "tokens": [token_name(entry.token_id, self._tokenizer) for entry in entries],
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [None if entry.logprob is None else self._top(entry) for entry in entries],
            "text_offset": [self._offset(entry.token_id) for entry in entries],
        }

    def _top(self, entry: TokenLogprobs) -> dict[str, float]:
        """The likeliest by name; where several have one name, it is the chosen one's, or the likeliest of them."""
        best = {token_name(token_id, self._tokenizer): logprob for token_id, logprob in reversed(entry.top)}
        name = token_name(entry.token_id, self._tokenizer)
        if name in best and entry.logprob is not None:
            best[name] = entry.logprob
        return dict(reversed(best.items()))

    def _offset(self, token: int) -> int:
        place = max(self._place, 0)
        self._place += len(self._utf8.decode(self._tokenizer.token_bytes(token)))
        return place
