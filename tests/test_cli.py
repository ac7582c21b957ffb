"""The command line: outputs, settings and error messages. The model is a fake that repeats the last message."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import freedive
from freedive import machine
from freedive.cli import COMMANDS, app
from freedive.commands import models
from freedive.commands.chat import _prompt_session
from freedive.commands.run import UNPRINTED
from freedive.config import EngineConfig, ServerConfig
from freedive.engine.request import GenerationRequest
from freedive.engine.sampling import Sampling
from freedive.errors import UserError
from freedive.hub import cache
from freedive.hub.catalogue import catalogue
from freedive.text.dialects.dialect import Event, Text, Thought
from freedive.text.request import ChatInput

FAKE = """
import sys, time, freedive
from types import SimpleNamespace
from freedive import Text, Thought
class Fake:
    def chat(self, messages, **sampling):
        return SimpleNamespace(events=lambda: self.events(messages))
    def answer(self, request):
        return [self.chat(request.inputs[0].messages)]
    def events(self, messages):
        if messages[-1]["content"] == "ponder":
            yield Thought("hm ")
            yield Thought("hm")
        if messages[-1]["content"] == "brood":
            yield Thought("dark")
            time.sleep(30)
        if messages[-1]["content"] == "long":
            yield Text("first ")
            time.sleep(30)
        yield from (Text(word + " ") for word in messages[-1]["content"].split())
        yield Text(f"({len(messages)})")
    def expert_cache(self):
        return SimpleNamespace(slots_bytes=2 * 10**9)
    def close(self):
        print("closed", file=sys.stderr)
freedive.load = lambda name, **config: Fake()
from freedive.cli import main
main()
"""
"""The program of a freedive process whose model repeats the last message and counts the messages."""


class FakeModel:
    """Repeats the last message; keeps the requests and settings for the test to check."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, dict[str, Any]]] = []
        self.config: dict[str, Any] = {}
        self.name = ""
        self.closed = False

    def load(self, name: str, **config: Any) -> FakeModel:
        self.name, self.config = name, config
        return self

    def answer(self, request: GenerationRequest) -> list[SimpleNamespace]:
        [asked] = request.inputs
        if isinstance(asked, ChatInput):
            return [self.chat(asked.messages, **request.sampling)]
        self.calls.append((asked.text, dict(request.sampling)))
        return [SimpleNamespace(events=lambda: iter((Text(str(asked.text)), Text(" and so on"))))]

    def chat(self, messages: Sequence[Mapping[str, str]], **sampling: Any) -> SimpleNamespace:
        self.calls.append(([dict(message) for message in messages], sampling))
        return SimpleNamespace(events=lambda: self.events(messages))

    def events(self, messages: Sequence[Mapping[str, str]]) -> Iterator[Event]:
        if messages[-1]["content"] == "too long":
            raise UserError("The prompt is too long", "Shorten it")
        if "think" in messages[-1]["content"]:
            yield Thought("Hm.")
        yield from (Text("you said: "), Text(messages[-1]["content"]))

    def expert_cache(self) -> None:
        return None

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeModel:
    model = FakeModel()
    monkeypatch.setattr(freedive, "load", model.load, raising=False)
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    for item in (*fields(EngineConfig), *fields(ServerConfig)):
        monkeypatch.delenv(f"FREEDIVE_{item.name.upper()}", raising=False)
    return model


def invoke(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, arguments, input=input)


def process(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", FAKE, *arguments], text=True, stderr=subprocess.PIPE, **options)


def test_help_lists_every_command_without_loading_any() -> None:
    code = "import sys; from freedive.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(f"  {name} " in done.stdout for name in COMMANDS)
    assert not {"numpy", "httpx", "fastapi", "rich", "freedive.engine.generation"} & set(done.stdout.split())


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help(name: str) -> None:
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert COMMANDS[name][1] in result.stdout


def test_every_setting_is_a_flag_with_its_own_help() -> None:
    text = " ".join(invoke("run", "--help").stdout.split())
    for item in (*fields(Sampling), *fields(EngineConfig)):
        assert (f"--{item.name.replace('_', '-')} " in text) == (item.name not in UNPRINTED), item.name
    assert "greedy" in text
    assert "--port" in invoke("serve", "--help").stdout


def test_run_prints_only_the_answer(fake: FakeModel) -> None:
    result = invoke("run", "smollm2", "hello")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "you said: hello\n", "")
    assert fake.name == "smollm2"
    assert fake.closed


