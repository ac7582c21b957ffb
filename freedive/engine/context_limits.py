"""Checks requests against the model's vocabulary and context length before they are queued."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from freedive.config import EngineConfig
from freedive.engine.sampling import Sampling
from freedive.errors import UserError
from freedive.model.batch import PAGE_TOKENS, Runner


@dataclass(frozen=True)
class ContextLimits:
    """Limits of one engine: ``max_context`` counts the tokens of prompt and answer together.

    ``remedy`` is the end of an error message and names the setting that raises ``max_context``, if there is one.
    """

    vocab_size: int
    max_context: int
    remedy: str

    @classmethod
    def of(cls, runner: Runner, config: EngineConfig) -> ContextLimits:
        """Returns the smallest of the limits of the model, the setting ``max_context`` and the cache.

        Raises UserError if the setting exceeds the limit of the model.
        """
        model, cache = runner.max_context, runner.num_pages * PAGE_TOKENS
        wanted = config.max_context or model
        if wanted > model:
            raise UserError(
                f"max_context is {wanted}, but the model reads at most {model} tokens",
                "Choose a smaller value",
                param="max_context",
            )
        setting = "cache_tokens" if cache < wanted else "max_context"
        remedy = "" if min(wanted, cache) == model else f", or raise {setting} (the model reads up to {model} tokens)"
        return cls(runner.vocab_size, min(wanted, cache), remedy)

    def max_length(self, prompt: Sequence[int], sampling: Sampling) -> int:
        """Returns the maximum length of prompt and answer together, in tokens.

        Raises UserError if the prompt is empty or too long, or if a token id is not in the vocabulary.
        """
        if not prompt:
            raise UserError("The prompt is empty", "Give at least one token", param="prompt")
        self._check_ids(prompt, "prompt")
        self._check_ids(sampling.logit_bias, "logit_bias")
        self._check_ids(sampling.stop_token_ids, "stop_token_ids")
        room = self.max_context - len(prompt)
        # Clients search error messages for these words, which OpenAI's API uses.
        limit = f"this model's maximum context length is {self.max_context}"
        if room < (0 if sampling.max_tokens == 0 else 1):
            raise UserError(
                f"The prompt has {len(prompt)} tokens, but {limit}, answer included",
                f"Shorten the prompt{self.remedy}",
                param="prompt",
            )
        return len(prompt) + (room if sampling.max_tokens is None else min(sampling.max_tokens, room))

    def _check_ids(self, ids: Collection[int], param: str) -> None:
        if ids and (min(ids) < 0 or max(ids) >= self.vocab_size):
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise UserError(
                f"{param} has token {wrong}, which does not exist",
                f"Token ids go from 0 to {self.vocab_size - 1}",
                param=param,
            )
