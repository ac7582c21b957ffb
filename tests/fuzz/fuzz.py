"""Fuzzes the loading of models: ``python tests/fuzz/fuzz.py [--seconds S | --count N]``.

It mutates model folders, GGUF files, safetensors folders and chat templates, and loads each in another process. A
working model or a UserError is allowed, within 2 s and 1 GB. Anything else is a fault, whose input is kept under
build/fuzz. The exit status is 1 if there was a fault.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1]
KEPT = TESTS.parent / "build" / "fuzz"
PATIENCE = 60.0
"""Seconds after which a process that does not answer is killed."""

sys.path[:0] = [str(TESTS), str(TESTS / "fuzz")]

from models import SEEDS, make_seeds  # noqa: E402
from mutations import Mutate, mutate_gguf, mutate_model_folder, mutate_safetensors, mutate_template  # noqa: E402

MUTATE: dict[str, Mutate] = {
    "model-folder": mutate_model_folder,
    "gguf": mutate_gguf,
    "safetensors": mutate_safetensors,
    "template": mutate_template,
}


class Trials:
    """A process that tries models one after another; it is restarted when a model has ended it."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, folder: Path) -> str:
        if self._process is None or self._process.poll() is not None:
            self._process = self._begin()
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(f"{folder}\n")
        self._process.stdin.flush()
        said = self._answer(self._process)
        return said or f"fault: it ended the process ({self._process.wait(10)})"

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()

    def _begin(self) -> subprocess.Popen[str]:
        environment = os.environ | {
            "FREEDIVE_HOME": str(self._home),
            "PYTHONPATH": f"{TESTS.parent}:{TESTS / 'native'}",
        }
        command = [sys.executable, str(TESTS / "fuzz" / "trial.py")]
        log = (KEPT / "stderr.log").open("a")
        return subprocess.Popen(command, stdin=-1, stdout=-1, stderr=log, text=True, env=environment)

    @staticmethod
    def _answer(process: subprocess.Popen[str]) -> str:
        import select

        assert process.stdout
        if not select.select([process.stdout], [], [], PATIENCE)[0]:
            process.kill()
            process.wait()
            return f"fault: no answer in {PATIENCE:.0f} s"
        return process.stdout.readline().rstrip("\n")


def fuzz(seconds: float, count: int, seed: int) -> int:
    """Returns the number of faults."""
    KEPT.mkdir(parents=True, exist_ok=True)
    tallies = {kind: Counter[str]() for kind in MUTATE}
    begun, number = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as scratch:
        make_seeds(Path(scratch) / "seeds")
        trials = Trials(Path(scratch) / "home")
        for seed_folder in sorted((Path(scratch) / "seeds").iterdir()):
            assert (said := trials(seed_folder)) == "works", f"{seed_folder.name}: {said}"
        while number < count * len(MUTATE) and time.monotonic() - begun < seconds:
            kind = list(MUTATE)[number % len(MUTATE)]
            chance = random.Random(f"{seed} {number}")
            folder = Path(scratch) / "trial"
            shutil.copytree(Path(scratch) / "seeds" / chance.choice(SEEDS[kind]), folder)
            MUTATE[kind](chance, folder)
            said = trials(folder)
            tallies[kind][said.split(":")[0]] += 1
            if said.startswith("fault"):
                shutil.copytree(folder, KEPT / f"{kind}-{seed}-{number}", dirs_exist_ok=True)
                print(f"{kind} {seed} {number} {said}", flush=True)
            shutil.rmtree(folder)
            shutil.rmtree(Path(scratch) / "home", ignore_errors=True)
            number += 1
        trials.close()
    for kind, tally in tallies.items():
        print(kind, ", ".join(f"{count} {what}" for what, count in sorted(tally.items())))
    return sum(tally["fault"] for tally in tallies.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--count", type=int, default=1 << 40, help="mutations of each kind")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    sys.exit(fuzz(options.seconds, options.count, options.seed) > 0)
