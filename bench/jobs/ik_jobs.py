"""Worker: ik_llama.cpp through its C interface. Usage: ik_jobs.py MODEL THREADS

Runs in a Python that has ik-llama-cpp-python and need not have freedive.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import ik_llama_cpp
from ggml_jobs import GgmlJobs, Settings
from ik_llama_cpp import _ctypes_api as api
from jobs import serve

MAX_CONTEXT = 8192
"""The context of every model, since the Python package does not report a model's own."""

MODEL = {"repack_tensors": True, "use_mmap": False}
"""Rows are interleaved when the model is loaded (-rtr), which excludes a mapped file."""


FLASH, PLAIN = {"flash_attn": True, "mla_attn": 3}, {"flash_attn": False, "mla_attn": 1}


class IkJobs(GgmlJobs):
    def __init__(self, path: str, threads: int) -> None:
        super().__init__(api, path, threads, MODEL)

    def about(self) -> dict[str, Any]:
        return {
            "version": f"ik-llama-cpp-python {ik_llama_cpp.__version__}",
            "settings": "repacked",
            "vocab_size": self.vocab_size,
            "max_context": MAX_CONTEXT,
        }

    def clear(self, context: Any) -> None:
        api.llama_kv_cache_clear(context)

    def variants_for(self, num_sequences: int) -> Sequence[Settings]:
        return (FLASH, PLAIN) if num_sequences == 1 else (PLAIN,)  # FLASH aborts with keys of several sequences

    def in_words(self, variant: Settings) -> str:
        return f"flash attention {'on' if variant['flash_attn'] else 'off'}"


if __name__ == "__main__":
    serve(IkJobs, sys.argv[1], int(sys.argv[2]))
