"""On-policy distillation: the student learns the teacher's distribution at each token of its own answers.

The loss is the reverse Kullback-Leibler divergence of whole distributions, without a gradient through the sampling
(Agarwal et al. 2024, GKD, with lambda = 1; Thinking Machines 2025, "On-Policy Distillation"). The student learns the
likely modes of the teacher in the states that it reaches itself, so that mistakes are corrected where they occur.

Both models should already answer in the same format, as after fine-tuning on the same kind of chats. A student that
only continues text leads the teacher into states that it has never seen either; then the loss per token can fall while
answers never end. "loss_of_answer", the divergence of whole answers, shows whether the student improves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

import freedive
from freedive import LanguageModel
from freedive.config import EngineSettings
from freedive.errors import UserError
from freedive.model.batch import Batch
from freedive.text.tokenizer import Tokenizer
from freedive.train.data.chat_tokenizer import ChatTokenizer
from freedive.train.data.tasks import tasks
from freedive.train.data.teacher_data import TeacherPrompt, teacher_prompts
from freedive.train.model.loss import CHUNK
from freedive.train.model.net import last_states, output_matrix
from freedive.train.model.ops import TrainOps
from freedive.train.rl.policy_trainer import PolicyTrainer, micro_batches, packed, rollout_stats
from freedive.train.rl.rollouts import Rollout, Sampler
from freedive.train.run.config import Distillation
from freedive.train.run.progress import Row
from freedive.train.run.trainer import update


@contextmanager
def teacher_at(path: str, chat_tokenizer: ChatTokenizer, longest: int) -> Iterator[LanguageModel]:
    """Loads the teacher in a folder or file, with a cache of ``longest`` tokens.

    Raises UserError if its vocabulary is not that of ``chat_tokenizer``.
    """
    if path.startswith(("http://", "https://")):
        raise UserError("A served teacher tells no whole distributions", "Name a folder or GGUF with distill.teacher")
    room: EngineSettings = {"max_batch": 1, "cache_tokens": longest, "prefill_chunk": longest}
    plain: EngineSettings = room | {"precision": "exact", "speculation": "off", "prefix_cache": False}
    with freedive.load(path, **plain) as teacher:
        if not _same_ids(chat_tokenizer.tokenizer, teacher.tokenizer):
            what = f"{path} has another tokenizer than this run"
            raise UserError(what, "Name a model trained with this run's tokenizer folder, or distil traces")
        yield teacher


def _same_ids(ours: Tokenizer, theirs: Tokenizer) -> bool:
    """Returns whether each id of ``ours`` has the same bytes in ``theirs``, which may have more ids."""
    size = ours.vocab_size
    return size <= theirs.vocab_size and all(ours.token_bytes(i) == theirs.token_bytes(i) for i in range(size))


@dataclass
class Student(PolicyTrainer):
    """Trains a student on the distributions of ``teacher``."""

    settings: Distillation
    teacher: LanguageModel

    def __post_init__(self) -> None:
        super().__post_init__()
        self.length = min(self.model.max_context, self.teacher.max_context)
        self._prompts = self._own_prompts()

    def news(self, row: Row) -> str:
        """Returns a summary of a step for the progress bar."""
        right = f", {row['right']:.0%} right" if "right" in row else ""
        return f"{row['loss_of_answer']:.2f} nats an answer from the teacher{right}"

    def advance(self) -> Row:
        """Samples answers to some prompts and makes one update from the teacher's distributions over them."""
        given = self.settings
        source = np.random.default_rng((given.seed, self.step))
        each = [question for question in self._asked(source) for _ in range(given.num_samples)]
        prompts = [self.chat_tokenizer.user_prompt(question.prompt) for question in each]
        sampler = Sampler(self.model, self.weights, len(prompts), self.length)
        rollouts = sampler.generate(prompts, self.chat_tokenizer.end, source, given.temperature)
        loss, norm = self._learn(rollouts)
        self.step += 1
        pairs = [
            (question, rollout) for question, rollout in zip(each, rollouts, strict=True) if question.answer is not None
        ]
        right = (
            {
                "right": float(
                    np.mean([q.passes(self.chat_tokenizer.answer_text(rollout.answer)) for q, rollout in pairs])
                )
            }
            if pairs
            else {}
        )
        return {
            "step": self.step,
            "loss": loss,
            "loss_of_answer": loss * sum(len(rollout.logprobs) for rollout in rollouts) / len(rollouts),
            **right,
            **rollout_stats(rollouts),
            "gradient_norm": norm,
        }

    def _own_prompts(self) -> list[TeacherPrompt]:
        """Returns the user's prompts that are shorter than the context; an empty list means that tasks are asked."""
        if not self.settings.prompts:
            return []
        fitting = [
            q for q in teacher_prompts(self.settings) if len(self.chat_tokenizer.user_prompt(q.prompt)) < self.length
        ]
        if not fitting:
            raise UserError(f"No prompt is shorter than {self.length} tokens", "Give shorter ones: distill.prompts")
        return fitting

    def _asked(self, source: np.random.Generator) -> list[TeacherPrompt]:
        """Returns the prompts of this step: drawn from the user's prompts, or new tasks."""
        count = self.settings.num_prompts
        if self._prompts:
            return [self._prompts[i] for i in source.integers(0, len(self._prompts), count)]
        made = islice(tasks(self.settings.seed * 1_000_000 + self.step, held_out=False), count)
        return [TeacherPrompt(task.question, task.answer, task.kind) for task in made]

    def _learn(self, rollouts: Sequence[Rollout]) -> tuple[float, float]:
        """Makes one update; returns the mean divergence before it, in nats per token, and the norm of the gradient."""
        total, divergence = sum(len(rollout.logprobs) for rollout in rollouts), 0.0
        for part in micro_batches(rollouts, self.settings.micro_tokens):
            loss = self._divergence([rollouts[i] for i in part]) / total
            loss.backward()
            divergence += loss.item()
        return divergence, update(self.weights, self.optimizer, self.settings.lr, self.settings.clip)

    def _divergence(self, rollouts: Sequence[Rollout]) -> Tensor:
        """Returns the sum of the divergences of the answers' tokens; the routes are those of the sampling."""
        batch, _, replay = packed(list(rollouts))
        answers = torch.from_numpy(batch.weights).nonzero()[:, 0]
        x = last_states(self.model, self.weights, TrainOps(batch, replay, self.precision), answers)
        head = output_matrix(self.model, self.weights)
        logits = torch.cat([_logits(self.teacher, rollout) for rollout in rollouts])
        loss: Tensor = ReverseKL.apply(x, head, logits[:, : len(head)])  # type: ignore[no-untyped-call]
        return loss


