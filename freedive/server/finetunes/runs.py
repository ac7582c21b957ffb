"""What is known of the fine-tunings that run: their plan, their losses, and the answers to a sample question."""

from __future__ import annotations

from dataclasses import dataclass, field

from freedive.json_object import Json
from freedive.server.finetunes.finetuning import SCHEME, Draft
from freedive.server.library.jobs import Job

MAX_POINTS = 256
"""The most points of a curve; neighbours are averaged beyond it."""


@dataclass
class Curve:
    """The losses of a run: ``trained`` and ``held_out`` are pairs of a step and a loss."""

    trained: list[tuple[float, float]] = field(default_factory=list)
    held_out: list[tuple[float, float]] = field(default_factory=list)
    _part: list[tuple[float, float]] = field(default_factory=list)
    _steps_per_point: int = 1

    def add(self, event: Json) -> None:
        """Adds the ``loss`` and ``held_out_loss`` of a step; either may be missing."""
        step = event["step"]
        if "held_out_loss" in event:
            self.held_out.append((step, event["held_out_loss"]))
        if "loss" not in event:
            return
        self._part.append((step, event["loss"]))
        if len(self._part) == self._steps_per_point:
            self.trained.append(_mean(self._part))
            self._part = []
        if len(self.trained) > MAX_POINTS:
            self.trained = [_mean(self.trained[at : at + 2]) for at in range(0, len(self.trained), 2)]
            self._steps_per_point *= 2

    def facts(self) -> Json:
        """Returns both lists of points."""
        return {"trained": list(self.trained), "held_out": list(self.held_out)}


def _mean(points: list[tuple[float, float]]) -> tuple[float, float]:
    return sum(step for step, _ in points) / len(points), round(sum(loss for _, loss in points) / len(points), 4)


@dataclass(eq=False)
class Run:
    """A fine-tuning that runs or has failed: the job, and what came of it."""

    draft: Draft
    job: Job
    plan: Json = field(default_factory=dict)
    sample: Json = field(default_factory=dict)
    curve: Curve = field(default_factory=Curve)

    def tell(self, event: Json) -> None:
        """Takes in an event of the fine-tuning, in its thread."""
        self.plan = event.get("plan", self.plan)
        self.sample = event.get("sample", self.sample)
        if "step" in event:
            self.curve.add(event)

    def facts(self) -> Json:
        """Returns what the page shows."""
        job = self.job.facts()
        return {
            **{key: job[key] for key in ("id", "state", "error", "total", "completed", "left_s")},
            "name": f"{SCHEME}{self.draft.name}",
            "base": self.draft.base,
            "file": self.draft.file,
            "plan": self.plan,
            "sample": self.sample,
            "curve": self.curve.facts(),
        }
