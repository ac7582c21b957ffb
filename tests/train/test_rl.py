"""Reinforcement: tasks are right, answers' odds are the trainer's, and a reward moves the model towards itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from freedive.errors import UserError
from freedive.model.families import describe_config
from freedive.text.tokenizer import Tokenizer
from freedive.train import config
from freedive.train.answering import joined, parts
from freedive.train.net import Weights, initial, last_states
from freedive.train.ops import TrainOps
from freedive.train.rl import Learner, log_odds
from freedive.train.rollouts import Sample, Sampler, draw
from freedive.train.tasks import END_THINK, THINK, Task, tasks
from freedive.train.words import Words, train_tokenizer

SETTINGS = ["model.hidden_dim=64", "model.num_layers=3", "model.dense_dim=96", "model.vocab_size=400"]
SHAPE = config.preset("nano", [*SETTINGS, "model.max_context=96"]).model
MODEL = describe_config(SHAPE.hub_config(1, 0))
CHANGES = {"Add": "+", "Subtract": "-", "Multiply by": "*"}


def some(count: int, held_out: bool = False) -> list[Task]:
    return list(islice(tasks(3, held_out), count))


def test_answers_are_right() -> None:
    for task in some(400):
        if task.kind == "addition":
            a, b = map(int, re.findall(r"\d+", task.question))
            assert task.answer == str(a + b)
        else:
            value = int(re.findall(r"\d+", task.question)[0])
            for word, by in re.findall(r"(Add|Subtract|Multiply by) (\d+)", task.question):
                value = {"+": value + int(by), "-": value - int(by), "*": value * int(by)}[CHANGES[word]] % 10
            assert task.answer == str(value)


def test_held_out_tasks_are_never_trained_on() -> None:
    trained, held = ({task.question for task in some(2000, held_out)} for held_out in (False, True))
    assert not trained & held
    assert len(held) > 1000


def test_rewards() -> None:
    task = Task("addition", "What is 2 + 2?", "2+2+0=04", "4")
    right = ("4", " 4 ", f"{THINK}anything{END_THINK}4")
    formed = (f"{THINK}anything{END_THINK}5", f"{THINK}{END_THINK}")
    wrong = ("5", "", "4 5", f"{THINK}a{END_THINK}{THINK}b{END_THINK}5", f"{THINK}4", f"4{THINK}a{END_THINK}")
    for said, reward in ((right, 1.0), (formed, 0.1), (wrong, 0.0)):
        assert [task.reward(each) for each in said] == [reward] * len(said)


def weights() -> Weights:
    made = initial(MODEL, seed=1)
    made["head"] *= 20  # so that tokens differ in their odds
    return made


def rollouts(num: int, temperature: float) -> list[Sample]:
    source = np.random.default_rng(0)
    prompts = [source.integers(2, 400, source.integers(1, 40)).tolist() for _ in range(num)]
    return Sampler(MODEL, weights(), num, 60).answers(prompts, 1, np.random.default_rng(1), temperature)


def test_odds_and_experts_of_answers_are_the_trainers() -> None:
    samples = rollouts(30, 1.0)
    assert {sample.ended for sample in samples} == {True, False} or all(len(s.tokens) <= 60 for s in samples)
    batch, odds, replay = joined(samples)
    ops = TrainOps(batch)
    counted = torch.from_numpy(batch.weights).nonzero()[:, 0]
    targets = torch.from_numpy(batch.targets)[counted]
    with torch.no_grad():
        x = last_states(MODEL, weights(), TrainOps(batch, replay), counted)
        last_states(MODEL, weights(), ops, counted)
    found = log_odds(x, weights()["head"], targets)
    assert (found - odds[counted]).abs().max() < 2e-2
    same = [(one.sort().values == other.sort().values).all(-1) for one, other in zip(ops.chosen, replay, strict=True)]
    assert torch.cat(same).float().mean() > 0.99


def test_answers_do_not_depend_on_their_companions() -> None:
    together = rollouts(12, 0.0)
    for sample in together[:4]:
        prompt = sample.tokens[: sample.prompt]
        (alone,) = Sampler(MODEL, weights(), 1, 60).answers([prompt], 1, np.random.default_rng(9), 0.0)
        assert alone.tokens == sample.tokens
        assert alone.odds == sample.odds


def test_draws_follow_the_odds() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32)).repeat(20_000, 0)
    tokens, odds = draw(logits, np.random.default_rng(0), 1.0)
    assert np.bincount(tokens) / len(tokens) == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    assert np.exp(odds) == pytest.approx(np.array([0.5, 0.3, 0.2])[tokens], abs=1e-6)


@pytest.fixture
def learner(tmp_path: Path) -> Learner:
    train_tokenizer([task.question + task.steps for task in some(200)], 400, tmp_path / "tokenizer")
    words = Words(Tokenizer.from_folder(tmp_path / "tokenizer"))
    settings = config.Reinforcement(steps=6, lr=3e-2, num_prompts=4, num_samples=8, num_eval=2, eval_every=100)
    return Learner(MODEL, settings, words, tmp_path / "rl", initial(MODEL, seed=1))


def test_what_is_rewarded_becomes_likelier(learner: Learner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens of the vocabulary's first half, whatever they say."""

    def shares(asked: list[Task], samples: list[Sample], source: np.random.Generator) -> np.ndarray:
        return np.array([np.mean(np.array(sample.answer) < 200) for sample in samples]).reshape(-1, 8)

    monkeypatch.setattr(learner, "_rewards", shares)
    monkeypatch.setattr(Sampler, "answers", _all_ended(Sampler.answers))
    rewards = [learner.advance()["reward"] for _ in range(learner.num_steps)]
    assert rewards[-1] > rewards[0] + 0.1


