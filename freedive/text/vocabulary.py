"""The vocabulary of a tokenizer, as read from tokenizer.json or GGUF metadata, and code that both readers share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeGuard

import tokenizers
from tokenizers.processors import TemplateProcessing

from freedive.errors import UserError

logger = logging.getLogger(__name__)

END_OF_TURN = frozenset(
    {
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
    }
)
"""Special tokens that end an answer in every model that has them, also where a configuration forgets to say so."""


@dataclass(frozen=True)
class Vocabulary:
    """All that decoding needs, and ``core``, which makes the tokenizer itself: that takes long, and only text needs it.

    ``token`` is the text of an id, as the vocabulary writes it; ``added`` are the tokens, by id, that text is searched
    for before it is split, ``special`` those of them that are not shown. ``roles`` are the special tokens by the names
    that chat templates use: bos_token, eos_token, unk_token ...
    """

    core: Callable[[], tokenizers.Tokenizer]
    token: Callable[[int], str | None]
    added: Mapping[int, str]
    special: frozenset[int]
    decoder: tokenizers.decoders.Decoder | None
    size: int
    roles: Mapping[str, str]
    bos_id: int | None
    stop_ids: frozenset[int]


def stop_ids(added: Mapping[int, str], size: int, named: Iterable[object], source: str) -> frozenset[int]:
    """The ids in ``named``, checked, and the well-known ends of a turn among the ``added`` tokens."""
    ids = {value for value in named if is_id(value, size, source)}
    found = {text: index for index, text in added.items() if text in END_OF_TURN}
    if "<|return|>" in found:
        found.pop("<|end|>", None)  # in this dialect it ends a message, and the answer goes on with the next one
    return frozenset(ids | {*found.values()})


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Turn whatever the tokenizers library throws at bad data into a UserError that begins with ``what``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # it raises bare Exceptions, and for a panic not even that
        raise UserError(f"{what} ({' '.join(str(error).split())})", "Fetch the model again") from None


def is_id(value: object, size: int, source: str) -> TypeGuard[int]:
    """Whether ``value`` is a token id. A number past the vocabulary is told and not used, as llama.cpp does with it.

    Raises UserError for what is no number, naming where it came from.
    """
    if type(value) is not int:
        raise UserError(
            f"{source} names {value!r:.40} as a token id, which is no number",
            "The file is damaged or belongs to another model; fetch it again",
        )
    if 0 <= value < size:
        return True
    logger.warning("%s names %d as a token id, but the vocabulary has %d tokens: it is not used", source, value, size)
    return False


def add_ends(core: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Let ``core`` put ``bos`` before and ``eos`` behind a text that is encoded with its special tokens."""
    ends = [(token, core.token_to_id(token)) for token in (bos, eos) if token is not None]
    single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    with damage("The bos or eos token is not in the vocabulary"):
        core.post_processor = TemplateProcessing(single=single, pair=None, special_tokens=ends)
