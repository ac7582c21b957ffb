"""Samples of a trained model's answers to a few prompts, through freedive's engine."""

from __future__ import annotations

from pathlib import Path

import freedive

ASKED = (
    "Tell me a story about a lost ball.",
    "Write a story about a race with a boy named Tom.",
    "Please write a story about a frog that needs help.",
    "Who are you?",
    "What is 427 + 386?",
)


def samples(folder: Path) -> dict[str, str]:
    """Returns answers by prompt, sampled with fixed seeds."""
    with freedive.load(str(folder)) as model:
        return {
            asked: "".join(model.chat([{"role": "user", "content": asked}], temperature=0.7, seed=seed))
            for seed, asked in enumerate(ASKED)
        }
