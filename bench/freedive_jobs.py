"""Worker: freedive through its engine. Usage: freedive_jobs.py MODEL THREADS"""

from __future__ import annotations

import sys
from typing import Any

from jobs import Jobs, serve

import freedive
from freedive.commands.bench import generate


class FreediveJobs(Jobs):
    def __init__(self, path: str, threads: int) -> None:
        self.model = freedive.load(path, threads=threads, speculation="off")  # as the peers run

    def about(self) -> dict[str, Any]:
        runner = self.model.runner
        return {
            "version": freedive.__version__,
            "settings": f"{runner.isa} kernels",
            "vocab_size": runner.vocab_size,
            "max_context": self.model.max_context,
        }

    def prepare(self, prompts: list[list[int]], num_tokens: int) -> str:
        """Warm up; there are no settings to choose."""
        self.generate(prompts, num_tokens)
        return ""

    def generate(self, prompts: list[list[int]], num_tokens: int) -> tuple[float, float]:
        """Seconds to the first tokens of all prompts, and from there until each has ``num_tokens``."""
        run = generate(self.model, prompts, num_tokens)
        return run.prefill_s, run.decode_s


if __name__ == "__main__":
    serve(FreediveJobs(sys.argv[1], int(sys.argv[2])))