def test_thoughts_are_not_printed_without_a_terminal(fake: FakeModel) -> None:
    result = invoke("run", "m", "think")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "you said: think\n", "")


@pytest.mark.parametrize("arguments", [["run", "m", "-"], ["run", "m"]])
def test_run_reads_standard_input(fake: FakeModel, arguments: list[str]) -> None:
    assert invoke(*arguments, input="two\nlines\n").stdout == "you said: two\nlines\n"


def test_run_passes_only_the_given_settings(fake: FakeModel) -> None:
    flags = "--temperature 0 --top-k 5 --stop A --stop B --seed 7 --logit-bias 5=-1.5 --stop-token-ids 3 --ignore-eos"
    result = invoke("run", "m", "x", "--system", "be brief", "--threads", "2", *flags.split())
    assert result.exit_code == 0
    ((messages, sampling),) = fake.calls
    assert [message["role"] for message in messages] == ["system", "user"]
    assert sampling == {
        "temperature": 0.0, "top_k": 5, "stop": ("A", "B"), "seed": 7, "logit_bias": {5: -1.5},
        "stop_token_ids": frozenset({3}), "ignore_eos": True,
    }  # fmt: skip
    assert fake.config["threads"] == 2
    assert set(fake.config) == {item.name for item in fields(EngineConfig)}


