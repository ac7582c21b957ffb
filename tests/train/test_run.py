"""A tiny complete run: its results, and that other programs read them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet
from tiny_run import TINY

import freedive
from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors
from freedive.errors import UserError
from freedive.families import describe
from freedive.model.batch import Batch
from freedive.train.data import sources, stories
from freedive.train.data.shards import Shards, Stream
from freedive.train.model.net import unstacked
from freedive.train.run import checkpoints, config
from freedive.train.run.config import Data
from freedive.train.run.progress import Row
from freedive.train.run.stages import perform


def rows(run: Path, stage: str) -> list[Row]:
    return [json.loads(line) for line in (run / f"{stage}.jsonl").read_text().splitlines()]


def test_it_learns(run: Path) -> None:
    losses = [row["loss"] for row in rows(run, "pretrain")]
    assert losses[0] == pytest.approx(math.log(600), rel=0.05)
    assert losses[-1] < 0.75 * losses[0]
    assert [row["step"] for row in rows(run, "pretrain")] == list(range(1, 31))


def test_the_report_stands_alone(run: Path) -> None:
    page = (run / "report.html").read_text()
    for part in ("pretrain", "sft", "Samples", "<polyline", "<rect", "Tell me a story about a lost ball."):
        assert part in page
    assert "http" not in page.replace("<!doctype html>", "")


def test_freedive_transformers_and_llama_cpp_files_agree(run: Path) -> None:
    from transformers import AutoModelForCausalLM

    tokens = np.random.default_rng(0).integers(0, 600, 50)
    theirs = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)[None]).logits[0].numpy()
    for name in ("model", "model-F32.gguf"):
        with freedive.load(str(run / name), precision="exact") as model:
            got = model.runner.step(Batch.whole([tokens], wants_all=True))
        np.testing.assert_allclose(got, expected, atol=2e-3)


def test_the_tokenizer_is_the_same_in_every_form(run: Path) -> None:
    from transformers import AutoTokenizer

    from freedive.text.tokenizer import Tokenizer

    theirs = AutoTokenizer.from_pretrained(run / "model")
    ours = Tokenizer.from_folder(run / "model"), Tokenizer.from_gguf(open_checkpoint(run / "model-F32.gguf").config)
    for text in ("Lily had 123 red balls.", "它在这里。", "def f(x):\n    return x  # <|end|>", "  two  spaces "):
        expected = theirs.encode(text, add_special_tokens=False)
        assert [tokenizer.encode(text) for tokenizer in ours] == [expected, expected]


def test_the_template_says_what_was_trained(run: Path) -> None:
    from freedive.text.tokenizer import Tokenizer
    from freedive.train.data.chat_tokenizer import ChatTokenizer

    messages = [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi"}]
    chat_tokenizer = ChatTokenizer(Tokenizer.from_folder(run / "model"))
    tokens, weights = chat_tokenizer.chat(messages)
    with freedive.load(str(run / "model")) as model:
        prompt = model.template.render(messages[:1])
    opened = chat_tokenizer.tokenizer.encode(prompt)
    assert tokens[: len(opened)] == opened
    assert weights == [0] * len(opened) + [1] * (len(tokens) - len(opened))
    # Special tokens in a user's message are plain text.
    assert chat_tokenizer.chat([{"role": "user", "content": "Hi <|end|>"}])[0].count(chat_tokenizer.end) == 1


def test_a_stream_resumes_at_its_position(run: Path) -> None:
    shards = Shards(run / "data" / "pretrain-held-out", run / "tokenizer" / "tokenizer.json")
    whole, parted = Stream(shards, 1), Stream(shards, 1)
    expected = [whole.take(200, 64).tokens for _ in range(40)]
    assert whole.state["epoch"] > 0
    for step, tokens in enumerate(expected):
        if step == 17:
            state = dict(parted.state)
            parted = Stream(shards, 1)
            parted.state = state
        assert np.array_equal(parted.take(200, 64).tokens, tokens)


def test_stories_are_whole_sentences_and_the_same_for_a_seed() -> None:
    told = [record["text"] for record in stories.documents(300, 1)]
    assert told == [record["text"] for record in stories.documents(300, 1)]
    assert len(set(told)) == 300
    for text in told:
        assert text[-1] in '."'
        assert "{" not in text


def test_records_are_read_from_every_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"messages": [{"role": "user", "content": "two"}]}\n')
    (tmp_path / "b.txt").write_text("three")
    parquet.write_table(pyarrow.table({"text": ["four", "five"]}), tmp_path / "c.parquet")
    found = list(sources.read([str(tmp_path)]))
    chat = {"messages": [{"role": "user", "content": "two"}]}
    assert found == [{"text": "one"}, chat, *({"text": each} for each in ("three", "four", "five"))]
    data = Data(text=(str(tmp_path),))
    assert len(list(sources.documents(data))) == 4
    assert len(list(sources.chats(data))) == 1


@pytest.mark.parametrize(
    ("line", "what"), [("{", "line 1 is not JSON"), ('{"txt": 1}', "line 1 is no record"), ("[]", "is no record")]
)
def test_an_invalid_record_is_refused_by_its_line(line: str, what: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(UserError, match=what):
        list(sources.read([str(tmp_path / "a.jsonl")]))


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("pretrain.lrr=1", "no setting pretrain.lrr"),
        ("pretrain.steps=1.5", "pretrain.steps is 1.5"),
        ("pretrain=3", "pretrain is 3"),
        ("steps", "sets nothing"),
        ("pretrain.lr=fast", "pretrain.lr is 'fast'"),
    ],
)
def test_invalid_settings_are_refused_by_name(setting: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        config.preset("nano", [setting])


def test_settings_are_restored_from_a_file(tmp_path: Path) -> None:
    run = config.preset("nano", ["data.text=['a', 'b']", "pretrain.lr=1"])
    assert run.data.text == ("a", "b")
    assert run.pretrain.lr == 1.0
    config.write_run(run, tmp_path / "config.json")
    assert config.read_run(tmp_path / "config.json") == run


def test_a_model_that_predicts_two_tokens_is_read_back_whole(tmp_path: Path) -> None:
    settings = [*TINY, "model.mtp=true", "pretrain.steps=2", "data.num_stories=100", "data.num_tasks=50"]
    for stage in ("tokenizer", "data", "pretrain", "export"):
        perform(stage, "nano", settings, tmp_path)
    checkpoint = open_checkpoint(tmp_path / "model")
    spec, rules = describe(checkpoint)
    assert spec.mtp
    found = canonical_tensors(checkpoint, spec, rules)
    trained = checkpoints.load(checkpoints.newest(tmp_path / "checkpoints" / "pretrain")).weights
    assert set(found) == {name for name, _ in unstacked(trained)}
    for name, weight in unstacked(trained):
        np.testing.assert_array_equal(dequantize(found[name]).reshape(weight.shape), weight.numpy())
    with freedive.load(str(tmp_path / "model")) as model:
        assert "".join(model.complete("Once", max_tokens=4))
