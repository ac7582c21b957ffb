"""Recorded requests are answered again: with the same tokens, or with the first difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import freedive
from freedive.cli import app
from freedive.commands import replay
from freedive.engine.recording import Recording, first_difference
from freedive.engine.request import GenerationRequest
from freedive.errors import UserError
from freedive.text.request import ChatInput, TextInput


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("replay") / "request.json"
    done = cli("run", "nano", "What is 17 + 25 - 3?", "--max-tokens", 30, "--save-request", file)  # sampled, no seed
    assert done.exit_code == 0, done.output
    return file


def changed(file: Path, to: Path, change: Any) -> Path:
    data = json.loads(file.read_text("utf-8"))
    change(data)
    to.write_text(json.dumps(data), "utf-8")
    return to


def test_a_recorded_answer_is_reproduced(recorded: Path) -> None:
    done = cli("replay", recorded, "--threads", 1, "--prefix-cache", "off")
    assert done.exit_code == 0
    number = len(Recording.from_json(recorded.read_bytes()).answers[0].token_ids)
    assert done.stdout == f"answer 1: the same, {number} tokens\n"


def test_the_first_different_token_is_reported(recorded: Path, tmp_path: Path) -> None:
    def change(data: Any) -> None:
        data["answers"][0]["token_ids"][3] = 6
        data["made_by"]["code"] = "other"

    done = cli("replay", changed(recorded, tmp_path / "other.json", change))
    assert done.exit_code == 1
    assert done.stdout.startswith("answer 1: differs at token 4: 6 '</think>' then, ")
    assert "code was other, and is " in done.stderr


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data["answers"].clear(), "0 answers are recorded, but 1 were asked for"),
        (lambda data: data.update(surprise=1), "surprise"),
        (lambda data: data["request"].pop("inputs"), "request.inputs"),
        (lambda data: (data["request"].update(n=0), data["answers"].clear()), "n is 0"),
        (lambda data: data["request"]["inputs"][0].update(effort="x" * 10**6), "effort is 'xx"),
        (lambda data: data["request"]["sampling"].update({"x" * 10**6: 1}), "no sampling field 'xx"),
        (lambda data: data.update({"x" * 10**6: 1}), "not a request: xx"),
    ],
)
def test_what_is_no_recording_is_refused(recorded: Path, tmp_path: Path, change: Any, words: str) -> None:
    done = cli("replay", changed(recorded, tmp_path / "bad.json", change))
    assert (done.exit_code, words in done.stderr) == (1, True)
    with pytest.raises(UserError, match=words):
        Recording.from_json((tmp_path / "bad.json").read_bytes())
    assert len(done.stderr) < 500


def test_an_answer_that_ends_otherwise_differs(recorded: Path, tmp_path: Path) -> None:
    then = Recording.from_json(recorded.read_bytes()).answers[0].finish_reason
    other = changed(recorded, tmp_path / "end.json", lambda data: data["answers"][0].update(finish_reason="repetition"))
    done = cli("replay", other)
    assert (done.exit_code, done.stdout) == (
        1,
        f"answer 1: differs in what ended it: 'repetition' then, {then!r} now\n",
    )


def test_a_request_for_nothing_has_no_answers(recorded: Path, tmp_path: Path) -> None:
    def change(data: Any) -> None:
        data["request"]["inputs"].clear()
        data["answers"].clear()

    done = cli("replay", changed(recorded, tmp_path / "nothing.json", change))
    assert (done.exit_code, done.stdout) == (0, "")


def test_a_file_cannot_write_to_the_terminal(recorded: Path, tmp_path: Path) -> None:
    other = changed(recorded, tmp_path / "escape.json", lambda data: data["made_by"].update(isa="\x1b]0;owned\x07"))
    assert "\x1b" not in cli("replay", other).stderr


def test_a_file_without_end_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "JSON_LIMIT", 1000)
    assert "/dev/zero is longer than 1000 bytes" in cli("replay", "/dev/zero").stderr


def test_a_missing_file_and_one_that_cannot_be_written_are_reported(tmp_path: Path) -> None:
    assert "cannot be read" in cli("replay", tmp_path / "none.json").stderr
    done = cli("run", "nano", "Hi", "--max-tokens", 1, "--save-request", tmp_path / "no" / "file.json")
    assert (done.exit_code, "cannot be written" in done.stderr) == (1, True)


def test_every_choice_of_every_input_is_replayed_with_its_own_seed() -> None:
    ask = ChatInput(({"role": "user", "content": "Hello"},))
    request = GenerationRequest("nano", (ask, TextInput("Once")), {"temperature": 1.2, "max_tokens": 12}, n=3)
    with freedive.load("nano", cache_tokens=1024) as model:
        recording = Recording.from_json(model.record(request, model.answer(request)).to_json())
        again = model.replay(recording)
        assert [reply.token_ids for reply in again] == [answer.token_ids for answer in recording.answers]
    assert len({answer.seed for answer in recording.answers}) == 6
    assert len({answer.token_ids for answer in recording.answers}) > 2


@pytest.mark.parametrize(
    ("one", "other", "place"), [([], [], None), ([1], [1], None), ([1], [1, 2], 1), ([1, 2], [3, 2], 0), ([1], [], 0)]
)
def test_the_first_difference_is_found(one: list[int], other: list[int], place: int | None) -> None:
    assert first_difference(one, other) == place
