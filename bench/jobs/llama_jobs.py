"""Worker: llama.cpp through its C interface, at its best. Usage: llama_jobs.py MODEL THREADS [mapped]

Runs in a Python that has llama-cpp-python and need not have freedive.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import llama_cpp
import numpy as np
from ggml_jobs import GgmlJobs, Settings, Shape
from jobs import serve

ON, OFF = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
VARIANTS: tuple[Settings, ...] = (
    {"flash_attn_type": ON, "kv_unified": False},
    {"flash_attn_type": OFF, "kv_unified": False},
    {"flash_attn_type": ON, "kv_unified": True},
    {"flash_attn_type": OFF, "kv_unified": True},
)

EXACT = {**VARIANTS[1], "type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
"""The settings with the least rounding."""

EMPTY: Settings = {}

MAPPED: Settings = {"use_mmap": True, "use_extra_bufts": False}
"""The settings for a model larger than memory: weights stay in the mapped file, since copies in another layout would
have to fit."""

LOG_ERROR = 4


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
def log(level: int, text: bytes, _: Any) -> None:
    if level == LOG_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


class LlamaJobs(GgmlJobs):
    def __init__(self, path: str, threads: int, settings: Settings = EMPTY) -> None:
        llama_cpp.llama_log_set(log, None)
        super().__init__(llama_cpp, path, threads, settings)

    def about(self) -> dict[str, Any]:
        return {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "settings": llama_cpp.llama_print_system_info().decode().strip(),
            "vocab_size": self.vocab_size,
            "max_context": llama_cpp.llama_model_n_ctx_train(self.model),
        }

    def clear(self, context: Any) -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), False)

    def variants_for(self, num_sequences: int) -> Sequence[Settings]:
        return VARIANTS if num_sequences > 1 else VARIANTS[:2]  # one sequence has nothing to unify

    def in_words(self, variant: Settings) -> str:
        cache = ", one cache for all" if variant["kv_unified"] else ""
        return f"flash attention {'on' if variant['flash_attn_type'] == ON else 'off'}{cache}"

    def logits(self, tokens: list[int], file: str, exact: bool = False) -> None:
        """Writes the logits after every token as float32 [len(tokens), vocab_size]."""
        shape = 1, len(tokens), 1
        if exact:
            self.open(shape, EXACT)
        rows = [(0, position, token, True) for position, token in enumerate(tokens)]
        np.save(file, np.stack([logits.copy() for logits in self.decode(self.context(shape), rows)]))


class MappedLlamaJobs(LlamaJobs):
    """llama.cpp with a model larger than memory. One context does all work: more would take memory from the file."""

    batch_tokens = 2048
    """A prompt of 2,048 tokens is one pass, which reads each weight once."""

    room: Shape = (1, batch_tokens, 256)

    def __init__(self, path: str, threads: int) -> None:
        super().__init__(path, threads, MAPPED)

    def context(self, shape: Shape) -> Any:
        return super().context(self.room)


if __name__ == "__main__":
    serve(MappedLlamaJobs if sys.argv[3:] == ["mapped"] else LlamaJobs, sys.argv[1], int(sys.argv[2]))
