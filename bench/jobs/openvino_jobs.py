"""Worker: OpenVINO GenAI on the CPU. Usage: openvino_jobs.py FOLDER THREADS

Runs in a Python that has openvino-genai and need not have freedive.
"""

from __future__ import annotations

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai
from jobs import Jobs, serve


class OpenVinoJobs(Jobs):
    def __init__(self, path: str, threads: int) -> None:
        self.config = json.loads((Path(path) / "config.json").read_text())
        scheduler = genai.SchedulerConfig()
        scheduler.cache_size = 2  # GiB
        scheduler.max_num_batched_tokens = 4096  # a whole prompt fits into one step
        scheduler.max_num_seqs = 8
        scheduler.enable_prefix_caching = False
        properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self.engine = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", properties)
        self.number = 0

    def about(self) -> dict[str, Any]:
        return {
            "version": f"openvino-genai {version('openvino-genai')}",
            "settings": "int4 weights, groups of 128",
            "vocab_size": self.config["vocab_size"],
            "max_context": self.config["max_position_embeddings"],
        }

    def generate(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        sampling = genai.GenerationConfig(max_new_tokens=num_tokens, do_sample=True, temperature=1.0, ignore_eos=True)
        start = time.perf_counter()
        answers = []
        for prompt in prompts:
            self.number += 1
            answers.append(self.engine.add_request(self.number, ov.Tensor(np.array([prompt])), sampling))
        first, waiting = start, set(range(len(answers)))
        while self.engine.has_non_finished_requests():
            self.engine.step()
            if waiting:
                waiting = {index for index in waiting if not answers[index].can_read()}
                first = time.perf_counter()
        return first - start, time.perf_counter() - first


if __name__ == "__main__":
    serve(OpenVinoJobs, sys.argv[1], int(sys.argv[2]))
