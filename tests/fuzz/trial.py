"""Loads one mutated model, describes it and takes a step; a process of fuzz.py runs it for many models.

Reads lines ``folder`` and answers each with ``works``, ``refused`` or a fault. After a crash there is no answer.
"""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from pathlib import Path

if "FREEDIVE_SANITIZED" in os.environ:
    import sanitized  # noqa: F401
import freedive
from freedive.commands.describe import decoder_facts
from freedive.engine.generation import EngineError
from freedive.errors import UserError

MOST_SECONDS = 2.0
MOST_BYTES = 1 << 30
MESSAGES = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "<think>Well</think>\n\nHi", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": [1, {"y": None}]}}}
    ]},
    {"role": "user", "content": "你好 " * 50},
]  # fmt: skip


def attempt(folder: Path) -> str:
    """Returns what happens to the model in ``folder``: it works, is refused, or has numbers that are reported as not
    finite."""
    path = folder / "model.gguf" if (folder / "model.gguf").exists() else folder
    try:
        decoder_facts(path)
        with freedive.load(str(path), threads=1, cache_tokens=256, prefix_cache="off", prefill_chunk=32) as model:
            vocab = model.runner.vocab_size
            sampling = model.sampling(temperature=0.5, seed=1, max_tokens=2, logprobs=20)
            tokens = [1 % vocab, vocab - 1, *range(min(vocab, 40))][: model.max_context - 2]
            for _ in model.engine.submit(tokens, sampling):
                pass
            if (folder / "chat_template.jinja").exists():
                model.template.render(MESSAGES, add_generation_prompt=True)
    except UserError:
        return "refused"
    except EngineError as error:
        if "not finite" not in str(error):
            raise
        return "not finite"
    return "works"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        start, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            said = attempt(Path(line.rstrip("\n")))
        except BaseException:  # any exception is a fault
            said = "fault: " + traceback.format_exc().replace("\n", " | ")
        seconds = time.process_time() - start
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if seconds > MOST_SECONDS:
            said = f"fault: {seconds:.1f} s; {said}"
        if grown > MOST_BYTES:
            said = f"fault: {grown >> 20} MB; {said}"
        print(said, file=answers, flush=True)
    os._exit(0)


if __name__ == "__main__":
    main()
