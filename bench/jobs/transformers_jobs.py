"""Worker: transformers on PyTorch, in bf16, at its best. Usage: transformers_jobs.py FOLDER THREADS

Runs in a Python that has transformers and torch and need not have freedive.
"""

from __future__ import annotations

import sys
import time
import warnings
from typing import Any

import torch
import transformers
from jobs import Jobs, beginnings, serve
from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

Variant = tuple[str, str]
"""The implementation of the experts, and the kind of cache."""

READING: tuple[Variant, ...] = (("grouped_mm", "dynamic"), ("eager", "dynamic"))
WRITING: tuple[Variant, ...] = (*READING, ("batched_mm", "dynamic"), ("grouped_mm", "static"), ("batched_mm", "static"))
"""Settings whose effect depends on the workload; the fastest is used for each."""

WARM_UP, TRIAL = 16, 8
"""Tokens of each prompt that are computed before settings are tried, and tokens of an answer in a trial."""


class TransformersJobs(Jobs):
    def __init__(self, path: str, threads: int) -> None:
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16).eval()
        self.config = self.model.config
        self.chosen: dict[tuple[int, int, bool], Variant] = {}
        self.source = torch.Generator().manual_seed(0)

    def about(self) -> dict[str, Any]:
        return {
            "version": f"transformers {transformers.__version__}, torch {torch.__version__}",
            "settings": f"bf16, {self.config._attn_implementation} attention",
            "vocab_size": self.config.vocab_size,
            "max_context": self.config.max_position_embeddings,
        }

    def prepare(self, prompts: list[list[int]], num_tokens: int) -> str:
        try_them = self._try_reading if num_tokens == 1 else self._try_writing
        seconds = try_them(prompts)
        self.chosen[_shape(prompts, num_tokens)] = best = min(seconds, key=lambda variant: seconds[variant])
        return "experts {}, {} cache".format(*best)

    def _try_reading(self, prompts: list[list[int]]) -> dict[Variant, float]:
        seconds = {}
        for variant in READING:
            self._generate(beginnings(prompts, WARM_UP), 1, variant)
            seconds[variant] = self._generate(beginnings(prompts), 1, variant)[0]
        return seconds

    @torch.inference_mode()
    def _try_writing(self, prompts: list[list[int]]) -> dict[Variant, float]:
        """Times variants of decoding; the prompts are computed once for each kind of cache."""
        seconds = {}
        for kind in dict.fromkeys(kind for _, kind in WRITING):
            variants = [variant for variant in WRITING if variant[1] == kind]
            room = len(prompts[0]) + (1 + TRIAL) * len(variants)
            tokens, cache = self._read(beginnings(prompts), room, (READING[0][0], kind))
            for variant in variants:
                self.model.set_experts_implementation(variant[0])
                tokens = self._step(tokens, cache)
                start = time.perf_counter()
                for _ in range(TRIAL):
                    tokens = self._step(tokens, cache)
                seconds[variant] = time.perf_counter() - start
        return seconds

    def generate(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        return self._generate(prompts, num_tokens, self.chosen.get(_shape(prompts, num_tokens), READING[0]))

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], num_tokens: int, variant: Variant) -> tuple[float, float]:
        start = time.perf_counter()
        tokens, cache = self._read(prompts, len(prompts[0]) + num_tokens, variant)
        first = time.perf_counter()
        self.model.set_experts_implementation(variant[0])
        for _ in range(num_tokens - 1):
            tokens = self._step(tokens, cache)
        return first - start, time.perf_counter() - first

    def _read(self, prompts: list[list[int]], room: int, variant: Variant) -> tuple[Any, Any]:
        """Returns the first tokens of the answers, [sequences, 1], and a cache of ``room`` tokens per sequence."""
        experts, kind = variant
        cache = StaticCache(self.config, max_cache_len=room) if kind == "static" else DynamicCache(config=self.config)
        # batched_mm copies the experts of every token
        self.model.set_experts_implementation("grouped_mm" if experts == "batched_mm" else experts)
        return self._step(torch.tensor(prompts), cache), cache

    def _step(self, tokens: Any, cache: Any) -> Any:
        """Computes the rows [sequences, length] of ``tokens``; samples the next, [sequences, 1]."""
        self.model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return torch.randint(self.config.vocab_size, (len(tokens), 1), generator=self.source)


def _shape(prompts: list[list[int]], num_tokens: int) -> tuple[int, int, bool]:
    return len(prompts), len(prompts[0]), num_tokens > 1


if __name__ == "__main__":
    serve(TransformersJobs, sys.argv[1], int(sys.argv[2]))
