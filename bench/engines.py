"""The engines that are compared: the checkpoint that each reads, and how its worker starts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from random_models import BF16, GPTQ, random_model
from shapes import SHAPES
from workers import JOBS, LLAMA, PEERS, Worker, ending, python_of

from freedive.errors import UserError

OURS, FAST, THEIRS = "freedive", "freedive fast", "llama.cpp"
"""freedive with its default settings; freedive with 8-bit activations, as peers have; the peer that others are compared
to."""

PEERS_FOLDER = Path(os.environ.get("FREEDIVE_BENCH_PEERS", PEERS))
"""The folder with a Python environment for each peer, by the peer's name."""

GGUF, OPENVINO = "GGUF", "INT4"
"""Forms of a model besides those of :mod:`random_models`: the GGUF file itself, and OpenVINO's export of BF16."""

EXPORT = (
    *("--task", "text-generation-with-past", "--weight-format", "int4", "--sym", "--ratio", "1.0"),
    *("--group-size", "128", "--group-size-fallback", "adjust"),
)


@dataclass(frozen=True)
class Engine:
    """An engine: ``peer`` names its Python environment, ``script`` its worker, ``form`` what it reads; ``options`` go
    to the worker."""

    name: str
    peer: str
    script: str
    form: str = GGUF
    options: tuple[str, ...] = ()

    @property
    def python(self) -> Path:
        return python_of(PEERS_FOLDER, self.peer) if self.peer else Path(sys.executable)

    def checkpoint(self, model: str, gguf: Path) -> Path:
        """Returns the checkpoint of ``model`` that the engine reads, which it may create.

        Raises UserError if that fails.
        """
        if not self.python.exists():
            raise UserError("not installed", "Run `make bench`")
        if self.form == GGUF:
            return gguf
        if model not in SHAPES:
            raise UserError(f"it reads no GGUF, and of {model} there is nothing else")
        return self._exported(model) if self.form == OPENVINO else random_model(model, self.form)

    def command(self, checkpoint: Path, threads: int) -> tuple[object, ...]:
        """Returns the command of the engine's worker."""
        return self.python, JOBS / self.script, checkpoint, threads, *self.options

    def start(self, checkpoint: Path, threads: int) -> Worker:
        return Worker(*self.command(checkpoint, threads))

    def _exported(self, model: str) -> Path:
        source = random_model(model, BF16)
        path = source.with_name(f"{model}-{OPENVINO}")
        if not path.exists():
            print(f"making {path}", file=sys.stderr)
            partial = path.with_name(f"{path.name}.new")
            shutil.rmtree(partial, ignore_errors=True)
            command: list[str | Path] = [self.python.with_name("optimum-cli"), "export", "openvino", "--model", source]
            done = subprocess.run([*command, *EXPORT, partial], stderr=subprocess.PIPE, stdout=sys.stderr)
            if done.returncode:
                shutil.rmtree(partial, ignore_errors=True)
                raise UserError(f"the export fails: {ending(done.returncode, done.stderr)}")
            partial.rename(path)
        return path


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(OURS, "", "freedive_jobs.py"),
        Engine(FAST, "", "freedive_jobs.py", options=("fast",)),
        Engine(THEIRS, LLAMA, "llama_jobs.py"),
        Engine("ik_llama.cpp", "ik-llama", "ik_jobs.py"),
        Engine("OpenVINO int4", "openvino", "openvino_jobs.py", OPENVINO),
        Engine("vLLM int4", "vllm", "vllm_jobs.py", GPTQ),
        Engine("vLLM bf16", "vllm", "vllm_jobs.py", BF16),
        Engine("transformers bf16", "transformers", "transformers_jobs.py", BF16),
    )
}
