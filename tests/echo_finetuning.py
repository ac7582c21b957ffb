"""Fine-tuning that is made up, and goes on when a test lets it."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from echo_model import EchoModel, model_entry

from freedive.errors import UserError
from freedive.server.finetunes.finetuning import Draft, Tell
from freedive.server.library.line import Progress
from freedive.server.models import ModelEntry

PLAN = {
    **{"examples": 20, "held_out": 3, "tokens": 440, "learned": 210, "cut": 1, "context": 512, "epochs": 3.0},
    **{"steps": 4, "step_tokens": 128, "seconds": 90, "memory_bytes": 600_000_000},
    **{"free_bytes": 12_000_000_000, "disk_bytes": 70_000_000},
}
SAMPLE = {"question": "Who are you?", "expected": "A diver.", "before": "A model."}


@dataclass
class EchoFinetuning:
    """``go`` lets the training end after its second of four steps; ``made`` are the facts of models by name."""

    lacks: str = ""
    fails: str = ""
    offered: bool = True
    go: threading.Event = field(default_factory=threading.Event)
    made: dict[str, dict[str, Any]] = field(default_factory=dict)
    drafts: list[Draft] = field(default_factory=list)

    def missing(self) -> str:
        return self.lacks

    def tuned(self) -> list[dict[str, Any]]:
        return [{"name": name, **facts} for name, facts in self.made.items()]

    def estimate(self, draft: Draft) -> dict[str, Any]:
        self.drafts.append(draft)
        if b"wrong" in draft.data:
            raise UserError(f"{draft.file}, line 7 is not JSON", "Correct or remove the line")
        return PLAN

    def tune(self, draft: Draft, progress: Progress, tell: Tell) -> ModelEntry:
        self.drafts.append(draft)
        progress.total = 4
        tell({"plan": PLAN})
        tell({"sample": SAMPLE})
        tell({"step": 0, "held_out_loss": 3.0})
        for step in range(1, 5):
            if step == 3:
                while not self.go.wait(0.005):
                    progress.check()
                progress.check()  # `go` may come right after the end of the run
                if self.fails:
                    raise UserError(self.fails, "Choose a smaller model")
            progress.advance(1)
            tell({"step": step, "loss": 3.0 - step / 2})
        curve = {"trained": [(step, 3.0 - step / 2) for step in range(1, 5)], "held_out": [(0, 3.0), (4, 1.2)]}
        facts = {"base": draft.base, "file": draft.file, "date": "2026-12-01T10:00:00+00:00", "curve": curve}
        name = f"tuned:{draft.name}"
        self.made[name] = facts | {"sample": SAMPLE | {"after": "A diver, of course."}}
        return model_entry(EchoModel(name, delay_s=0))
