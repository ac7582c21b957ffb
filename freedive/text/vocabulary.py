"""A tokenizer as its files describe it, and what the two kinds of file share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import tokenizers
from tokenizers.processors import TemplateProcessing

from freedive.errors import UserError

END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|eom|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|EOT|>",
    "<end_of_turn>",
    "<｜end▁of▁sentence｜>",
    "[EOS]",
    "[EOT]",
)
"""Special tokens that end an answer in every model that has them, also where a configuration forgets to say so."""


@dataclass(frozen=True)
class Vocabulary:
    """``roles`` are the special tokens by the names that chat templates use: bos_token, eos_token, unk_token ..."""

    core: tokenizers.Tokenizer
    size: int
    roles: Mapping[str, str]
    stop_ids: frozenset[int]


def stop_ids(core: tokenizers.Tokenizer, size: int, named: Iterable[object], source: str) -> frozenset[int]:
    """The ids in ``named``, checked, and the well-known ends of a turn among the added tokens."""
    ids = {check_id(value, size, source) for value in named}
    added = {token.content: index for index, token in core.get_added_tokens_decoder().items()}
    known = set(END_OF_TURN) & added.keys()
    if "<|return|>" in known:
        known -= {"<|end|>"}  # in this dialect it ends a message, and the answer goes on with the next one
    return frozenset(ids | {added[token] for token in known})


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Turn whatever the tokenizers library throws at bad data into a UserError that begins with ``what``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # it raises bare Exceptions, and for a panic not even that
        raise UserError(f"{what} ({' '.join(str(error).split())})", "Fetch the model again.") from None


def check_id(value: object, size: int, source: str) -> int:
    """``value`` if it is a token id, otherwise a UserError that names where it came from."""
    if type(value) is not int or not 0 <= value < size:
        raise UserError(
            f"{source} names {value!r:.40} as a token id, but the vocabulary has {size} tokens",
            "The file is damaged or belongs to another model; fetch it again.",
        )
    return value


def add_ends(core: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Let ``core`` put ``bos`` before and ``eos`` behind a text that is encoded with its special tokens."""
    ends = [(token, core.token_to_id(token)) for token in (bos, eos) if token is not None]
    single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    with damage("The bos or eos token is not in the vocabulary"):
        core.post_processor = TemplateProcessing(single=single, pair=None, special_tokens=ends)
