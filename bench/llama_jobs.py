"""Worker: llama.cpp through its C interface, at its best. Usage: llama_jobs.py MODEL THREADS

Runs in a Python that has llama-cpp-python and need not have freedive.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import llama_cpp
import numpy as np
from jobs import Jobs, serve

BATCH = 512
"""Tokens of one call and of one pass of the kernels (n_batch = n_ubatch)."""

VARIANTS: tuple[dict[str, Any], ...] = (
    {"flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, "kv_unified": False},
    {"flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, "kv_unified": False},
    {"flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, "kv_unified": True},
    {"flash_attn_type": llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED, "kv_unified": True},
)
"""Settings whose effect depends on the work; the fastest is taken for each."""

EXACT = {**VARIANTS[1], "type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
"""The least rounding."""

TRIALS = 2
LOG_ERROR = 4

Shape = tuple[int, int, int]
Row = tuple[int, int, int, bool]
"""Sequence, position, token, whether its logits are wanted."""


@llama_cpp.llama_log_callback
def log(level: int, text: bytes, _: Any) -> None:
    if level == LOG_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


class LlamaJobs(Jobs):
    def __init__(self, path: str, threads: int) -> None:
        llama_cpp.llama_log_set(log, None)
        llama_cpp.llama_backend_init()
        self.threads = threads
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self.contexts: dict[Shape, Any] = {}

    def about(self) -> dict[str, Any]:
        return {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "settings": llama_cpp.llama_print_system_info().decode().strip(),
            "vocab_size": self.vocab_size,
            "max_context": llama_cpp.llama_model_n_ctx_train(self.model),
        }

    def prepare(self, prompts: list[list[int]], num_tokens: int) -> str:
        """Choose the fastest variant for work of this shape, and say which."""
        shape = _shape(prompts, num_tokens)
        variants = VARIANTS[: None if len(prompts) > 1 else 2]  # one sequence has nothing to unify
        seconds = []
        for variant in variants:
            self._open(shape, variant)
            seconds.append(min(sum(self.generate(prompts, num_tokens)) for _ in range(TRIALS)))
        best = variants[int(np.argmin(seconds))]
        self._open(shape, best)
        cache = ", one cache for all" if best["kv_unified"] else ""
        return f"flash attention {'on' if best['flash_attn_type'] else 'off'}{cache}"

    def generate(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        """Seconds to the first tokens of all prompts, and from there until each has ``num_tokens``, greedily."""
        context = self._context(_shape(prompts, num_tokens))
        start = time.perf_counter()
        rows = [
            (sequence, position, token, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        tokens = [int(logits.argmax()) for logits in self._decode(context, rows)]
        first = time.perf_counter()
        for step in range(num_tokens - 1):
            rows = [(sequence, len(prompts[sequence]) + step, token, True) for sequence, token in enumerate(tokens)]
            tokens = [int(logits.argmax()) for logits in self._decode(context, rows)]
        return first - start, time.perf_counter() - first

    def logits(self, tokens: list[int], file: str, exact: bool = False) -> None:
        """Write the logits after every token as float32 [len(tokens), vocab_size]."""
        shape = 1, len(tokens), 1
        if exact:
            self._open(shape, EXACT)
        context = self._context(shape)
        rows = [(0, position, token, True) for position, token in enumerate(tokens)]
        np.save(file, np.stack([logits.copy() for logits in self._decode(context, rows)]))

    def _decode(self, context: Any, rows: list[Row]) -> Any:
        """Compute ``rows``; yields the logits [vocab_size] of those wanted, which the next call overwrites."""
        for begin in range(0, len(rows), BATCH):
            part = rows[begin : begin + BATCH]
            batch = self.batch
            batch.n_tokens = len(part)
            for index, (sequence, position, token, wanted) in enumerate(part):
                batch.token[index], batch.pos[index], batch.logits[index] = token, position, wanted
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
            if status := llama_cpp.llama_decode(context, batch):
                raise RuntimeError(f"llama_decode returned {status}")
            for index, row in enumerate(part):
                if row[3]:
                    pointer = llama_cpp.llama_get_logits_ith(context, index)
                    yield np.ctypeslib.as_array(pointer, (self.vocab_size,))

    def _context(self, shape: Shape) -> Any:
        """The context for work of this shape, with an empty cache."""
        if shape not in self.contexts:
            self._open(shape, VARIANTS[0])
        context = self.contexts[shape]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)
        return context

    def _open(self, shape: Shape, variant: dict[str, Any]) -> None:
        if old := self.contexts.pop(shape, None):
            llama_cpp.llama_free(old)
        num_sequences, prompt, num_tokens = shape
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_sequences * (-(-(prompt + num_tokens) // 256) * 256)
        params.n_seq_max = num_sequences
        params.n_batch = params.n_ubatch = BATCH
        params.n_threads = params.n_threads_batch = self.threads
        for name, value in variant.items():
            setattr(params, name, value)
        self.contexts[shape] = llama_cpp.llama_init_from_model(self.model, params)


def _shape(prompts: list[list[int]], num_tokens: int) -> Shape:
    return len(prompts), max(map(len, prompts)), num_tokens


if __name__ == "__main__":
    serve(LlamaJobs(sys.argv[1], int(sys.argv[2])))