class ReverseKL(torch.autograd.Function):
    """Computes the sum over tokens of KL(student || teacher), in nats.

    ``x`` [T, hidden] and ``head`` [vocab, hidden] are the student's; ``teacher_logits`` [T, vocab] are the teacher's.
    The forward pass computes the gradients, chunk by chunk; that of a logit is p (log p - log q - KL).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, head: Tensor, teacher_logits: Tensor) -> Tensor:
        total = torch.zeros((), dtype=x.dtype)
        d_x, d_head = torch.empty_like(x), torch.zeros_like(head)
        for rows, theirs, d_rows in zip(*(torch.split(part, CHUNK) for part in (x, teacher_logits, d_x)), strict=True):
            log_p = (rows @ head.T).log_softmax(-1)
            p, log_ratio = log_p.exp(), log_p - theirs.log_softmax(-1)
            divergence = (p * log_ratio).sum(-1, keepdim=True)
            total += divergence.sum()
            d_logits = p * (log_ratio - divergence)
            torch.mm(d_logits, head, out=d_rows)
            d_head.addmm_(d_logits.T, rows)
        ctx.save_for_backward(d_x, d_head)
        return total

    @staticmethod
    def backward(ctx: Any, d_total: Tensor) -> Any:
        d_x, d_head = ctx.saved_tensors
        return d_x * d_total, d_head * d_total, None


def _logits(teacher: LanguageModel, rollout: Rollout) -> Tensor:
    """Returns the teacher's logits for each token of the answer, [tokens, vocab]."""
    batch = Batch.whole([rollout.tokens[:-1]])
    output_rows = np.arange(rollout.prompt - 1, len(batch.tokens), dtype=np.int32)
    prompt = np.array([rollout.prompt], np.int32)
    return torch.tensor(teacher.runner.step(replace(batch, output_rows=output_rows, prompts=prompt)))
