"""Worker: freedive through its engine. Usage: freedive_jobs.py MODEL THREADS [PRECISION]"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from jobs import Jobs, serve

import freedive
from freedive.commands.timing import generate
from freedive.config import EngineConfig, EngineSettings
from freedive.engine.sampling import Sampling
from freedive.model.batch import Batch


class FreediveJobs(Jobs):
    def __init__(self, path: str, threads: int, precision: str = EngineConfig.precision) -> None:
        self.precision = precision
        settings: EngineSettings = {"threads": threads, "precision": precision}
        settings |= {"speculation": "off", "prefix_cache": False}  # the settings of the peers
        self.model = freedive.load(path, **settings)

    def about(self) -> dict[str, Any]:
        runner = self.model.runner
        return {
            "version": f"freedive {freedive.__version__}",
            "settings": f"{runner.isa} kernels, {self.precision}",
            "vocab_size": runner.vocab_size,
            "max_context": self.model.max_context,
        }

    def generate(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        run = generate(self.model, prompts, num_tokens, Sampling(temperature=1))
        return run.prefill_s, run.decode_s

    def unique_experts(self, prompts: list[list[int]], num_tokens: int) -> float | None:
        """Returns the mean number of experts that a step of all answers reads in a layer; None without experts."""
        runner: Any = self.model.runner
        counts: list[int] = []
        take_step = runner.step

        def step(batch: Batch) -> Any:
            logits = take_step(batch)
            if len(batch.tokens) == len(batch.lengths) == len(prompts):
                routes = runner.routes()
                counts.extend(len(np.unique(layer.experts)) for layer in routes)
            return logits

        runner.step = step
        self.generate(prompts, num_tokens)
        runner.step = take_step
        return float(np.mean(counts)) if counts else None


if __name__ == "__main__":
    serve(FreediveJobs, sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
