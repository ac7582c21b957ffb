"""The real model through every interface: the command line, HTTP with the official client, and the
page in a browser."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from browser import Page, browser
from selenium import webdriver

import freedive

__all__ = ["browser"]

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "freedive"]
QUESTION = "What is the capital of France? Answer in one word."
CAPITAL: list[Any] = [{"role": "user", "content": QUESTION}]
ENDLESS: list[Any] = [{"role": "user", "content": "Count from one to five thousand in words."}]


@pytest.fixture(scope="module", autouse=True)
def packed(smollm2_path: Path) -> None:
    """Downloads and packs the model before the first command runs."""
    freedive.load(str(smollm2_path), cache_tokens=64).close()


def command(*arguments: str, input: str | bytes = "", timeout: float = 60) -> tuple[int, str, str]:
    """Returns exit code, standard output and standard error of a ``freedive`` process."""
    data = input.encode() if isinstance(input, str) else input
    done = subprocess.run([*COMMAND, *arguments], input=data, capture_output=True, cwd=ROOT, timeout=timeout)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


# --- the command line ---------------------------------------------------------------------------------------------


def test_run_names_paris_and_prints_nothing_else() -> None:
    code, out, _ = command("run", "smollm2", QUESTION, "--temperature", "0")
    assert code == 0
    assert "Paris" in out
    assert out.endswith("\n")
    assert len(out.splitlines()) == 1


def test_run_reads_standard_input_and_repeats_itself() -> None:
    arguments: tuple[str, ...] = ("run", "smollm2", "-", "--temperature", "0.8", "--seed", "5", "--max-tokens", "12")
    arguments += ("--prefix-cache", "off")  # both runs compute everything
    first = command(*arguments, input="Tell me about the sea.\n")
    assert first[0] == 0
    assert len(first[1].split()) > 3
    assert command(*arguments, "--threads", "1", "--prefill-chunk", "8", input="Tell me about the sea.\n") == first


def test_run_survives_input_that_is_not_text() -> None:
    code, out, err = command("run", "smollm2", "--temperature", "0", "--max-tokens", "4", input=b"caf\xe9 \xff\xfe")
    assert (code, bool(out.strip())) == (0, True)
    assert "Traceback" not in err


def test_chat_fed_by_a_pipe_answers_each_line() -> None:
    code, out, _ = command("chat", "--temperature", "0", "--max-tokens", "12", input=f"{QUESTION}\nAnd of Italy?\n")
    assert code == 0
    assert "Paris" in out
    assert "Rome" in out


@pytest.mark.parametrize(
    ("arguments", "input", "code", "words"),
    [
        (["run", "smolm2", "hi"], "", 1, "smollm2"),
        (["run", "./absent.gguf", "hi"], "", 1, "absent.gguf"),
        (["run", "smollm2", "hi", "--temperature", "1000"], "", 1, "temperature is 1000"),
        (["run", "smollm2", "hi", "--temperature", "warm"], "", 2, "--temperature"),
        (["run", "smollm2", "hi", "--max-context", "9000"], "", 1, "reads at most 8192 tokens"),
        (["run", "smollm2", "hi", "--max-context", "16"], "", 1, "maximum context length is 16"),
        (["run", "smollm2"], "  \n", 1, "prompt is empty"),
        (["run", "smollm2", "--max-context", "512"], "word " * 600, 1, "Shorten the prompt"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_each_error_is_one_line(arguments: list[str], input: str, code: int, words: str) -> None:
    got, out, err = command(*arguments, input=input)
    assert (got, out) == (code, ""), err
    assert words in err
    assert "Traceback" not in err
    if code == 1:
        (line,) = err.splitlines()
        assert line.startswith("error: ")


def test_a_truncated_model_is_one_line(smollm2_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(smollm2_path.read_bytes()[:1_000_000])
    code, out, err = command("run", str(path), "hi")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "cut.gguf" in err


def test_an_unusable_isa_level_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_ISA", "mmx")
    code, out, err = command("run", "smollm2", "hi")
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert "scalar" in err


def test_a_closed_pipe_ends_run_quietly() -> None:
    arguments = [*COMMAND, "run", "smollm2", "Write a long story.", "--max-tokens", "300", "--ignore-eos"]
    with subprocess.Popen(arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.read(1)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
        assert process.wait(60) != 0


# --- HTTP ---------------------------------------------------------------------------------------------------------


class Server:
    """``freedive serve`` in a process of its own, on a free port."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", "smollm2", "--port", "0", *arguments],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stderr
        line = self.process.stderr.readline()
        found = re.search(r"http://[\d.:]+", line)
        assert found, line
        self.url = found[0]

    def stop(self) -> str:
        """Sends Ctrl-C; returns the rest of standard error."""
        self.process.send_signal(signal.SIGINT)
        try:
            _, err = self.process.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        assert self.process.returncode == 0, err
        return err


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = Server("--cache-tokens", "4096", "--max-context", "512")
    yield running.url
    assert running.stop() == ""


