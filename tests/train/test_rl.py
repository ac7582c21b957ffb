"""Reinforcement: tasks are correct, answers' log-probabilities are the trainer's, and rewards make
answers more likely."""

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
from freedive.families import describe_config
from freedive.text.tokenizer import Tokenizer
from freedive.train.data.chat_tokenizer import ChatTokenizer, train_tokenizer
from freedive.train.data.tasks import END_THINK, THINK, Task, tasks
from freedive.train.model.net import Weights, initial, last_states
from freedive.train.model.ops import TrainOps
from freedive.train.rl.grpo import GrpoTrainer, token_logprobs
from freedive.train.rl.policy_trainer import micro_batches, packed
from freedive.train.rl.rollouts import Rollout, Sampler, draw
from freedive.train.run import config

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
    made["head"] *= 20  # so that tokens differ in their probabilities
    return made


def sampled(num: int, temperature: float) -> list[Rollout]:
    source = np.random.default_rng(0)
    prompts = [source.integers(2, 400, source.integers(1, 40)).tolist() for _ in range(num)]
    return Sampler(MODEL, weights(), num, 60).generate(prompts, 1, np.random.default_rng(1), temperature)


def test_logprobs_and_experts_of_answers_are_the_trainers() -> None:
    rollouts = sampled(30, 1.0)
    assert {rollout.ended for rollout in rollouts} == {True, False} or all(len(s.tokens) <= 60 for s in rollouts)
    batch, logprobs, replay = packed(rollouts)
    ops = TrainOps(batch)
    counted = torch.from_numpy(batch.weights).nonzero()[:, 0]
    targets = torch.from_numpy(batch.targets)[counted]
    with torch.no_grad():
        x = last_states(MODEL, weights(), TrainOps(batch, replay), counted)
        last_states(MODEL, weights(), ops, counted)
    found = token_logprobs(x, weights()["head"], targets)
    assert (found - logprobs[counted]).abs().max() < 2e-2
    same = [(one.sort().values == other.sort().values).all(-1) for one, other in zip(ops.chosen, replay, strict=True)]
    assert torch.cat(same).float().mean() > 0.99


def test_answers_do_not_depend_on_their_batch() -> None:
    together = sampled(12, 0.0)
    for rollout in together[:4]:
        prompt = rollout.tokens[: rollout.prompt]
        (alone,) = Sampler(MODEL, weights(), 1, 60).generate([prompt], 1, np.random.default_rng(9), 0.0)
        assert alone.tokens == rollout.tokens
        assert alone.logprobs == rollout.logprobs


def test_draws_follow_the_probabilities() -> None:
    logits = np.log(np.array([[0.5, 0.3, 0.2]], np.float32)).repeat(20_000, 0)
    tokens, logprobs = draw(logits, np.random.default_rng(0), 1.0)
    assert np.bincount(tokens) / len(tokens) == pytest.approx([0.5, 0.3, 0.2], abs=0.02)
    assert np.exp(logprobs) == pytest.approx(np.array([0.5, 0.3, 0.2])[tokens], abs=1e-6)


@pytest.fixture
def trainer(tmp_path: Path) -> GrpoTrainer:
    train_tokenizer([task.question + task.steps for task in some(200)], 400, tmp_path / "tokenizer")
    chat_tokenizer = ChatTokenizer(Tokenizer.from_folder(tmp_path / "tokenizer"))
    settings = config.Reinforcement(steps=6, lr=3e-2, num_prompts=4, num_samples=8, num_eval=2, eval_every=100)
    return GrpoTrainer(MODEL, settings, chat_tokenizer, tmp_path / "rl", initial(MODEL, seed=1))


def test_what_is_rewarded_becomes_likelier(trainer: GrpoTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reward is the share of tokens in the first half of the vocabulary."""

    def shares(asked: list[Task], rollouts: list[Rollout], source: np.random.Generator) -> np.ndarray:
        return np.array([np.mean(np.array(rollout.answer) < 200) for rollout in rollouts]).reshape(-1, 8)

    monkeypatch.setattr(trainer, "_rewards", shares)
    monkeypatch.setattr(Sampler, "generate", _all_ended(Sampler.generate))
    rewards = [trainer.advance()["reward"] for _ in range(trainer.num_steps)]
    assert rewards[-1] > rewards[0] + 0.1


def _all_ended(answers: Callable[..., list[Rollout]]) -> Callable[..., list[Rollout]]:
    """Marks truncated answers as ended."""

    def ended(*given: Any) -> list[Rollout]:
        return [replace(rollout, ended=True) for rollout in answers(*given)]

    return ended


def test_a_trainer_that_differs_from_the_engine_is_detected(trainer: GrpoTrainer) -> None:
    trainer.settings = replace(trainer.settings, max_divergence=1e-12)
    rollouts = sampled(8, 1.0)
    with pytest.raises(UserError, match="nats a token from the trainer's"):
        trainer._learn(rollouts, np.ones(len(rollouts)))


@pytest.mark.parametrize(("refills", "rounds"), [(0, 1), (2, 3)])
def test_groups_that_teach_nothing_are_replaced_in_a_bounded_number_of_rounds(
    trainer: GrpoTrainer, monkeypatch: pytest.MonkeyPatch, refills: int, rounds: int
) -> None:
    asked: list[str] = []

    def half(tasks: list[Task], rollouts: list[Rollout], source: np.random.Generator) -> np.ndarray:
        asked.extend(task.question for task in tasks[::8])
        rewards = np.zeros((len(tasks) // 8, 8))
        rewards[::2, 0] = 1.0
        return rewards

    monkeypatch.setattr(trainer, "_rewards", half)
    trainer.settings = replace(trainer.settings, refills=refills)
    rollouts, rewards = trainer._rollouts()
    assert len(rewards) == sum((4, 2, 1)[:rounds]) == len(set(asked))
    assert len(rollouts) == rewards.size


def test_micro_batches_have_every_rollout_once_within_the_token_limit() -> None:
    lengths = [3, 50, 7, 7, 20, 1, 9]
    rollouts = [Rollout([0] * length, 1) for length in lengths]
    found = list(micro_batches(rollouts, 24))
    assert sorted(index for part in found for index in part) == list(range(len(lengths)))
    assert all(len(part) == 1 or sum(lengths[index] for index in part) <= 24 for part in found)
    assert found[-1] == [1]


def test_beta_draws_logprobs_back_to_the_reference(trainer: GrpoTrainer) -> None:
    settings = replace(trainer.settings, beta=1.0)
    trainer = GrpoTrainer(MODEL, settings, trainer.chat_tokenizer, trainer.folder, initial(MODEL, seed=1))
    with torch.no_grad():
        noise = torch.randn(trainer.weights["head"].shape, generator=torch.Generator().manual_seed(0))
        trainer.weights["head"] += 0.3 * noise
    prompts = np.random.default_rng(0).integers(2, 400, (24, 5)).tolist()

    def learn(step: int) -> float:
        """Makes an update without rewards; returns the divergence from the policy before training, in nats
        per token."""
        rollouts = Sampler(MODEL, trainer.weights, 24, 30).generate(prompts, 1, np.random.default_rng(step))
        batch, logprobs, _ = packed(rollouts)
        rows = torch.from_numpy(batch.weights).nonzero()[:, 0]
        apart = logprobs[rows] - trainer._reference_logprobs(batch, rows, torch.from_numpy(batch.targets)[rows])
        trainer._learn(rollouts, np.zeros(len(rollouts)))
        return float(apart.mean())

    found = [learn(step) for step in range(12)]
    assert found[0] > 0.5
    assert found[-1] < 0.7 * found[0]
