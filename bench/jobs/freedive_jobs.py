"""Worker: freedive through its engine. Usage: freedive_jobs.py MODEL THREADS [PRECISION]"""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import Any

import numpy as np
from jobs import Jobs, serve

import freedive
from freedive.commands.timing import generate
from freedive.config import EngineConfig, EngineSettings, load
from freedive.engine.sampling import Sampling
from freedive.model.batch import Batch
from freedive.ops.routes import Routes


class FreediveJobs(Jobs):
    def __init__(self, path: str, threads: int, precision: str = EngineConfig.precision) -> None:
        self.precision = precision
        settings: EngineSettings = {"threads": threads, "precision": precision}
        settings |= {"speculation": "off", "prefix_cache": False}  # the settings of the peers
        config = load(EngineConfig, settings)  # others may be in the environment
        self.model = freedive.load(path, **{field.name: getattr(config, field.name) for field in fields(config)})

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

    def expert_traffic(self) -> tuple[int, int]:
        cache = self.model.expert_cache()
        return (
            (sum(layer.hits for layer in cache.layers), sum(layer.misses for layer in cache.layers))
            if cache
            else (0, 0)
        )

    def unique_experts(self, prompts: list[list[int]], num_tokens: int) -> float | None:
        """Returns the mean number of experts that a step of all answers reads in a layer; None without experts."""
        steps = [
            routes
            for batch, routes in self._routed(prompts, num_tokens)
            if len(batch.tokens) == len(batch.lengths) == len(prompts)
        ]
        counts = [len(np.unique(layer.experts)) for routes in steps for layer in routes]
        return float(np.mean(counts)) if counts else None

    def expert_counts(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Returns how often each expert of each mixture layer is chosen while the prompts are answered."""
        num_experts = [len(layer) for layer in self.model.expert_load()]
        counts = [np.zeros(number, np.int64) for number in num_experts]
        for _, routes in self._routed(prompts, num_tokens):
            for count, layer in zip(counts, routes, strict=True):
                count += np.bincount(layer.experts.ravel(), minlength=len(count))
        return [count.tolist() for count in counts]

    def _routed(self, prompts: list[list[int]], num_tokens: int) -> list[tuple[Batch, list[Routes]]]:
        """Answers the prompts; returns the batch and the routes of every step."""
        runner: Any = self.model.runner
        take_step, steps = runner.step, []

        def step(batch: Batch) -> Any:
            logits = take_step(batch)
            steps.append((batch, runner.routes()))
            return logits

        runner.step = step
        self.generate(prompts, num_tokens)
        runner.step = take_step
        return steps


if __name__ == "__main__":
    serve(FreediveJobs, sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
