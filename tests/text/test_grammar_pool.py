"""A grammar of a client can end the worker process that tries it, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import wait_until
from test_format import compiler, constraint_of  # noqa: F401  # a fixture

from freedive.errors import Overloaded, Unavailable, UserError
from freedive.text import grammar_pool
from freedive.text.format import Format
from freedive.text.grammar_constraint import GrammarCompiler
from freedive.text.grammar_pool import GrammarPool, TimedOut
from freedive.text.grammar_worker import Vocabulary

VOCABULARY = Vocabulary([bytes([n]) for n in range(256)] + [b"<end>"], [256], [256], None).to_bytes()


def schema_grammar(schema: dict[str, Any]) -> str:
    return json.dumps({"grammars": [{"json_schema": schema}]})


def chain(length: int) -> dict[str, Any]:
    links = {
        f"n{n}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/n{n + 1}"}}, "required": ["a"]}
        for n in range(length)
    }
    return {"$ref": "#/$defs/n0", "$defs": {**links, f"n{length}": {"type": "null"}}}


EASY = schema_grammar({"type": "integer"})
DEADLY = {
    "integer": schema_grammar({"const": -9223372036854775808}),
    "chain": schema_grammar(chain(3000)),
}


@pytest.fixture
def pool() -> Iterator[GrammarPool]:
    pool = GrammarPool(1)
    yield pool
    pool.close()


def fault(pool: GrammarPool, grammar: str, key: str = "bytes") -> str:
    return pool.fault(key, VOCABULARY, grammar)


@pytest.mark.parametrize("name", DEADLY)
def test_a_worker_that_dies_is_a_fault_of_the_grammar_and_is_replaced(pool: GrammarPool, name: str) -> None:
    assert fault(pool, EASY) == ""
    assert "too large" in fault(pool, DEADLY[name])
    assert fault(pool, EASY) == ""


def test_a_worker_stays_and_keeps_few_vocabularies(pool: GrammarPool) -> None:
    assert fault(pool, EASY) == ""
    pid = worker_pid(pool)
    for key in "abcdeabcde":
        assert fault(pool, EASY, key) == ""
    assert worker_pid(pool) == pid


def test_a_grammar_without_end_times_out(pool: GrammarPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_pool, "PATIENCE_S", 0.3)
    slow = {"allOf": [{"type": "string", "pattern": f"^.*a.{{{n}}}b.*$"} for n in range(60)]}
    start = time.monotonic()
    with pytest.raises(TimedOut):
        fault(pool, schema_grammar(slow))
    assert time.monotonic() - start < 30
    monkeypatch.setattr(grammar_pool, "PATIENCE_S", 30)
    assert fault(pool, EASY) == ""


def test_a_worker_that_hangs_times_out(pool: GrammarPool, monkeypatch: pytest.MonkeyPatch) -> None:
    fault(pool, EASY)
    monkeypatch.setattr(grammar_pool, "PATIENCE_S", 0.1)
    pid = worker_pid(pool)
    os.kill(pid, signal.SIGSTOP)
    while Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        time.sleep(0.001)
    with pytest.raises(TimedOut):
        fault(pool, EASY)


def test_a_killed_worker_is_no_fault_of_the_grammar(pool: GrammarPool) -> None:
    fault(pool, EASY)
    os.kill(worker_pid(pool), signal.SIGKILL)
    with pytest.raises(TimedOut):
        fault(pool, EASY)
    assert fault(pool, EASY) == ""


def test_memory_of_a_worker_is_limited(pool: GrammarPool) -> None:
    fault(pool, EASY)
    limits = Path(f"/proc/{worker_pid(pool)}/limits")
    if not limits.exists():
        pytest.skip("there is no /proc")
    assert any(
        line.split()[:4] == ["Max", "address", "space", str(1 << 30)] for line in limits.read_text().splitlines()
    )


def test_requests_beyond_the_workers_wait_and_are_refused_in_the_end(
    pool: GrammarPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar_pool, "MAX_WAIT_S", 0.1)
    worker = pool._idle.get()
    with pytest.raises(Overloaded):
        fault(pool, EASY)
    monkeypatch.setattr(grammar_pool, "MAX_WAIT_S", 60)
    threading.Timer(0.1, pool._idle.put, [worker]).start()
    assert fault(pool, EASY) == ""


def test_a_worker_that_cannot_be_started_is_reported(pool: GrammarPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_pool.sys, "executable", "/nowhere/python")
    with pytest.raises(Unavailable):
        fault(pool, EASY)
    monkeypatch.undo()
    assert fault(pool, EASY) == ""


def test_a_worker_ends_with_its_server() -> None:
    program = f"""
import sys, time
sys.path[:0] = {[str(folder) for folder in Path(__file__).parents[:2]]}
from test_grammar_pool import *
pool = GrammarPool(1)
fault(pool, EASY)
print(worker_pid(pool), flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        worker = int(server.stdout.readline())
        server.kill()
    wait_until(lambda: not runs(worker))


def test_a_timeout_is_not_cached(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def late(*_: Any) -> str:
        raise TimedOut

    form = Format("regex", "[a-f]{7}x")
    with monkeypatch.context() as patch:
        patch.setattr(GrammarPool, "fault", late)
        with pytest.raises(UserError, match="takes longer than"):
            constraint_of(compiler, form)
    assert constraint_of(compiler, form).allowed().any()


def worker_pid(pool: GrammarPool) -> int:
    process = pool._workers[0]._process
    assert process
    return process.pid


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
