"""Fill in the middle: the special tokens around prefix and suffix, for models that were trained with them."""

from __future__ import annotations

from collections.abc import Collection

from freedive.errors import UserError

_MARKS = (
    ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek
    ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen, Gemma
    ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # Granite
    ("<[fim-prefix]>", "<[fim-suffix]>", "<[fim-middle]>"),  # Seed
    ("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM
)


def can_infill(added_tokens: Collection[str]) -> bool:
    """Whether the vocabulary has the tokens for fill-in-the-middle."""
    return any(set(marks) <= set(added_tokens) for marks in _MARKS)


def infill_marks(added_tokens: Collection[str]) -> tuple[str, str, str]:
    """Returns the tokens before the prefix, before the suffix, and before the answer.

    Raises UserError if the vocabulary has none.
    """
    for marks in _MARKS:
        if set(marks) <= set(added_tokens):
            return marks
    raise UserError("This model was not trained to fill in the middle", "Leave 'suffix' out", param="suffix")
