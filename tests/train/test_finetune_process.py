"""Fine-tuning in a process of its own: what it takes, makes, and leaves when it is cancelled or killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import wait_until

from freedive.commands import finetuning
from freedive.commands.finetuning import LocalFinetuning
from freedive.commands.serve import fetched
from freedive.errors import Unavailable, UserError
from freedive.hub import cache
from freedive.server.finetunes.finetuning import Draft
from freedive.server.library.line import Abandoned, Progress
from freedive.train.finetune.base_model import open_base_model
from freedive.train.finetune.sample import answer, question_of

pytestmark = pytest.mark.training

LINES = [{"prompt": f"Say {n}", "completion": f"{n} fish"} for n in range(20)]
DATA = "".join(json.dumps(line) + "\n" for line in LINES).encode()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def draft(folders: Any) -> Callable[..., Draft]:
    source = str(folders("llama"))

    def make(**changes: Any) -> Draft:
        given: dict[str, Any] = {
            "base": "base",
            "source": source,
            "name": "fish",
            "file": "chats.jsonl",
            "data": DATA,
            "epochs": 1.0,
        }
        return Draft(**given | changes)

    return make


def ignore(event: dict[str, Any]) -> None:
    pass


def files(home: Path) -> list[str]:
    return [str(path) for path in (home / "models").rglob("*") if path.is_file()]


def test_an_estimate_counts_and_leaves_nothing(draft: Callable[..., Draft], home: Path) -> None:
    found = LocalFinetuning({}, 0).estimate(draft())
    assert (found["examples"], found["cut"]) == (20, 0)
    assert 0 < found["held_out"] < 20
    assert 0 < found["learned"] < found["tokens"]
    assert found["steps"] == -(-found["tokens"] // found["step_tokens"])
    assert found["memory_bytes"] > 10**8
    assert found["seconds"] > 0
    assert files(home) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": DATA + b"{"}, r"^chats.jsonl, line 21 is not JSON"),
        ({"file": "my chats.csv", "data": b"question,answer\na,\n"}, r"^my-chats.csv, line 2 has no text as answer"),
        (
            {"file": "a.jsonl", "data": b'{"messages": [{"role": "user", "content": "x"}]}'},
            "Nothing that the assistant says",
        ),
        ({"source": "/nothing/here"}, "no file or folder here"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_without_folders(
    changes: dict[str, Any], message: str, draft: Callable[..., Draft], home: Path
) -> None:
    with pytest.raises(UserError, match=message):
        LocalFinetuning({}, 0).estimate(draft(**changes))
    assert files(home) == []


def test_a_run_that_cannot_begin_leaves_nothing(draft: Callable[..., Draft], home: Path) -> None:
    with pytest.raises(UserError, match=r"^chats.jsonl, line 1 is not JSON"):
        LocalFinetuning({}, 0).tune(draft(data=b"{"), Progress(), ignore)
    assert files(home) == []


def test_a_model_is_made_kept_and_removed(draft: Callable[..., Draft], home: Path) -> None:
    tuning, progress = LocalFinetuning({}, 0), Progress()
    events: list[dict[str, Any]] = []
    entry = tuning.tune(draft(learning_rate=0.01), progress, events.append)
    steps = events[0]["plan"]["steps"]
    assert (progress.completed, progress.total) == (steps, steps)
    assert [event["step"] for event in events if "loss" in event] == list(range(1, steps + 1))
    assert {event["step"] for event in events if "held_out_loss" in event} >= {0, steps}
    assert entry.name == entry.source == "tuned:fish"
    [made] = LocalFinetuning({}, 0).tuned()
    assert (made["name"], made["base"], made["file"]) == ("tuned:fish", "base", "chats.jsonl")
    assert set(made["sample"]) == {"question", "expected", "before", "after"}
    assert made["sample"]["question"] in [line["prompt"] for line in LINES]
    assert len(made["curve"]["trained"]) == steps
    assert made["sample"]["after"] == answer_again(made["sample"])
    assert not any("chats.jsonl" in file for file in files(home))  # the user's data is not kept
    with pytest.raises(UserError, match="There is a model tuned:fish already"):
        tuning.tune(draft(), Progress(), ignore)
    assert fetched({}, 0, "tuned:fish", Progress()).name == "tuned:fish"  # as the page serves what is on the disk
    model = entry.load()
    assert model.name == "tuned:fish"
    model.close()
    assert cache.remove("tuned:fish") > 0
    assert (tuning.tuned(), files(home)) == ([], [])


def answer_again(shown: dict[str, Any]) -> str:
    """Returns the answer of the model that was written to the question that was shown."""
    base = open_base_model("tuned:fish")
    messages = [{"role": "user", "content": shown["question"]}, {"role": "assistant", "content": shown["expected"]}]
    question = question_of(base, [{"messages": messages}])
    assert question
    return answer(base, base.weights(), question)


def test_work_that_is_given_up_ends_its_process_and_leaves_nothing(draft: Callable[..., Draft], home: Path) -> None:
    progress = Progress()

    def give_up(event: dict[str, Any]) -> None:
        progress.wanted = progress.wanted and "loss" not in event

    with pytest.raises(Abandoned):
        LocalFinetuning({}, 0).tune(draft(epochs=100.0), progress, give_up)
    assert files(home) == []


def test_a_process_that_dies_is_reported_and_leaves_nothing(
    draft: Callable[..., Draft], home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(finetuning, "WORKER", "this_is_no_module")
    with pytest.raises(Unavailable, match="has ended early"):
        LocalFinetuning({}, 0).tune(draft(), Progress(), ignore)
    assert files(home) == []
    assert "No module named" in capfd.readouterr().err


SERVER = """
import os, sys
from freedive.commands.finetuning import LocalFinetuning
from freedive.commands.serve import fetched
from freedive.server.finetunes.finetuning import Draft
from freedive.server.library.line import Progress

draft = Draft("base", sys.argv[1], "fish", "chats.jsonl", open(sys.argv[2], "rb").read(), epochs=100.0)
LocalFinetuning({}, 0).tune(draft, Progress(), lambda event: print("loss" in event, flush=True))
"""


def test_a_killed_server_takes_the_process_with_it_and_the_next_one_cleans_up(
    draft: Callable[..., Draft], home: Path, tmp_path: Path
) -> None:
    (tmp_path / "data").write_bytes(DATA)
    program = [sys.executable, "-c", SERVER, draft().source, str(tmp_path / "data")]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        while "True" not in server.stdout.readline():
            assert server.poll() is None
        [worker] = map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split())
        LocalFinetuning({}, 0)
        assert files(home)  # of a server that runs nothing is removed
        os.kill(server.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(worker))
    assert LocalFinetuning({}, 0).tuned() == []
    assert files(home) == []


def is_alive(process: int) -> bool:
    """Returns whether the process runs; one that waits for its parent does not."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


def test_without_torch_the_page_says_what_to_install(
    draft: Callable[..., Draft], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetuning, "NEEDS", ("torch_that_is_not_here",))
    tuning = LocalFinetuning({}, 0)
    assert "pip install 'freedive[train]'" in tuning.missing()
    with pytest.raises(UserError, match=r"needs torch_that_is_not_here. Install it"):
        tuning.estimate(draft())