def test_settings_come_from_the_environment_and_flags_win(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_THREADS", "3")
    monkeypatch.setenv("FREEDIVE_MAX_BATCH", "5")
    invoke("run", "m", "x", "--threads", "1")
    assert (fake.config["threads"], fake.config["max_batch"]) == (1, 5)


@pytest.mark.parametrize(
    ("text", "value"), [("off", False), ("on", True), ("false", False), ("TRUE", True), ("0", False), ("yes", True)]
)
def test_a_setting_that_is_on_or_off_takes_any_usual_spelling(fake: FakeModel, text: str, value: bool) -> None:
    assert invoke("run", "m", "x", "--prefix-cache", text).exit_code == 0
    assert fake.config["prefix_cache"] is EngineConfig(prefix_cache=text).prefix_cache is value
    assert (
        "error: prefix_cache is 'perhaps'. Choose on or off"
        in invoke("run", "m", "x", "--prefix-cache", "perhaps").stderr
    )


def test_raw_continues_text(fake: FakeModel) -> None:
    assert invoke("run", "m", "once", "--raw").stdout == "once and so on\n"


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        (["run", "m", ""], "error: The prompt is empty"),
        (["run", "m", "too long"], "error: The prompt is too long. Shorten it"),
        (["run", "m", "x", "--temperature", "-1"], "error: temperature is -1.0"),
        (["run", "m", "x", "--logit-bias", "x"], "error: 'x' is not TOKEN=BIAS"),
        (["run", "m", "x", "--threads", "0"], "error: threads is 0"),
        (["pull", "smolm2"], "error: There is no model named smolm2"),
        (["rm", "smollm2"], "error: There is nothing of smollm2"),
        (["show", "./none.gguf"], "error: There is no file or folder"),
    ],
)
def test_a_user_error_is_one_line(fake: FakeModel, arguments: list[str], fault: str) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert result.stdout.strip() == ""
    assert result.stderr.startswith(fault)
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [["nosuch"], ["run"], ["run", "m", "x", "--nosuch"], ["run", "m", "x", "--seed", "y"]]
)
def test_a_wrong_command_line_is_explained(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("argument", ["--version", "version"])
def test_version_is_shown(argument: str) -> None:
    assert invoke(argument).stdout == f"freedive {freedive.__version__}\n"


@pytest.mark.parametrize("arguments", [["-h"], ["serve", "-h"], ["train", "-h"]])
def test_help_has_a_short_flag(arguments: list[str]) -> None:
    assert invoke(*arguments).stdout.startswith("Usage: ")


def test_misspelt_command_is_answered_with_the_nearest() -> None:
    result = invoke("srve")
    assert (result.exit_code, "Did you mean 'serve'?" in result.stderr) == (2, True)


@pytest.mark.parametrize("arguments", [["serve", "--port", "80a"], ["keys", "create", "--max-running", "many"]])
def test_wrong_number_is_named_with_its_flag(arguments: list[str]) -> None:
    error = invoke(*arguments).stderr.splitlines()[-1]
    assert error == f"Error: Invalid value for '{arguments[-2]}': it must be a valid integer"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shell_completion_knows_the_commands(shell: str) -> None:
    def freedive(*arguments: str, **environment: str) -> str:
        command = [sys.executable, "-m", "freedive", *arguments]
        return subprocess.run(command, env=os.environ | environment, text=True, stdout=subprocess.PIPE).stdout

    # Without detection the shell is an argument; the parent of a test may be no shell.
    script = freedive("--show-completion", shell, _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "_FREEDIVE_COMPLETE" in script
    words = {"_TYPER_COMPLETE_ARGS": "freedive s", "COMP_WORDS": "freedive s", "COMP_CWORD": "1"}
    shown = freedive(_FREEDIVE_COMPLETE=f"complete_{shell}", _TYPER_COMPLETE_FISH_ACTION="get-args", **words)
    assert all(name in shown for name in ("serve", "show"))
    assert "train" not in shown


def test_chat_answers_each_line_of_a_pipe_and_remembers(fake: FakeModel) -> None:
    result = invoke("chat", input="one\n\n/two\n")
    assert result.stdout == "you said: one\nyou said: /two\n"
    assert fake.name == "smollm2"
    roles = [message["role"] for message in fake.calls[1][0]]
    assert roles == ["user", "assistant", "user"]
    assert fake.closed


def test_chat_keeps_thoughts_with_the_answer(fake: FakeModel) -> None:
    assert invoke("chat", input="think\nmore\n").stdout == "you said: think\nyou said: more\n"
    assert fake.calls[1][0] == [
        {"role": "user", "content": "think"},
        {"role": "assistant", "reasoning_content": "Hm.", "content": "you said: think"},
        {"role": "user", "content": "more"},
    ]


def test_chat_through_a_pipe_ends_at_an_error(fake: FakeModel) -> None:
    result = invoke("chat", "m", "--system", "s", input="too long\nmore\n")
    assert (result.exit_code, result.stderr) == (1, "error: The prompt is too long. Shorten it\n")
    assert len(fake.calls) == 1


def test_list_show_and_rm_use_the_models_in_the_cache(fake: FakeModel, tmp_path: Path) -> None:
    folder = cache.model_folder("hf:owner/name") / cache.FILES
    folder.mkdir(parents=True)
    (folder / "m.gguf").write_bytes(b"0" * 2_000_000)
    cache.record("hf:owner/name", "m.gguf", (cache.StoredFile("m.gguf", 2_000_000, "ab" * 32),), "mit")
    listed = invoke("list").stdout.splitlines()
    assert [line.split()[0] for line in listed[1:3]] == ["hf:owner/name", "nano"]
    assert "2.0 MB" in listed[1]
    assert {row["name"]: row["bytes_here"] for row in json.loads(invoke("list", "--json").stdout)}[
        "hf:owner/name"
    ] == 2_000_000
    shown = invoke("show", "hf:owner/name").stdout
    assert str(folder / "m.gguf") in shown
    assert "ab" * 32 in shown
    assert invoke("rm", "hf:owner/name").stdout == "hf:owner/name: 2.0 MB freed\n"
    assert not folder.exists()


def test_list_says_what_a_download_takes_and_whether_it_fits(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "total_memory", lambda: 8_000_000_000)
    rows = {row["name"]: row for row in json.loads(invoke("list", "--json").stdout)}
    assert rows["smollm2"]["download_bytes"] == 100_000_000
    assert {rows[name]["fits"] for name in rows if rows[name]["download_bytes"] <= 5.5e9} == {True}
    assert {rows[name]["fits"] for name in rows if rows[name]["download_bytes"] > 5.7e9} == {False}
    assert rows["qwen3-30b-a3b"]["paged"]
    assert not rows["gemma-4-31b"]["paged"]  # a dense model
    assert not rows["smollm2"]["paged"]
    assert " paged " in next(line for line in invoke("list").stdout.splitlines() if line.startswith("qwen3-30b-a3b "))
    line = next(line for line in invoke("list").stdout.splitlines() if line.startswith("smollm2 "))
    assert "100.0 MB  1.2 GB" in line
    assert " yes " in line


def test_list_groups_models_by_what_fits_with_headings_on_a_terminal_only(
    fake: FakeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "total_memory", lambda: 16_000_000_000)
    rows = json.loads(invoke("list", "--json").stdout)
    names = [row["name"] for row in rows]
    assert [bool(row["bytes_here"]) for row in rows] == [True] + [False] * (len(rows) - 1)
    assert names.index("gpt-oss-20b") < [row["fits"] for row in rows].index(False) < names.index("gpt-oss-120b")
    for fits, paged in ((True, False), (False, True), (False, False)):
        needs = [row["memory_bytes"] for row in rows[1:] if (row["fits"], row["paged"]) == (fits, paged)]
        assert needs
        assert needs == sorted(needs)
    assert [line.split()[0] for line in invoke("list").stdout.splitlines()] == ["NAME", *names]
    shown = io.StringIO()
    monkeypatch.setattr(shown, "isatty", lambda: True)
    with contextlib.redirect_stdout(shown):
        models.list_models()
    lines = shown.getvalue().splitlines()
    assert [line for line in lines if line in models.GROUPS] == list(models.GROUPS)
    assert len([line for line in lines if line]) == 1 + len(rows) + len(models.GROUPS)


def test_pull_fetches_what_cannot_run_yet_and_says_so(fake: FakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = replace(catalogue()["olmoe-1b-7b"], family="no-such-family")
    monkeypatch.setattr(models, "entry_for", lambda ref: entry)
    monkeypatch.setattr(models, "fetch", lambda address: cache.Stored(str(address), "m.gguf", (), None, None, ""))
    result = invoke("pull", "olmoe-1b-7b")
    assert result.exit_code == 0
    assert "m.gguf (freedive cannot run no-such-family yet)" in result.stdout


def test_rm_of_a_local_file_deletes_only_its_packed_store(fake: FakeModel, tmp_path: Path) -> None:
    model = tmp_path / "own.gguf"
    model.write_bytes(b"mine")
    store = cache.packed_path(model, "v1")
    store.write_bytes(b"0" * 1000)
    assert invoke("rm", str(model)).exit_code == 0
    assert model.exists()
    assert not store.exists()


def test_bytes_that_are_not_utf8_are_replaced(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FAKE, "run", "m"],
        input=b"a \xff b",
        capture_output=True,
        env=os.environ | {"LC_ALL": "C"},
    )
    assert (done.returncode, done.stdout.decode()) == (0, "a � b (1)\n")


def test_ctrl_c_ends_a_command_with_130() -> None:
    child = process("run", "m", "long", stdout=subprocess.PIPE)
    assert child.stdout
    assert child.stdout.read(6) == "first "
    child.send_signal(signal.SIGINT)
    _, complaints = child.communicate(timeout=25)
    assert child.returncode == 130
    assert "Traceback" not in complaints


def test_an_error_of_the_system_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("not a folder")
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    result = CliRunner().invoke(app, ["rm", "smollm2"])
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert result.output.count("\n") == 1


def test_a_broken_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    child = process("run", "m", "some words", stdout=write)
    os.close(write)
    _, complaints = child.communicate(timeout=60)
    assert child.returncode != 0
    assert complaints == "closed\n"


class Terminal:
    """A freedive chat process with a terminal for input and prompts; its answers go into a pipe."""

    def __init__(self, home: Path, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.out, out = os.pipe()
        environment = os.environ | {"FREEDIVE_HOME": str(home), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        command = [sys.executable, "-c", FAKE, *(arguments or ("chat", "m"))]
        self.child = subprocess.Popen(command, stdin=slave, stderr=slave, stdout=out, env=environment)
        os.close(slave)
        os.close(out)
        self.shown = {self.master: "", self.out: ""}

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self.child.kill()
        self.child.wait()
        os.close(self.master)
        os.close(self.out)

    def wait_for(self, text: str, place: int) -> None:
        """Waits until ``text`` has appeared in the output ``place`` since the last such wait."""
        deadline = time.monotonic() + 60
        while text not in self.shown[place]:
            assert time.monotonic() < deadline, (text, self.shown)
            for source in select.select(list(self.shown), [], [], 1)[0]:
                self.shown[source] += os.read(source, 65536).decode(errors="replace")
        self.shown[place] = self.shown[place].partition(text)[2]

    def type(self, line: str) -> None:
        os.write(self.master, f"{line}\r".encode())

    def end(self) -> None:
        """Types Ctrl-D, which only the prompt reads."""
        deadline = time.monotonic() + 60
        while self.child.poll() is None:
            assert time.monotonic() < deadline, self.shown
            os.write(self.master, b"\x04")
            time.sleep(0.05)


@pytest.mark.parametrize("kept", [False, True], ids=["new", "of an earlier version"])
def test_the_chat_history_is_readable_by_its_owner_alone(
    kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    history = tmp_path / "home" / "history"
    if kept:
        history.parent.mkdir()
        history.write_text("+before\n")
        history.chmod(0o644)
    asked = _prompt_session().history
    asked.store_string("my secret")
    assert [*asked.load_history_strings()] == ["my secret", "before"][: 1 + kept]
    assert history.stat().st_mode & 0o777 == 0o600


def test_chat_works_if_its_history_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("a file")
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    _prompt_session().history.store_string("hello")


def test_chat_on_a_terminal(tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal:
        terminal.wait_for("/help", terminal.master)
        terminal.wait_for(">", terminal.master)
        terminal.type("hello")
        terminal.wait_for("hello (1)\n", terminal.out)
        terminal.type("/nosuch")
        terminal.wait_for("error: There is no command /nosuch", terminal.master)
        terminal.type("/set temperature 900")
        terminal.wait_for("error: temperature is 900", terminal.master)
        terminal.type("/system be brief")
        terminal.type("more")
        terminal.wait_for("more (4)\n", terminal.out)
        terminal.type("long")
        terminal.wait_for("first ", terminal.out)
        terminal.child.send_signal(signal.SIGINT)
        terminal.wait_for("(stopped)", terminal.master)
        terminal.type(f"/save {tmp_path}/talk.json")
        terminal.wait_for("saved to", terminal.master)
        terminal.type("/clear")
        terminal.type("again")
        terminal.wait_for("again (2)\n", terminal.out)
        terminal.end()
        assert terminal.child.returncode == 0
    assert '"content": "first "' in (tmp_path / "talk.json").read_text()
    assert "hello" in (tmp_path / "history").read_text()


def test_chat_shows_thoughts_dimmed_and_drops_those_without_an_answer(tmp_path: Path) -> None:
    with Terminal(tmp_path) as terminal:
        terminal.wait_for(">", terminal.master)
        terminal.type("ponder")
        terminal.wait_for("\x1b[2mhm \x1b[0m\x1b[2mhm\x1b[0m\r\n\r\n", terminal.master)
        terminal.wait_for("ponder (1)\n", terminal.out)
        terminal.wait_for(">", terminal.master)
        terminal.type("brood")
        terminal.wait_for("\x1b[2mdark\x1b[0m", terminal.master)
        terminal.child.send_signal(signal.SIGINT)
        terminal.wait_for("(stopped)", terminal.master)
        terminal.wait_for(">", terminal.master)
        terminal.type("more")
        terminal.wait_for("more (3)\n", terminal.out)
        terminal.end()


def test_run_shows_thoughts_dimmed_on_a_terminal(tmp_path: Path) -> None:
    with Terminal(tmp_path, "run", "m", "ponder") as terminal:
        terminal.wait_for("experts stay on disk, 2.0 GB of them in memory", terminal.master)
        terminal.wait_for("ponder (1)\n", terminal.out)
        terminal.wait_for("\x1b[2mhm\x1b[0m\r\n\r\n", terminal.master)


def test_sampling_is_checked_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freedive, "load", lambda *_, **__: pytest.fail("loaded"))
    result = CliRunner().invoke(app, ["run", "smollm2", "hi", "--temperature", "1000"])
    assert result.exit_code == 1
    assert "temperature" in result.output


def test_answer_that_ends_before_its_schema_is_matched_is_an_error(fake: FakeModel, tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object"}')
    cut = invoke("run", "x", "hello", "--json-schema", str(schema))
    assert cut.exit_code != 0
    assert "you said: hello" in cut.stdout
    assert "error: The answer ends before it matches the schema" in cut.stderr
