"""Reinforcement learning on tasks that can be checked: GRPO (Shao et al. 2024) with its later mends.

Of each prompt come several answers; an answer's advantage is its reward less their mean, without a division by their
spread; the loss is a mean over tokens; the ratio's upper bound is the looser one (DAPO). Answers come from freedive's
kernels, and the experts that they chose are replayed in training, so that both models are the same but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import comb

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from freedive.errors import UserError
from freedive.model import spec
from freedive.train.answering import Answering, about, joined, parts
from freedive.train.config import Reinforcement
from freedive.train.conversations import reinforced
from freedive.train.loss import CHUNK
from freedive.train.net import Weights, last_states, output_matrix, weighted_loss
from freedive.train.ops import TrainOps
from freedive.train.progress import Row
from freedive.train.rollouts import Sample, Sampler
from freedive.train.sequences import Sequences
from freedive.train.tasks import KINDS, Task, tasks
from freedive.train.trainer import update
from freedive.train.words import Words

EVALUATION_SEED = 7


@dataclass
class Learner(Answering):
    """Weights that are reinforced."""

    settings: Reinforcement

    def __post_init__(self) -> None:
        super().__post_init__()
        kept = self.weights if self.settings.beta else {}
        self._before = {name: weight.detach().clone() for name, weight in kept.items()}

    def news(self, row: Row) -> str:
        """A few words on a step."""
        return f"{row['right']:.0%} right, {row['answer_tokens']:.0f} tokens"

    def advance(self) -> Row:
        """Answers to new tasks, and one update from them; now and then, how held-out tasks go."""
        given = self.settings
        before = {} if self.step else {"before": self.evaluate()}
        samples, rewards = self._rollouts()
        advantages = (rewards - rewards.mean(1, keepdims=True)).ravel()
        useful = [i for i, sample in enumerate(samples) if sample.ended and advantages[i]]
        divergence = self._learn([samples[i] for i in useful], advantages[useful]) if useful else 0.0
        self.step += 1
        due = self.step % given.eval_every == 0 or self.step == given.steps
        passed = {"pass": self.evaluate()} if due else {}
        return (
            before
            | passed
            | {
                "step": self.step,
                "reward": float(rewards.mean()),
                "right": float((rewards == 1).mean()),
                **about(samples),
                "useful": len(useful) / len(samples),
                "divergence": divergence,
            }
        )

    def evaluate(self) -> dict[str, float]:
        """The part of held-out tasks whose first answer is right, by kind."""
        return passes(self.model, self.weights, self.words, self.settings.num_eval)

    def _rollouts(self) -> tuple[list[Sample], npt.NDArray[np.float64]]:
        """Answers to new tasks, group by group, and their rewards [groups, num_samples].

        Where all answers of a group have one reward there is nothing to learn, and others are asked instead, in at most
        ``refills`` further rounds (DAPO's dynamic sampling, with an end).
        """
        given = self.settings
        source = np.random.default_rng((given.seed, self.step))
        new = map(self._fitting, reinforced(given.seed * 1_000_000 + self.step))
        samples, rewards = list[Sample](), np.empty((0, given.num_samples))
        for _ in range(1 + given.refills):
            missing = given.num_prompts - int(np.ptp(rewards, axis=1).astype(bool).sum())
            each = [task for task in islice(new, missing) for _ in range(given.num_samples)]
            if each:
                answered = answers(self.model, self.weights, self.words, each, source)
                samples += answered
                rewards = np.concatenate([rewards, self._rewards(each, answered, source)])
        return samples, rewards

    def _fitting(self, task: Task) -> Task:
        """``task``, with what comes before it if that leaves half of the context."""
        fits = len(self.words.prompt(task.messages)) <= self.model.max_context // 2
        return task if fits else replace(task, before=())

    def _rewards(
        self, asked: list[Task], samples: list[Sample], source: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        """[groups, num_samples]."""
        if self.settings.reward == "random":
            rewards = source.integers(0, 2, len(samples)).astype(np.float64)
        else:
            pairs = zip(asked, samples, strict=True)
            rewards = np.array(
                [task.reward(self.words.said(sample.answer)) if sample.ended else 0.0 for task, sample in pairs]
            )
        return rewards.reshape(-1, self.settings.num_samples)

    def _learn(self, samples: list[Sample], advantages: npt.NDArray[np.float64]) -> float:
        """One update; how far the answers' odds are from the trainer's, in nats a token."""
        total, apart = sum(len(sample.odds) for sample in samples), 0.0
        for part in parts(samples, self.settings.micro_tokens):
            apart += self._accumulate([samples[i] for i in part], advantages[part], total)
        if apart / total > self.settings.max_divergence:
            what = f"The answers' odds are {apart / total:.1e} nats a token from the trainer's"
            raise UserError(what, "This is a fault of freedive's: report it, with the run's folder")
        update(self.weights, self.optimizer, self.settings.lr, self.settings.clip)
        return apart / total

    def _accumulate(self, samples: list[Sample], advantages: npt.NDArray[np.float64], total: int) -> float:
        """Add the gradients of some answers; returns the sum of their divergences."""
        batch, old, replay = joined(samples)
        answers = torch.from_numpy(batch.weights).nonzero()[:, 0]
        x = last_states(self.model, self.weights, TrainOps(batch, replay), answers)
        head, targets = output_matrix(self.model, self.weights), torch.from_numpy(batch.targets)[answers]
        odds = log_odds(x, head, targets)
        drift = odds - old[answers]
        ratio, gain = drift.exp(), torch.from_numpy(advantages.repeat(batch.lengths)).float()[answers]
        low, high = 1 - self.settings.clip_low, 1 + self.settings.clip_high
        moving = torch.where(gain > 0, ratio < high, ratio > low)
        pull = self.settings.beta * (odds - self._odds_before(batch, answers, targets)) if self.settings.beta else 0.0
        weighted_loss(x, head, targets, (gain * ratio * moving - pull) / total).backward()  # type: ignore[no-untyped-call]
        return float((ratio - 1 - drift).sum())

    @torch.no_grad()
    def _odds_before(self, batch: Sequences, answers: Tensor, targets: Tensor) -> Tensor:
        """What the model gave the answers' tokens before all learning."""
        x = last_states(self.model, self._before, TrainOps(batch), answers)
        return log_odds(x, output_matrix(self.model, self._before), targets)


def answers(
    model: spec.Model, weights: Weights, words: Words, asked: Sequence[Task], source: np.random.Generator
) -> list[Sample]:
    """One answer to each task."""
    prompts = [words.prompt(task.messages) for task in asked]
    return Sampler(model, weights, len(prompts), model.max_context).answers(prompts, words.end, source)


def passes(
    model: spec.Model, weights: Weights, words: Words, num_tasks: int, num_samples: int = 1, ks: Sequence[int] = (1,)
) -> dict[str, float]:
    """pass@k of ``num_tasks`` held-out tasks of each kind: the chance that one of k answers is right.

    It is told from ``num_samples`` answers, without bias (Chen et al. 2021, Codex, section 2.1).
    """
    asked = list(islice(tasks(EVALUATION_SEED, held_out=True), num_tasks * len(KINDS)))
    source = np.random.default_rng(EVALUATION_SEED)
    right = np.zeros(len(asked), int)
    for _ in range(num_samples):
        answered = answers(model, weights, words, asked, source)
        right += [task.reward(words.said(sample.answer)) == 1 for task, sample in zip(asked, answered, strict=True)]
    found = {}
    for k in ks:
        passed = np.array([1 - comb(num_samples - count, k) / comb(num_samples, k) for count in right.tolist()])
        for kind in KINDS:
            name = kind if tuple(ks) == (1,) else f"{kind} pass@{k}"
            found[name] = float(passed[[task.kind == kind for task in asked]].mean())
    return found


@torch.no_grad()
def log_odds(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of each target after the last states ``x`` [rows, hidden]: [rows]."""
    parts = [
        (rows @ head.T).float().log_softmax(-1).gather(1, target[:, None])[:, 0]
        for rows, target in zip(torch.split(x, CHUNK), torch.split(targets, CHUNK), strict=True)
    ]
    return torch.cat(parts)
