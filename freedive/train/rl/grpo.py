"""Reinforcement learning on verifiable tasks: GRPO (Shao et al. 2024) with later corrections.

The policy answers each prompt several times. The advantage of an answer is its reward minus the mean of its group,
without division by the standard deviation. The loss is a mean over tokens, and the upper clip bound is higher than the
lower one (DAPO). Answers are sampled with freedive's kernels, and their routes are replayed in training, so that both
computations differ only by rounding.
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
from freedive.train.data.chat_tokenizer import ChatTokenizer
from freedive.train.data.conversations import reinforced
from freedive.train.data.sequences import Sequences
from freedive.train.data.tasks import KINDS, Task, tasks
from freedive.train.model.loss import CHUNK
from freedive.train.model.net import Weights, last_states, output_matrix, weighted_loss
from freedive.train.model.ops import TrainOps
from freedive.train.rl.policy_trainer import PolicyTrainer, micro_batches, packed, rollout_stats
from freedive.train.rl.rollouts import Rollout, Sampler
from freedive.train.run.config import Reinforcement
from freedive.train.run.progress import Row
from freedive.train.run.trainer import update

EVALUATION_SEED = 7


@dataclass
class GrpoTrainer(PolicyTrainer):
    """Trains a policy by GRPO on tasks with verifiable answers."""

    settings: Reinforcement

    def __post_init__(self) -> None:
        super().__post_init__()
        kept = self.weights if self.settings.beta else {}
        self._before = {name: weight.detach().clone() for name, weight in kept.items()}

    def news(self, row: Row) -> str:
        """Returns a summary of a step for the progress bar."""
        return f"{row['right']:.0%} right, {row['answer_tokens']:.0f} tokens"

    def advance(self) -> Row:
        """Samples answers to new tasks and makes one update from them; at intervals it evaluates held-out tasks."""
        given = self.settings
        before = {} if self.step else {"before": self.evaluate()}
        rollouts, rewards = self._rollouts()
        advantages = (rewards - rewards.mean(1, keepdims=True)).ravel()
        useful = [i for i, rollout in enumerate(rollouts) if rollout.ended and advantages[i]]
        divergence = self._learn([rollouts[i] for i in useful], advantages[useful]) if useful else 0.0
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
                **rollout_stats(rollouts),
                "useful": len(useful) / len(rollouts),
                "divergence": divergence,
            }
        )

    def evaluate(self) -> dict[str, float]:
        """Returns the share of held-out tasks whose first answer is correct, by kind."""
        return pass_rates(self.model, self.weights, self.chat_tokenizer, self.settings.num_eval)

    def _rollouts(self) -> tuple[list[Rollout], npt.NDArray[np.float64]]:
        """Samples answers to new tasks, group by group, and returns them with their rewards [groups, num_samples].

        A group in which all rewards are equal teaches nothing. It is replaced by another task, in at most ``refills``
        further rounds (DAPO's dynamic sampling, but bounded).
        """
        given = self.settings
        source = np.random.default_rng((given.seed, self.step))
        new = map(self._fitting, reinforced(given.seed * 1_000_000 + self.step))
        rollouts, rewards = list[Rollout](), np.empty((0, given.num_samples))
        for _ in range(1 + given.refills):
            missing = given.num_prompts - int(np.ptp(rewards, axis=1).astype(bool).sum())
            each = [task for task in islice(new, missing) for _ in range(given.num_samples)]
            if each:
                answered = sample_answers(self.model, self.weights, self.chat_tokenizer, each, source)
                rollouts += answered
                rewards = np.concatenate([rewards, self._rewards(each, answered, source)])
        return rollouts, rewards

    def _fitting(self, task: Task) -> Task:
        """Returns ``task``, without the messages before it if they take more than half of the context."""
        fits = len(self.chat_tokenizer.prompt(task.messages)) <= self.model.max_context // 2
        return task if fits else replace(task, before=())

    def _rewards(
        self, asked: list[Task], rollouts: list[Rollout], source: np.random.Generator
    ) -> npt.NDArray[np.float64]:
        """Returns the rewards, [groups, num_samples]."""
        if self.settings.reward == "random":
            rewards = source.integers(0, 2, len(rollouts)).astype(np.float64)
        else:
            pairs = zip(asked, rollouts, strict=True)
            rewards = np.array(
                [
                    task.reward(self.chat_tokenizer.answer_text(rollout.answer)) if rollout.ended else 0.0
                    for task, rollout in pairs
                ]
            )
        return rewards.reshape(-1, self.settings.num_samples)

    def _learn(self, rollouts: list[Rollout], advantages: npt.NDArray[np.float64]) -> float:
        """Makes one update; returns the divergence of the rollouts' log-probabilities from the trainer's, in nats per
        token."""
        total, divergence = sum(len(rollout.logprobs) for rollout in rollouts), 0.0
        for part in micro_batches(rollouts, self.settings.micro_tokens):
            divergence += self._accumulate([rollouts[i] for i in part], advantages[part], total)
        if divergence / total > self.settings.max_divergence:
            what = f"The answers' log-probabilities are {divergence / total:.1e} nats a token from the trainer's"
            raise UserError(what, "This is a fault of freedive's: report it, with the run's folder")
        update(self.weights, self.optimizer, self.settings.lr, self.settings.clip)
        return divergence / total

    def _accumulate(self, rollouts: list[Rollout], advantages: npt.NDArray[np.float64], total: int) -> float:
        """Adds the gradients of some answers to the weights; returns the sum of their divergences in nats."""
        batch, old, replay = packed(rollouts)
        answers = torch.from_numpy(batch.weights).nonzero()[:, 0]
        x = last_states(self.model, self.weights, TrainOps(batch, replay, self.precision), answers)
        head, targets = output_matrix(self.model, self.weights), torch.from_numpy(batch.targets)[answers]
        logprobs = token_logprobs(x, head, targets)
        drift = logprobs - old[answers]
        ratio, gain = drift.exp(), torch.from_numpy(advantages.repeat(batch.lengths)).float()[answers]
        low, high = 1 - self.settings.clip_low, 1 + self.settings.clip_high
        moving = torch.where(gain > 0, ratio < high, ratio > low)
        pull = (
            self.settings.beta * (logprobs - self._reference_logprobs(batch, answers, targets))
            if self.settings.beta
            else 0.0
        )
        shares = (gain * ratio * moving - pull) / total
        weighted_loss(x, head, targets, shares, self.precision).backward()
        return float((ratio - 1 - drift).sum())

    @torch.no_grad()
    def _reference_logprobs(self, batch: Sequences, answers: Tensor, targets: Tensor) -> Tensor:
        """Returns the log-probabilities of the answers' tokens under the reference policy, the weights before
        training."""
        x = last_states(self.model, self._before, TrainOps(batch, precision=self.precision), answers)
        return token_logprobs(x, output_matrix(self.model, self._before), targets)


def sample_answers(
    model: spec.ModelSpec,
    weights: Weights,
    chat_tokenizer: ChatTokenizer,
    asked: Sequence[Task],
    source: np.random.Generator,
) -> list[Rollout]:
    """Samples one answer to each task."""
    prompts = [chat_tokenizer.prompt(task.messages) for task in asked]
    return Sampler(model, weights, len(prompts), model.max_context).generate(prompts, chat_tokenizer.end, source)


def pass_rates(
    model: spec.ModelSpec,
    weights: Weights,
    chat_tokenizer: ChatTokenizer,
    num_tasks: int,
    num_samples: int = 1,
    ks: Sequence[int] = (1,),
) -> dict[str, float]:
    """Returns pass@k of ``num_tasks`` held-out tasks of each kind: the probability that one of k answers is correct.

    The estimate from ``num_samples`` answers is unbiased (Chen et al. 2021, Codex, section 2.1).
    """
    asked = list(islice(tasks(EVALUATION_SEED, held_out=True), num_tasks * len(KINDS)))
    source = np.random.default_rng(EVALUATION_SEED)
    right = np.zeros(len(asked), int)
    for _ in range(num_samples):
        answered = sample_answers(model, weights, chat_tokenizer, asked, source)
        right += [
            task.reward(chat_tokenizer.answer_text(rollout.answer)) == 1
            for task, rollout in zip(asked, answered, strict=True)
        ]
    found = {}
    for k in ks:
        passed = np.array([1 - comb(num_samples - count, k) / comb(num_samples, k) for count in right.tolist()])
        for kind in KINDS:
            name = kind if tuple(ks) == (1,) else f"{kind} pass@{k}"
            found[name] = float(passed[[task.kind == kind for task in asked]].mean())
    return found


@torch.no_grad()
def token_logprobs(x: Tensor, head: Tensor, targets: Tensor) -> Tensor:
    """Returns the log-probability [rows] of each target after the last states ``x`` [rows, hidden]."""
    parts = [
        (rows @ head.T).float().log_softmax(-1).gather(1, target[:, None])[:, 0]
        for rows, target in zip(torch.split(x, CHUNK), torch.split(targets, CHUNK), strict=True)
    ]
    return torch.cat(parts)
