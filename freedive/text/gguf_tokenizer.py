"""Tokenizers from GGUF metadata (``tokenizer.ggml.*``).

Byte-level BPE ("gpt2"), SentencePiece BPE ("llama"), and the same with a list of merges ("gemma4").
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from freedive.errors import UserError
from freedive.text.pretokenizers import PRE_TOKENIZERS
from freedive.text.vocabulary import Vocabulary, add_ends, damage, is_id, stop_ids

logger = logging.getLogger(__name__)

T = TypeVar("T")

_Parts = tuple[Callable[[], tokenizers.Tokenizer], decoders.Decoder, bool]
"""A factory of the tokenizer without added tokens, its decoder, and whether a BOS token precedes a text."""

_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4
_ROLES = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
_REMEDY = "The file is damaged or incomplete; fetch it again"

MAX_PIECE_LENGTH = 256
"""Characters of the longest piece that merges make: finding its merges takes quadratic time."""


def read_gguf_tokenizer(metadata: Mapping[str, Any]) -> Vocabulary:
    """Builds the tokenizer of GGUF ``metadata``. Raises UserError if it is damaged or not supported."""
    kind = _value(metadata, "model", str)
    if kind not in _BUILDERS:
        known = ", ".join(_BUILDERS)
        raise UserError(f"The GGUF tokenizer model {kind!r:.40} is not supported", f"Use a model with one of: {known}")
    tokens = _list(metadata, "tokens", str)
    if not tokens or len(set(tokens)) < len(tokens):
        raise UserError("The GGUF vocabulary is empty or has the same token twice", _REMEDY)
    has_types = "tokenizer.ggml.token_type" in metadata
    types = _list(metadata, "token_type", int, len(tokens)) if has_types else [_NORMAL] * len(tokens)
    ids = {
        name: metadata[key]
        for name in (*_ROLES, "eot", "eom")
        if (key := f"tokenizer.ggml.{name}_token_id") in metadata and is_id(metadata[key], len(tokens), key)
    }
    make, decoder, add_bos = _BUILDERS[kind](metadata, tokens, types, ids)
    unusual = [(index, kind) for index, kind in enumerate(types) if kind != _NORMAL]
    special = {*ids.values(), *(index for index, kind in unusual if kind in (_UNKNOWN, _CONTROL))}
    whole = {index for index, kind in unusual if kind == _USER_DEFINED} - special
    bos = tokens[ids["bos"]] if _flag(metadata, "add_bos_token", add_bos) and "bos" in ids else None
    eos = tokens[ids["eos"]] if _flag(metadata, "add_eos_token", False) and "eos" in ids else None

    def core() -> tokenizers.Tokenizer:
        core = make()
        core.add_special_tokens([AddedToken(tokens[index], normalized=False) for index in sorted(special)])
        core.add_tokens([AddedToken(tokens[index], normalized=False) for index in sorted(whole)])
        add_ends(core, bos, eos)
        return core

    added = {index: tokens[index] for index in sorted(special | whole)}
    return Vocabulary(
        core=core,
        token=lambda index: tokens[index] if 0 <= index < len(tokens) else None,
        added=added,
        special=frozenset(special),
        decoder=decoder,
        size=len(tokens),
        roles={role: tokens[ids[name]] for name, role in _ROLES.items() if name in ids},
        bos_id=ids.get("bos"),
        stop_ids=stop_ids(added, len(tokens), [ids[name] for name in ("eos", "eot", "eom") if name in ids], "GGUF"),
    )


def _byte_level(metadata: Mapping[str, Any], tokens: list[str], types: list[int], ids: Mapping[str, int]) -> _Parts:
    name = _value(metadata, "pre", str, "default")
    if name not in PRE_TOKENIZERS:
        known = ", ".join(sorted(PRE_TOKENIZERS))
        raise UserError(f"The GGUF pre-tokenizer {name!r:.40} is not supported", f"Use a model with one of: {known}")
    pre = PRE_TOKENIZERS[name]
    merges = _list(metadata, "merges", str)

    def core() -> tokenizers.Tokenizer:
        pairs = [tuple(merge.split(" ")) for merge in merges]
        try:
            core = _bpe(tokens, pairs, ignore_merges=pre.whole_words)
        except UserError:  # filtering is slow, and few files need it
            core = _bpe(tokens, _known_merges(merges, tokens), ignore_merges=pre.whole_words)
        splits = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in pre.patterns]
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([*splits, byte_level])
        if pre.nfc:
            core.normalizer = normalizers.NFC()
        return core

    return core, decoders.ByteLevel(), pre.add_bos


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str], types: list[int], ids: Mapping[str, int]) -> _Parts:
    scores = _list(metadata, "scores", float, len(tokens))
    pieces = {token: score for token, score, kind in zip(tokens, scores, types, strict=True) if kind == _NORMAL}
    spaced = _flag(metadata, "add_space_prefix", True)
    return _marked_spaces(tokens, ids, lambda: merges_by_score(pieces), space_first=spaced)


def _listed_merges(metadata: Mapping[str, Any], tokens: list[str], types: list[int], ids: Mapping[str, int]) -> _Parts:
    merges, spaced = _list(metadata, "merges", str), _flag(metadata, "add_space_prefix", False)
    return _marked_spaces(tokens, ids, lambda: _known_merges(merges, tokens), space_first=spaced)


def _marked_spaces(
    tokens: list[str], ids: Mapping[str, int], merges: Callable[[], list[tuple[str, str]]], *, space_first: bool
) -> _Parts:
    """Returns BPE over characters, in which "▁" stands for a space, and bytes for unknown characters."""
    unknown = tokens[ids["unknown"]] if "unknown" in ids else None

    def core() -> tokenizers.Tokenizer:
        core = _bpe(tokens, merges(), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        marks = [normalizers.Prepend("▁")] if space_first else []
        core.normalizer = normalizers.Sequence([*marks, normalizers.Replace(" ", "▁")])
        return core

    strip = [decoders.Strip(" ", 1, 0)] if space_first else []
    spaces = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    return core, decoders.Sequence(spaces), True


_BUILDERS = {"gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _listed_merges}


def merges_by_score(pieces: Mapping[str, float]) -> list[tuple[str, str]]:
    """Returns the merges of a SentencePiece BPE vocabulary, highest rank first.

    SentencePiece has no list of merges: it joins any two neighbours that form a piece, best score first (Kudo and
    Richardson 2018). So every way to cut a piece into two pieces is a merge with the rank of the piece.
    """
    return [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: -pieces[piece])
        if len(piece) <= MAX_PIECE_LENGTH
        for cut in range(1, len(piece))
        if piece[:cut] in pieces and piece[cut:] in pieces
    ]


def _known_merges(merges: list[str], tokens: list[str]) -> list[tuple[str, str]]:
    """Returns ``merges`` as pairs, without merges of tokens that are not in the vocabulary, which have no effect.

    Raises UserError if most merges are such.
    """
    vocab = set(tokens)
    split = [merge.split(" ") for merge in merges]
    known = vocab.issuperset
    pairs = [(pair[0], pair[1]) for pair in split if len(pair) == 2 and known((*pair, pair[0] + pair[1]))]
    if len(pairs) < len(merges):
        if 2 * len(pairs) < len(merges) or any(len(pair) != 2 for pair in split):
            raise UserError("The GGUF merges do not fit the vocabulary", _REMEDY)
        logger.warning("%d merges name tokens that are not in the vocabulary and are ignored", len(merges) - len(pairs))
    return pairs


def _bpe(tokens: list[str], merges: list[Any], **options: Any) -> tokenizers.Tokenizer:
    with damage("The GGUF merges do not fit the vocabulary"):
        vocab = {token: index for index, token in enumerate(tokens)}
        return tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, **options))


def _value(metadata: Mapping[str, Any], name: str, kind: type[T], default: T | None = None) -> T:
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if not isinstance(value, kind):
        state = "has no" if value is None else "has a malformed"
        raise UserError(f"The GGUF file {state} tokenizer.ggml.{name}", _REMEDY)
    return value


def _flag(metadata: Mapping[str, Any], name: str, default: bool) -> bool:
    """Returns a boolean, which some files write as 1 or 0."""
    value = metadata.get(f"tokenizer.ggml.{name}", default)
    if value not in (0, 1):
        raise UserError(f"The GGUF file has a malformed tokenizer.ggml.{name}", _REMEDY)
    return bool(value)


def _list(metadata: Mapping[str, Any], name: str, kind: type[T], length: int | None = None) -> list[T]:
    """Returns a list of ``kind``. Raises UserError if it has another type, or another length than ``length``."""
    values = _value(metadata, name, list)
    if length not in (None, len(values)) or not {*map(type, values)} <= {kind}:
        raise UserError(f"The GGUF file has a malformed tokenizer.ggml.{name}", _REMEDY)
    return values
