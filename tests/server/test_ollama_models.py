"""Ollama's official client library lists, shows, pulls and unloads models."""

from __future__ import annotations

import threading
import time
from contextlib import suppress

import httpx
import ollama
import pytest
from echo_model import EchoModel, model_entry, serving
from ollama_setup import HELLO, SAID, refusal
from patience import PATIENCE_S, wait_until

from freedive.errors import NotFound
from freedive.server.library.line import Abandoned, Progress
from freedive.server.model_info import ModelInfo
from freedive.server.models import ModelEntry
from freedive.server.ollama import pull as pulling


def test_an_empty_request_loads_or_unloads() -> None:
    model = EchoModel()
    with serving(model) as url, ollama.Client(host=url) as client:
        assert client.chat("echo", keep_alive=0).done_reason == "unload"
        assert model.closed
        assert client.ps().models == []
        assert client.generate("echo", keep_alive="1h30m").done_reason == "load"
        [running] = client.ps().models
        remaining_s = running.expires_at.timestamp() - time.time()
        assert 5395 < remaining_s < 5405
        assert [part.done_reason for part in client.generate("echo", keep_alive=-1, stream=True)] == ["load"]
        assert client.ps().models[0].expires_at.year == 9999


def test_a_model_with_keep_alive_0_is_unloaded_after_its_answer() -> None:
    model = EchoModel()
    with serving(model) as url, ollama.Client(host=url) as client:
        assert client.generate("echo", "hello", keep_alive="0s").response == SAID
        wait_until(lambda: model.closed)
        assert client.ps().models == []


ABOUT = ModelInfo(
    family="qwen3moe",
    num_params=30_532_122_624,
    format="Q4_K",
    max_context=40960,
    hidden_dim=2048,
    template="{{ messages }}",
    sampling={"temperature": 0.6, "top_k": 20},
    capabilities=("completion", "tools"),
)


def test_models_are_listed_and_shown() -> None:
    with serving(EchoModel(about=ABOUT)) as url, ollama.Client(host=url) as client:
        [listed] = client.list().models
        assert (listed.model, listed.size, listed.modified_at.timestamp()) == ("echo", 1 << 20, 1_700_000_000)
        assert len(listed.digest) == 64
        assert (listed.details.parameter_size, listed.details.quantization_level) == ("30.5B", "Q4_K")
        [running] = client.ps().models
        assert (running.name, running.size, running.size_vram, running.context_length) == ("echo", 1 << 20, 0, 4096)
        assert running.digest == listed.digest
        shown = client.show("echo:latest")
        assert (shown.template, shown.capabilities) == ("{{ messages }}", ["completion", "tools"])
        assert [row.split() for row in shown.parameters.splitlines()] == [["temperature", "0.6"], ["top_k", "20"]]
        assert shown.modelinfo["general.architecture"] == shown.details.family == "qwen3moe"
        assert shown.modelinfo["qwen3moe.context_length"] == 40960
        older = httpx.post(f"{url}/api/show", json={"name": "echo"}).json()
        assert older["model_info"] == shown.modelinfo


def test_clients_see_that_the_server_runs_and_its_version(http: httpx.Client) -> None:
    for path in ("/", "/api/version", "/api/tags"):
        response = http.head(path)
        assert (response.status_code, response.content) == (200, b"")
    assert http.get("/api/version").json().keys() == {"version", "freedive"}


def test_the_tag_latest_is_ignored(ollama_client: ollama.Client) -> None:
    answer = ollama_client.chat("echo:latest", HELLO)
    assert (answer.model, answer.message.content) == ("echo:latest", SAID)


def test_a_stored_model_is_pulled_at_once(ollama_client: ollama.Client) -> None:
    assert ollama_client.pull("echo:latest").status == "success"
    assert [state.status for state in ollama_client.pull("echo", stream=True)] == ["pulling manifest", "success"]


def test_a_server_of_given_models_pulls_no_others(ollama_client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        ollama_client.pull("other")
    assert "freedive pull other" in refusal(caught)


def test_a_pull_reports_its_progress_and_the_model_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulling, "TICK_S", 0.01)
    told = threading.Event()

    def fetch(name: str, progress: Progress) -> ModelEntry:
        if name != "new":
            raise NotFound(f"There is no model named {name}")
        progress.total = 10
        progress.advance(4)
        assert told.wait(PATIENCE_S)
        return model_entry(EchoModel(name=name))

    with serving(EchoModel(), fetch=fetch) as url, ollama.Client(host=url) as client:
        states = client.pull("new", stream=True)
        assert next(states).status == "pulling manifest"
        state = next(states)
        assert (state.completed, state.total) == (4, 10)
        told.set()
        assert list(states)[-1].status == "success"
        assert client.generate("new", "hello").response == SAID
        with pytest.raises(ollama.ResponseError, match="There is no model named nothing"):
            list(client.pull("nothing", stream=True))
        with pytest.raises(ollama.ResponseError) as caught:
            client.pull("nothing")
        refusal(caught, 404)


@pytest.mark.parametrize("stream", [False, True])
def test_a_pull_ends_with_its_client_and_does_not_block_the_server(
    monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(pulling, "TICK_S", 0.01)
    ended = threading.Event()

    def fetch(name: str, progress: Progress) -> ModelEntry:
        progress.total = 10
        assert threading.current_thread().daemon
        deadline = time.monotonic() + PATIENCE_S
        with suppress(Abandoned):
            while time.monotonic() < deadline:
                progress.check()
                time.sleep(0.01)
            raise AssertionError("nobody said that the client has left")
        ended.set()
        raise Abandoned

    with serving(EchoModel(), fetch=fetch) as url, ollama.Client(host=url, timeout=None if stream else 1) as client:
        if stream:
            states = client.pull("new", stream=True)
            assert [next(states).total for _ in range(2)] == [None, 10]
            states.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.pull("new")
        assert ended.wait(PATIENCE_S)
        with ollama.Client(host=url) as other:
            assert [model.model for model in other.list().models] == ["echo"]


def test_requests_that_change_local_files_are_refused_with_a_remedy(ollama_client: ollama.Client) -> None:
    for attempt in (
        lambda: ollama_client.create("mine", from_="echo"),
        lambda: ollama_client.copy("echo", "other"),
        lambda: ollama_client.push("echo"),
        lambda: ollama_client.delete("echo"),
        lambda: ollama_client.create_blob(__file__),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            attempt()
        assert "is not supported by this server" in refusal(caught)
