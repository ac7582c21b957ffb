"""The inside of a worker process: does jobs that arrive as lines of JSON, one at a time. Standard library only."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


class Jobs:
    """What every worker can do; an engine adds its own methods."""

    def peak_memory(self) -> int:
        """Most bytes of physical memory that this program has held, mapped files included."""
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def serve(jobs: Jobs) -> None:
    """Call the method that each line names, until the input ends. Between lines the process sleeps."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever else is printed must not be taken for an answer
    for line in sys.stdin:
        job, arguments = json.loads(line)
        print(json.dumps(getattr(jobs, job)(**arguments)), file=answers)