def _all_ended(answers: Callable[..., list[Sample]]) -> Callable[..., list[Sample]]:
    """Answers that count although they were cut off."""

    def ended(*given: Any) -> list[Sample]:
        return [replace(sample, ended=True) for sample in answers(*given)]

    return ended


def test_a_trainer_that_is_not_the_engine_is_noticed(learner: Learner) -> None:
    learner.settings = replace(learner.settings, max_divergence=1e-12)
    samples = rollouts(8, 1.0)
    with pytest.raises(UserError, match="nats a token from the trainer's"):
        learner._learn(samples, np.ones(len(samples)))


@pytest.mark.parametrize(("refills", "rounds"), [(0, 1), (2, 3)])
def test_groups_that_teach_nothing_are_replaced_in_so_many_rounds(
    learner: Learner, monkeypatch: pytest.MonkeyPatch, refills: int, rounds: int
) -> None:
    asked: list[str] = []

    def half(tasks: list[Task], samples: list[Sample], source: np.random.Generator) -> np.ndarray:
        asked.extend(task.question for task in tasks[::8])
        rewards = np.zeros((len(tasks) // 8, 8))
        rewards[::2, 0] = 1.0
        return rewards

    monkeypatch.setattr(learner, "_rewards", half)
    learner.settings = replace(learner.settings, refills=refills)
    samples, rewards = learner._rollouts()
    assert len(rewards) == sum((4, 2, 1)[:rounds]) == len(set(asked))
    assert len(samples) == rewards.size


def test_parts_hold_every_sample_once_and_no_more_tokens_than_told() -> None:
    lengths = [3, 50, 7, 7, 20, 1, 9]
    samples = [Sample([0] * length, 1) for length in lengths]
    found = list(parts(samples, 24))
    assert sorted(index for part in found for index in part) == list(range(len(lengths)))
    assert all(len(part) == 1 or sum(lengths[index] for index in part) <= 24 for part in found)
    assert found[-1] == [1]


def test_beta_draws_odds_back_to_those_before(learner: Learner) -> None:
    settings = replace(learner.settings, beta=1.0)
    learner = Learner(MODEL, settings, learner.words, learner.folder, initial(MODEL, seed=1))
    with torch.no_grad():
        noise = torch.randn(learner.weights["head"].shape, generator=torch.Generator().manual_seed(0))
        learner.weights["head"] += 0.3 * noise
    prompts = np.random.default_rng(0).integers(2, 400, (24, 5)).tolist()

    def learn(step: int) -> float:
        """An update without any reward; how far answers were from those before, in nats a token."""
        samples = Sampler(MODEL, learner.weights, 24, 30).answers(prompts, 1, np.random.default_rng(step))
        batch, odds, _ = joined(samples)
        rows = torch.from_numpy(batch.weights).nonzero()[:, 0]
        apart = odds[rows] - learner._odds_before(batch, rows, torch.from_numpy(batch.targets)[rows])
        learner._learn(samples, np.zeros(len(samples)))
        return float(apart.mean())

    found = [learn(step) for step in range(12)]
    assert found[0] > 0.5
    assert found[-1] < 0.7 * found[0]
