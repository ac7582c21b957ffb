"""The samples of the last minutes, which the page of statistics shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, served, serving
from patience import wait_until

from freedive.server import history, keys
from freedive.server.history import NUM_SAMPLES, History
from freedive.server.keys import Keys

PATH = "/app/stats"


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(history, "EVERY_S", 0.02)
    with serving(EchoModel(delay_s=0, script={"boom": "a\N{COLLISION SYMBOL}"})) as url:
        yield url


def ask(url: str, prompt: str, **more: Any) -> None:
    httpx.post(f"{url}/v1/completions", json={"model": "echo", "prompt": prompt, **more})


def newest(url: str) -> dict[str, Any]:
    sample: dict[str, Any] = httpx.get(f"{url}{PATH}").json()["samples"][-1]
    return sample


def test_samples_count_what_the_engine_does(url: str) -> None:
    ask(url, "hello")
    wait_until(lambda: newest(url)["models"]["echo"]["num_read"] == 5)
    sample = newest(url)
    assert sample["models"]["echo"]["num_generated"] == 5
    assert sample["models"]["echo"]["num_pages"] == 64
    assert sample["resident_bytes"] > 1 << 20
    answer = httpx.get(f"{url}{PATH}").json()
    assert answer["total_bytes"] > answer["available_bytes"] > 0
    assert answer["troubles"] == {}


def test_a_reader_gets_only_what_it_lacks(url: str) -> None:
    wait_until(lambda: newest(url)["number"] >= 5)
    numbers = [sample["number"] for sample in httpx.get(f"{url}{PATH}?after=3").json()["samples"]]
    assert numbers == list(range(4, 4 + len(numbers)))
    assert len(numbers) >= 2
    assert httpx.get(f"{url}{PATH}?after=1000000").json()["samples"] == []


def test_the_time_to_the_first_token_is_in_the_sample_after_the_answer_and_in_no_other(url: str) -> None:
    ask(url, "hello")

    def times() -> list[float]:
        samples = httpx.get(f"{url}{PATH}").json()["samples"]
        return [sample["first_token_s"] for sample in samples if sample["first_token_s"] is not None]

    wait_until(times)
    wait_until(lambda: newest(url)["first_token_s"] is None)
    assert len(times()) == 1
    assert times()[0] > 0


def test_failures_and_refusals_are_counted_apart(url: str) -> None:
    ask(url, "boom")
    ask(url, "hello", temperature=-1)
    httpx.get(f"{url}/nowhere")
    wait_until(lambda: (newest(url)["failed"], newest(url)["refused"]) == (1, 2))


def test_samples_are_bounded() -> None:
    kept = History(served(EchoModel()))
    for _ in range(NUM_SAMPLES + 7):
        kept.take()
    samples = kept.after(0)["samples"]
    assert [sample["number"] for sample in samples] == list(range(8, NUM_SAMPLES + 8))


def test_the_page_is_open_and_its_data_need_the_right_to_manage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    ann, boss = (
        {"authorization": f"Bearer {keys.create(name, may=may)}"} for name, may in (("ann", []), ("boss", ["manage"]))
    )
    with serving(EchoModel("secretive"), keys=Keys()) as url:
        page = httpx.get(f"{url}/stats")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "secretive" not in page.text
        assert httpx.get(f"{url}{PATH}").status_code == 401
        assert httpx.get(f"{url}{PATH}", headers=ann).status_code == 403
        assert httpx.get(f"{url}{PATH}", headers=boss).json()["samples"][0]["models"].keys() == {"secretive"}
        may = [httpx.get(f"{url}/app/models", headers=key).json()["may"] for key in (ann, boss)]
        assert may == [[], ["manage"]]


@pytest.mark.parametrize("accept", ["text/html", "application/json", "*/*"])
def test_v1_stats_stays_json_whatever_is_accepted(url: str, accept: str) -> None:
    answer = httpx.get(f"{url}/v1/stats", headers={"accept": accept})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["models"].keys() == {"echo"}


def test_the_page_of_statistics_is_in_the_readers_language(url: str) -> None:
    titles = [httpx.get(f"{url}/stats", headers={"accept-language": code}).text for code in ("en", "zh-CN")]
    assert ["<h1>Statistics</h1>" in titles[0], "<h1>统计</h1>" in titles[1]] == [True, True]


def test_a_sample_that_fails_ends_neither_the_samples_nor_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError("too many open files")]

    def resident_memory() -> int:
        if failures:
            raise failures.pop()
        return 1

    monkeypatch.setattr("freedive.machine.resident_memory", resident_memory)
    monkeypatch.setattr(history, "EVERY_S", 0.02)
    with serving(EchoModel()) as url:
        wait_until(lambda: httpx.get(f"{url}{PATH}").json()["samples"])
    assert not failures
