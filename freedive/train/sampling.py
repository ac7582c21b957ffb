"""What a trained model says to a few questions, through freedive itself."""

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


def samples(folder: Path, max_tokens: int = 200) -> dict[str, str]:
    """Answers by question, drawn with fixed seeds."""
    with freedive.load(str(folder)) as model:
        length = min(max_tokens, model.max_context // 2)
        return {
            asked: "".join(
                model.chat([{"role": "user", "content": asked}], temperature=0.7, seed=seed, max_tokens=length)
            )
            for seed, asked in enumerate(ASKED)
        }
