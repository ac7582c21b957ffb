"""A short form of bench/chaos.py, and requests that once made a model unavailable, on a real server."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from echo_model import serving

import freedive

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def real_server() -> Iterator[str]:
    with freedive.load("nano", cache_tokens=4096) as model, serving(model) as url:
        yield url


def is_well(url: str) -> bool:
    health = httpx.get(f"{url}/health", timeout=10)
    (stats,) = health.json()["models"].values()
    return health.status_code == 200 and (stats["running"], stats["waiting"]) == (0, 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "How much is 12 + 30? " * 5}]}),
        ("/v1/completions", {"prompt": "How much is 12 + 30? " * 5}),
        ("/v1/embeddings", {"input": "How much is 12 + 30? " * 5}),
    ],
)
@pytest.mark.parametrize("field", ["user_id", "user"])
def test_lone_surrogates_end_no_model(real_server: str, path: str, body: dict[str, object], field: str) -> None:
    content = json.dumps({"model": "nano", "max_tokens": 4, field: "\ud800"} | body)
    if path == "/v1/embeddings":
        content = content.replace('"max_tokens": 4, ', "")
    for _ in range(2):
        answer = httpx.post(
            f"{real_server}{path}", content=content, headers={"content-type": "application/json"}, timeout=60
        )
        assert answer.status_code in (200, 400)
    assert is_well(real_server)


@pytest.mark.parametrize(
    ("path", "body", "count"),
    [
        ("/v1/embeddings", {"input": ["a"] * 2048}, 2048),
        ("/v1/embeddings", {"input": ["a"] * 273}, 273),
        ("/v1/completions", {"prompt": ["a"] * 300, "max_tokens": 1}, 300),
        ("/v1/completions", {"prompt": ["a"] * 3, "n": 128, "max_tokens": 1}, 384),
    ],
    ids=["most embeddings", "embeddings", "prompts", "choices"],
)
def test_a_batch_is_answered_and_others_beside_it(
    real_server: str, path: str, body: dict[str, object], count: int
) -> None:
    answers: list[httpx.Response] = []

    def ask() -> None:
        answers.append(httpx.post(f"{real_server}{path}", json={"model": "nano"} | body, timeout=120))

    asking = threading.Thread(target=ask)
    asking.start()
    worst = 0.0
    while asking.is_alive():
        begun = time.perf_counter()
        assert httpx.get(f"{real_server}/health", timeout=20).status_code == 200
        worst = max(worst, time.perf_counter() - begun)
        beside = {"model": "nano", "prompt": "b", "max_tokens": 1}
        assert httpx.post(f"{real_server}/v1/completions", json=beside, timeout=60).status_code == 200
    asking.join()
    assert answers[0].status_code == 200
    assert len(answers[0].json().get("data") or answers[0].json()["choices"]) == count
    assert worst < 2  # 0.2 s on an idle machine


def test_more_answers_than_a_request_may_have_are_refused_by_number(real_server: str) -> None:
    body = {"model": "nano", "prompt": ["a"] * 1000, "n": 100, "max_tokens": 1}
    answer = httpx.post(f"{real_server}/v1/completions", json=body, timeout=60)
    assert answer.status_code == 400
    assert "4096" in answer.json()["error"]["message"]


def test_chaos_ends_every_request_and_changes_no_answer(tmp_path: Path) -> None:
    seen = tmp_path / "seen.json"
    command = [sys.executable, "bench/chaos.py", "--seconds", "4", "--model", "nano", "--streams", "12"]
    done = subprocess.run(
        [*command, "--one-in", "500", "--json", str(seen)], cwd=ROOT, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(seen.read_text())["outcomes"]["answered"]
