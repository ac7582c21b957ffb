"""The vocabulary of a tokenizer from tokenizer.json or GGUF metadata, and code that both readers share."""

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
        "<|calls|>",
        "<|flush|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|EOT|>",
        "<end_of_turn>",
        "<｜end▁of▁sentence｜>",
        "[EOS]",
        "[EOT]",
    }
)
"""Special tokens that end an answer in every model that has them, even if its configuration does not list them."""


@dataclass(frozen=True)
class Vocabulary:
    """The data for decoding, and ``core``, which creates the tokenizer: that is slow, and only encoding needs it.

    ``token`` returns the spelling of an id in the vocabulary. ``added`` maps ids to tokens that are matched in a text
    before it is split; ``special`` are those that are not shown. ``roles`` maps the names that chat templates use
    (bos_token, eos_token, unk_token ...) to special tokens.
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
    """Returns the valid ids in ``named``, and the ids of :data:`END_OF_TURN` tokens among the ``added`` tokens."""
    ids = {value for value in named if is_id(value, size, source)}
    found = {text: index for index, text in added.items() if text in END_OF_TURN}
    if found.keys() & {"<|return|>", "<|flush|>"}:
        found.pop("<|end|>", None)  # in harmony and Solar Open it ends a message, not the answer
    if "<|message|>" in added.values():
        found.pop("<|eom|>", None)  # likewise in Muse Glimmer
    return frozenset(ids | {*found.values()})


@contextmanager
def damage(what: str) -> Iterator[None]:
    """Converts all errors of the tokenizers library to a UserError that begins with ``what``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises Exception, and BaseException for a panic
        raise UserError(f"{what} ({' '.join(str(error).split())})", "Fetch the model again") from None


def is_id(value: object, size: int, source: str) -> TypeGuard[int]:
    """Whether ``value`` is a token id. Logs an integer outside of the vocabulary and returns False, like llama.cpp.

    Raises UserError for a value that is not an integer; ``source`` is the file in the message.
    """
    if type(value) is not int:
        raise UserError(
            f"{source} names {value!r:.40} as a token id, which is not a number",
            "The file is damaged or belongs to another model; fetch it again",
        )
    if 0 <= value < size:
        return True
    logger.warning("%s names %d as a token id, which is ignored: the vocabulary has %d tokens", source, value, size)
    return False


def add_ends(core: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> None:
    """Makes ``core`` add ``bos`` before and ``eos`` after a text that is encoded with special tokens."""
    ends = [(token, core.token_to_id(token)) for token in (bos, eos) if token is not None]
    single = [*([bos] if bos else []), "$A", *([eos] if eos else [])]
    with damage("The bos or eos token is not in the vocabulary"):
        core.post_processor = TemplateProcessing(single=single, pair=None, special_tokens=ends)