@pytest.fixture(scope="module")
def client(server: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0) as client:
        yield client


def busy(server: str) -> dict[str, Any]:
    state: dict[str, Any] = httpx.get(f"{server}/health").json()["models"]["smollm2"]
    return state


def wait_until_idle(server: str) -> None:
    deadline = time.monotonic() + 60
    while (state := busy(server))["running"] or state["free_pages"] != state["num_pages"]:
        assert time.monotonic() < deadline, state
        time.sleep(0.02)


def test_the_official_client_lists_the_model(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2"]


def test_the_official_client_streams_an_answer(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="smollm2", messages=CAPITAL, temperature=0, stream=True)
    chunks = list(stream)
    assert "Paris" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "stop"
    assert len(chunks) > 3


def test_the_official_client_completes_a_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="smollm2", prompt="1, 2, 3, 4,", temperature=0, max_tokens=9)
    assert answer.choices[0].text == " 5, 6, 7,"
    assert answer.usage
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (9, "length")


def test_concurrent_requests_answer_as_alone(client: openai.OpenAI) -> None:
    def answer(number: int, seed: int) -> str | None:
        done = client.chat.completions.create(
            model="smollm2",
            messages=[{"role": "user", "content": f"What is {number} plus {number}?"}],
            temperature=0.8,
            seed=seed,
            max_tokens=12,
        )
        return done.choices[0].message.content

    numbers, seeds = range(4), range(10, 14)
    alone = [answer(*pair) for pair in zip(numbers, seeds, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(answer, numbers, seeds)) == alone


def test_a_disconnected_client_frees_its_slot(server: str, client: openai.OpenAI) -> None:
    longer = {"max_tokens": 400, "extra_body": {"ignore_eos": True}}  # more tokens than the client waits for
    with client.chat.completions.create(model="smollm2", messages=ENDLESS, stream=True, **longer) as stream:
        for chunk, _ in zip(stream, range(4), strict=False):
            assert chunk.object == "chat.completion.chunk"
        assert busy(server)["running"] == 1
    wait_until_idle(server)


def test_refusals_have_their_status_and_the_server_goes_on(client: openai.OpenAI) -> None:
    def ask(**changes: Any) -> Any:
        return client.chat.completions.create(**{"model": "smollm2", "messages": CAPITAL, "max_tokens": 5, **changes})

    with pytest.raises(openai.NotFoundError, match="gpt-x"):
        ask(model="gpt-x")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        ask(temperature=1000)
    with pytest.raises(openai.BadRequestError, match="Shorten the prompt"):
        ask(messages=[{"role": "user", "content": "word " * 9000}])
    assert ask(temperature=0).choices[0].finish_reason in ("stop", "length")


def test_a_busy_port_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, out, err = command("serve", "--port", str(port))
    assert (code, out, len(err.splitlines())) == (1, "", 1)
    assert f"Port {port} on 127.0.0.1 is in use" in err


def test_ctrl_c_ends_the_server_in_the_middle_of_an_answer() -> None:
    running = Server("--cache-tokens", "4096")
    body = {"model": "smollm2", "messages": ENDLESS, "stream": True, "max_tokens": 3000, "ignore_eos": True}
    with httpx.stream("POST", f"{running.url}/v1/chat/completions", json=body, timeout=20) as answer:
        lines = answer.iter_lines()  # it would close the answer if it were dropped
        next(lines)
        started = time.monotonic()
        assert running.stop() == ""
        assert time.monotonic() - started < 8


# --- the page -----------------------------------------------------------------------------------------------------


def test_the_page_streams_an_answer_until_it_is_stopped(browser: webdriver.Chrome, server: str) -> None:
    page = Page(browser, server)
    page.ask("Write a very long story about a whale.")
    lengths: list[int] = []

    def grown() -> bool:
        lengths.extend(len(text) for text in page.texts(".answer"))
        return len(set(lengths)) >= 4

    page.until(grown)
    assert lengths == sorted(lengths)
    page.find("#stop").click()
    page.wait(".notice")
    assert page.texts(".notice") == ["Stopped"]
    stopped = page.texts(".answer")[0]
    wait_until_idle(server)
    assert page.texts(".answer")[0] == stopped

    assert page.ask_and_wait("Explain in two sentences what rain is.")
    assert "tokens/s" in page.texts(".meter")[-1]
    assert page.errors() == []
