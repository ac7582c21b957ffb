"""How byte-level BPE tokenizers split text before merging: the patterns of each maker's published tokenizer.json.

A GGUF file only names its pattern (``tokenizer.ggml.pre``). Patterns are in Oniguruma syntax and are applied one after
the other; text between two matches is a piece of its own.
"""

from __future__ import annotations

from typing import NamedTuple


class PreTokenizer(NamedTuple):
    """The patterns of one tokenizer. ``whole_words``: a word in the vocabulary is not merged ("ignore_merges")."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False
    nfc: bool = False


_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LINES_AND_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SYMBOLS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_SYMBOLS}|{_LINES_AND_SPACES}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_SYMBOLS}|{_LINES_AND_SPACES}"
_QWEN35 = (
    rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_LINES_AND_SPACES}"
)


def _cased_words(suffix: str, no: str = "") -> str:
    """Returns a pattern of words that splits before an upper-case letter (camelCase); ``no`` excludes letters."""
    upper, lower = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{no}]", rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{no}]"
    prefix = r"[^\r\n\p{L}\p{N}]?"
    return rf"{prefix}{upper}*{lower}+{suffix}|{prefix}{upper}+{lower}*{suffix}"


_SYMBOLS_SLASH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_GPT4O = rf"{_cased_words(_CONTRACTION + '?')}|\p{{N}}{{1,3}}|{_SYMBOLS_SLASH}|{_LINES_AND_SPACES}"
_TEKKEN = rf"{_cased_words('')}|\p{{N}}|{_SYMBOLS_SLASH}|{_LINES_AND_SPACES}"
_NOT_HAN = r"&&[^\p{Han}]"
_KIMI = (
    rf"[\p{{Han}}]+|{_cased_words(_CONTRACTION + '?', no=_NOT_HAN)}"
    rf"|\p{{N}}{{1,3}}|{_SYMBOLS}|{_LINES_AND_SPACES}"
)
_BAILING = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
_SEED = rf"{_WORDS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_LINES_AND_SPACES}"
_DEEPSEEK3_WORDS = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_LINES_AND_SPACES}"
)
# DeepSeek's pattern lists all ranges of cased letters; they are the general categories without these blocks.
_DEEPSEEK_LETTERS = (
    r"[[\p{Lu}\p{Ll}\p{Lt}]&&[^\x{560}-\x{588}\x{10C7}-\x{10FF}\x{1C80}-\x{1C8F}\x{2D00}-\x{2D2D}\x{A790}-\x{A7FA}"
    r"\x{AB30}-\x{AB68}\x{10570}-\x{105BC}\x{10D50}-\x{10D85}\x{16E40}-\x{16E7F}\x{1D400}-\x{1DF2A}]]"
)
_DEEPSEEK_SYMBOLS = r"[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]"
_DEEPSEEK_ASIAN = r"[\x{800}-\x{9FA5}\x{AC00}-\x{D7FF}]+"

_FAMILIES: dict[tuple[str, ...], PreTokenizer] = {
    ("default",): PreTokenizer((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ("gpt-2", "phi-2", "mpt", "jais", "exaone4", "trillion", "granite-docling", "gigachat", "a.x-4.0", "mellum"): (
        PreTokenizer((_GPT2,))
    ),
    ("olmo",): PreTokenizer((_GPT2,), nfc=True),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): (
        PreTokenizer((r"\p{N}", _GPT2))
    ),
    ("falcon",): PreTokenizer((r"[\p{P}$+<=>^~|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"): (
        PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)
    ),
    ("dbrx", "smaug-bpe", "glm4", "chatglm-bpe"): PreTokenizer((_LLAMA3,)),
    ("qwen2", "deepseek-r1-qwen"): PreTokenizer((_QWEN2,), nfc=True),
    ("stablelm2", "hunyuan", "megrez", "grok-2", "solar-open"): PreTokenizer((_QWEN2,)),
    ("qwen35",): PreTokenizer((_QWEN35,), nfc=True),
    ("gpt-4o", "llama4", "kanana2", "minimax-m2"): PreTokenizer((_GPT4O,)),
    ("tekken",): PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
    ("kimi-k2",): PreTokenizer((_KIMI,)),
    ("bailingmoe", "bailingmoe2", "llada-moe"): PreTokenizer((_BAILING,)),
    ("seed-coder",): PreTokenizer((_SEED,)),
    ("deepseek-llm",): (
        PreTokenizer(
            (
                r"[\r\n]",
                rf"\s?{_DEEPSEEK_LETTERS}+",
                rf"\s?{_DEEPSEEK_SYMBOLS}+",
                r"\s+$",
                _DEEPSEEK_ASIAN,
                r"\p{N}",
            )
        )
    ),
    ("deepseek-coder",): PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_ASIAN, r"\p{N}")),
    ("deepseek-v3", "hunyuan-dense", "joyai-llm"): (
        PreTokenizer((r"\p{N}{1,3}", r"[\x{4E00}-\x{9FA5}\x{3040}-\x{30FF}]+", _DEEPSEEK3_WORDS))
    ),
}

PRE_TOKENIZERS: dict[str, PreTokenizer] = {name: entry for names, entry in _FAMILIES.items() for name in names}
"""The pre-tokenizer by its name in ``tokenizer.ggml.pre``."""
