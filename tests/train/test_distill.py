"""Distillation: a served teacher with all kinds of faults, whose correct replies are learned, and a teacher in the same
process, whose distribution the student learns."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from safetensors.torch import load_file
from tiny_run import TINY

from freedive.errors import Unavailable, UserError
from freedive.families import describe_config
from freedive.server.app import listen, server
from freedive.text.tokenizer import Tokenizer
from freedive.train.data import teacher
from freedive.train.data.chat_tokenizer import ChatTokenizer, train_tokenizer
from freedive.train.data.teacher import Reply, _reply
from freedive.train.data.teacher_data import (
    StoredReply,
    TeacherPrompt,
    collect_replies,
    correct_replies,
    teacher_prompts,
)
from freedive.train.rl.on_policy import ReverseKL, Student, teacher_at
from freedive.train.run import checkpoints, config
from freedive.train.run.config import Distillation
from freedive.train.run.context import NEWEST_FIRST
from freedive.train.run.stages import perform


async def cut() -> Any:
    yield b'{"choices": ['
    raise ConnectionAbortedError


FAULTS = {
    "error": lambda: JSONResponse({"error": "out of memory"}, 500),
    "busy": lambda: JSONResponse({"error": "slow down"}, 429, {"Retry-After": "0"}),
    "cut": lambda: StreamingResponse(cut(), headers={"content-length": "1000"}),
    "no JSON": lambda: Response("<html>", media_type="text/html"),
    "no choices": lambda: JSONResponse({"choices": []}),
    "refused": lambda: JSONResponse({"error": "no such model"}, 404),
}


@dataclass
class FakeTeacher:
    """A teacher that adds correctly the first time it gets a prompt, wrongly the second, without an end the third, and
    so on.

    ``faults`` are the answers to the first requests; request number ``kills`` sends SIGTERM to the process.
    """

    faults: list[str] = field(default_factory=list)
    kills: int = 0
    asked: Counter[str] = field(default_factory=Counter)
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"data": [{"id": "owl"}]}

        @app.post("/v1/chat/completions")
        async def answer(request: Request) -> Response:
            self.requests.append(await request.json())
            self.keys.add(request.headers.get("authorization"))
            if len(self.requests) == self.kills:
                os.kill(os.getpid(), signal.SIGTERM)
            if self.faults:
                return FAULTS[self.faults.pop(0)]()
            return JSONResponse({"choices": [self._choice(self.requests[-1]["messages"][-1]["content"])]})

        return app

    def _choice(self, prompt: str) -> dict[str, Any]:
        turn = self.asked[prompt] % 3
        self.asked[prompt] += 1
        numbers = [int(digits) for digits in re.findall(r"\d+", prompt)] if "+" in prompt else [100]
        message = {"role": "assistant", "content": f" {sum(numbers) + (turn == 1)}", "reasoning_content": "Let me see."}
        return {"message": message, "finish_reason": "length" if turn == 2 else "stop"}


@contextmanager
def served(fake: FakeTeacher) -> Iterator[str]:
    listener, running = listen("127.0.0.1", 0), server(fake.app())
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
    finally:
        running.should_exit = True
        thread.join(60)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher, "PAUSE_SECONDS", 0.001)


def asking(address: str, **changes: Any) -> Distillation:
    return Distillation(**{"teacher": address, "num_tasks": 20, "num_samples": 3, **changes})


@pytest.fixture(scope="module")
def chat_tokenizer(run: Path) -> ChatTokenizer:
    return ChatTokenizer(Tokenizer.from_folder(run / "tokenizer"))


def test_a_run_learns_the_correct_replies_of_its_teacher(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, fake = tmp_path / "run", FakeTeacher()
    shutil.copytree(run, folder)
    with served(fake) as address:
        changes = [f"distill.teacher={address}", "distill.num_tasks=20", "distill.num_samples=3", "distill.steps=3"]
        perform("distill", "nano", changes, folder)
    assert len(fake.requests) == 60
    assert json.loads((folder / "distill.json").read_text()) == {
        **{"asked": 60, "answered": 60, "right": 10, "kept": 10, "right_chain": 0.0, "right_addition": 1 / 3}
    }
    assert "60 asked, 60 answered, 10 right, 10 kept" in capsys.readouterr().out
    perform("distill", "nano", [], folder)  # all is done, and the teacher has ended
    with pytest.raises(UserError, match="begun with other settings"):
        perform("distill", "nano", ["distill.lr=1.0"], folder)
    for stage in ("eval", "export", "report"):
        perform(stage, "nano", [], folder)
    newest = checkpoints.newest(folder / "checkpoints" / "distill")
    assert newest
    exported = load_file(folder / "model" / "model.safetensors")["model.norm.weight"]
    assert torch.equal(exported, checkpoints.load(newest).weights["norm"])
    assert json.loads((folder / "eval.json").read_text()).keys() >= {*NEWEST_FIRST, "tasks, distill"}
    assert "Answers of the teacher" in (folder / "report.html").read_text()


def test_every_temporary_fault_is_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_TEACHER_KEY", "secret")
    fake = FakeTeacher(faults=["error", "busy", "cut", "no JSON", "no choices"])
    with served(fake) as address:
        given = collect_replies(asking(address), tmp_path / "answers.jsonl")
        again = collect_replies(asking(address), tmp_path / "answers.jsonl")
    assert len(given) == 60
    assert again == given
    assert len(fake.requests) == 65
    assert set(fake.asked.values()) == {3}
    assert fake.keys == {"Bearer secret"}
    assert "secret" not in (tmp_path / "answers.jsonl").read_text()
    system, _ = fake.requests[0]["messages"]
    assert system == {"role": "system", "content": Distillation().instruction}
    assert fake.requests[0]["model"] == "owl"


@pytest.mark.parametrize(("fault", "what"), [("refused", "404 .*no such model"), ("cut", "peer closed connection")])
def test_a_teacher_that_always_fails_ends_the_stage(fault: str, what: str, tmp_path: Path) -> None:
    with served(FakeTeacher([fault] * 1000)) as address, pytest.raises(Unavailable, match=what):
        collect_replies(asking(address), tmp_path / "answers.jsonl")


def test_an_unreachable_teacher_ends_the_stage(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="does not say what models it has"):
        collect_replies(asking("http://127.0.0.1:9/v1"), tmp_path / "answers.jsonl")
    with pytest.raises(Unavailable, match=r"fails again and again.*kept"):
        collect_replies(asking("http://127.0.0.1:9/v1", model="owl", num_tasks=1), tmp_path / "answers.jsonl")


@pytest.mark.parametrize("address", ["localhost:8000", "/a/folder", "http://", "http://a:b", ""])
def test_what_is_no_address_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape(f"distill.teacher is {address!r}")):
        collect_replies(asking(address), tmp_path / "answers.jsonl")


def test_a_stopped_stage_keeps_the_replies(tmp_path: Path) -> None:
    path, fake = tmp_path / "answers.jsonl", FakeTeacher(kills=10)
    with served(fake) as address:
        with pytest.raises(UserError, match=r"Stopped with \d+ of 60 answers, which are kept"):
            collect_replies(asking(address, num_parallel=2), path)
        kept = path.read_text()
        assert 5 <= kept.count("\n") <= 12
        path.write_text(kept + kept[:-30])  # an incomplete last line
        assert len(collect_replies(asking(address, num_parallel=2), path)) == 60
        assert path.read_text().startswith(kept)
        collect_replies(asking(address, instruction="Be brief."), path)
    assert len(fake.requests) >= 120  # other settings: everything is asked again


def test_the_prompts_are_those_of_the_files_or_tasks(tmp_path: Path) -> None:
    made = teacher_prompts(asking(""))
    assert len(set(made)) == 20
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "1+1", "answer": 2, "task": "sum"}\n{"prompt": "Hi"}\n{"prompt": "Hi"}\n')
    assert teacher_prompts(asking("", prompts=(str(file),))) == [TeacherPrompt("1+1", "2", "sum"), TeacherPrompt("Hi")]
    for line in ('{"answer": "2"}', '{"prompt": 1}', '{"prompt": "a", "answer": [2]}', "[]"):
        file.write_text(line)
        with pytest.raises(UserError, match="line 1 is no prompt"):
            teacher_prompts(asking("", prompts=(str(file),)))


def test_only_distinct_correct_replies_are_kept(chat_tokenizer: ChatTokenizer) -> None:
    known, open_ended = TeacherPrompt("1+1", "2", "sum"), TeacherPrompt("Hi")
    said = [
        *((known, text) for text in ("<think>1, 2</think>2", "<think>1, 2</think> 2 ", "2", "2", "3")),
        *((known, text) for text in ("", "<think>a</think><think>b</think>2", "<think>2", "2<|end|>")),
        *((open_ended, text) for text in ("Hello", "<|user|>Hello", "", "long " * 100)),
    ]
    given = [(question, StoredReply("", question.prompt, i, text, True)) for i, (question, text) in enumerate(said)]
    given += [(open_ended, StoredReply("", "Hi", 99, "cut off", False)), (known, None)]
    records, counts = correct_replies(given, chat_tokenizer, 64)
    answers = [record["messages"][1]["content"] for record in records]
    assert answers == ["<think>1, 2</think>2", "<think>1, 2</think> 2 ", "2", "Hello"]
    assert counts == {"asked": 15, "answered": 14, "right": 6, "kept": 4, "right_sum": 4 / 9}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "4"}, "4"),
        ({"content": "4", "reasoning_content": "2+2\n"}, "<think>2+2</think>4"),
        ({"content": "4", "reasoning": "2+2"}, "<think>2+2</think>4"),
        ({"content": "2+2</think>4"}, "<think>2+2</think>4"),
        ({"content": None}, ""),
    ],
)
def test_thoughts_are_found_wherever_they_are(message: dict[str, Any], text: str) -> None:
    assert _reply({"choices": [{"message": message, "finish_reason": "stop"}]}) == Reply(text, True)


def some(*shape: int, seed: int) -> torch.Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made.requires_grad_()


def test_the_divergence_is_torchs_and_so_is_its_gradient() -> None:
    x, head, wanted = some(1500, 4, seed=0), some(7, 4, seed=1), some(1500, 7, seed=2).detach()
    log_p, log_q = (x @ head.T).log_softmax(-1), wanted.log_softmax(-1)
    plain = torch.nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)
    ours = ReverseKL.apply(x, head, wanted)
    torch.testing.assert_close(ours, plain)
    for got, expected in zip(*(torch.autograd.grad(loss * 0.5, (x, head)) for loss in (ours, plain)), strict=True):
        torch.testing.assert_close(got, expected)


def beginner(run: Path, folder: Path) -> Path:
    """Returns a run with the same vocabulary and hardly any training."""
    for part in ("tokenizer", "data"):
        shutil.copytree(run / part, folder / part)
    perform("pretrain", "nano", [*TINY, "pretrain.steps=2"], folder)
    return folder


ON_POLICY = ["distill.kind=on_policy", "distill.steps=6", "distill.lr=3e-3", "distill.num_prompts=4"]


def test_on_policy_the_student_approaches_its_teacher_and_resumes_to_the_same_bits(run: Path, tmp_path: Path) -> None:
    settings = [*ON_POLICY, f"distill.teacher={run / 'model'}"]
    whole, parted = beginner(run, tmp_path / "whole"), tmp_path / "parted"
    perform("distill", "nano", [*settings, "distill.save_every=3"], whole)
    rows = [json.loads(line) for line in (whole / "distill.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    assert rows[-1]["loss_of_answer"] < 0.85 * rows[0]["loss_of_answer"]
    shutil.copytree(whole, parted)
    shutil.rmtree(parted / "checkpoints" / "distill" / "step_000006")
    perform("distill", "nano", [], parted)
    ends = [checkpoints.load(folder / "checkpoints" / "distill" / "step_000006").weights for folder in (whole, parted)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert (parted / "distill.jsonl").read_text() == (whole / "distill.jsonl").read_text()
    perform("report", "nano", [], whole)
    assert "nats an answer from the teacher" in (whole / "report.html").read_text()


def test_a_teacher_of_the_same_weights_has_nothing_to_teach(
    run: Path, chat_tokenizer: ChatTokenizer, tmp_path: Path
) -> None:
    newest = checkpoints.newest(run / "checkpoints" / "rl")
    assert newest
    weights = dict(checkpoints.load(newest).weights)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Tell me a story."}\n' + json.dumps({"prompt": "long " * 100}))
    settings = Distillation(kind="on_policy", prompts=(str(prompts),), num_prompts=2)
    with teacher_at(str(run / "model-F32.gguf"), chat_tokenizer, 64) as same:
        model = describe_config(
            config.read_run(run / "config.json").model.hub_config(chat_tokenizer.end, chat_tokenizer.bos)
        )
        row = Student(model, settings, chat_tokenizer, tmp_path, weights, same).advance()
    assert abs(row["loss"]) < 1e-3
    assert "right" not in row  # since no answer is known


def test_unsupported_teachers_are_refused(run: Path, tmp_path: Path) -> None:
    others = ChatTokenizer(train_tokenizer(["other words"], 300, tmp_path / "tokenizer"))
    with pytest.raises(UserError, match="has another tokenizer"), teacher_at(str(run / "model"), others, 64):
        pass
    with pytest.raises(UserError, match="no whole distributions"), teacher_at("http://localhost:8000/v1", others, 64):
        pass
    with pytest.raises(UserError, match="There is no teacher"):
        perform("distill", "nano", [], run)
    with pytest.raises(UserError, match=r"distill.kind is 'offline'"):
        Distillation(kind="offline")
