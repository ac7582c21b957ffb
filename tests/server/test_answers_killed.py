"""A server that is killed while answers stream: what had arrived half a second before is there, and continues."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import httpx
from answers_client import AT, asked, ended, read, sent
from patience import wait_until

SERVER = """
import sys
from pathlib import Path
from echo_model import EchoModel, served
from freedive.server.app import create_app, listen, server

model = EchoModel(script={"count": " ".join(map(str, range(20_000)))}, delay_s=0.001, max_context=1 << 20)
listener = listen("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
server(create_app(served(model), conversations=Path(sys.argv[1]))).run(sockets=[listener])
"""


def served_at(path: Path) -> tuple[subprocess.Popen[str], str]:
    environment = {"PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", SERVER, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout
    return process, f"http://127.0.0.1:{int(process.stdout.readline())}"


def content(http: httpx.Client, id: str, message: str) -> str:
    return str(read(http, id, message)["content"])


def test_five_killed_servers_lose_half_a_second_at_most(tmp_path: Path) -> None:
    path, choose = tmp_path / "conversations.sqlite", random.Random(1)
    known: list[tuple[str, str, str]] = []
    for _ in range(5):
        process, url = served_at(path)
        with process, httpx.Client(base_url=url, timeout=20) as http:
            for id, message, begun in known:
                found = read(http, id, message)
                assert found["status"] == "interrupted"
                assert found["content"].startswith(begun)
            answers = [asked(http, "count") for _ in range(3)]
            for id, answer in answers:
                wait_until(partial(content, http, id, answer["id"]))
            time.sleep(choose.random() * 0.6)
            seen = [content(http, id, answer["id"]) for id, answer in answers]
            process.send_signal(signal.SIGKILL)
        assert all(seen)
        known += [(id, answer["id"], text) for (id, answer), text in zip(answers, seen, strict=True)]
    process, url = served_at(path)
    with process, httpx.Client(base_url=url, timeout=20) as http:
        whole = " ".join(map(str, range(20_000)))
        for id, message, begun in known:
            found = read(http, id, message)["content"]
            assert found.startswith(begun)
            assert whole.startswith(found)
        id, message, begun = known[-1]
        assert sent(http, f"/{id}/answers", **{"continue": message})["status"] == "running"
        sent(http, f"/{id}/answers/{message}/stop")
        assert ended(http, id, message)["content"].startswith(begun)
        assert len(http.get(AT).json()["conversations"]) == 15
        process.terminate()
