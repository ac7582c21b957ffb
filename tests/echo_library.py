"""A library of made-up models, whose downloads go on when a test lets them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

from echo_model import EchoModel, model_entry

from freedive.errors import NotFound, Unavailable
from freedive.server.library.line import Progress
from freedive.server.models import ModelEntry

GB = 10**9

CARD = {
    "family": "llama",
    "download_bytes": 2 * GB,
    "assumed_bits": None,
    "cache_bytes_per_token": 20_000,
    "state_bytes": 0,
    "weights": {"dense": GB, "embedding": 0, "experts": GB, "routed_per_token": GB // 8},
    "memory": {
        **{"dense": GB, "experts": GB, "slots": GB // 2, "cache": GB // 4, "states": 0, "working": GB // 8},
        **{"process": GB // 8, "budget": 4 * GB, "total": 2 * GB, "paged": True, "prefill_chunk": 512},
    },
    "speed": {"worst": 6.5, "usual": 12.25, "first_token_s": {"512": 1.5, "2048": 6.0}},
    "resident_speed": {"worst": 20.0, "usual": 20.0, "first_token_s": {"512": 1.0, "2048": 4.0}},
}


def listed(name: str, **facts: Any) -> dict[str, Any]:
    """Returns the facts of a model."""
    sizes = {"download_bytes": 2 * GB, "memory_bytes": 3 * GB, "bytes_here": 0, "partial_bytes": 0}
    about = {"about": f"About {name}", "licence": "Apache-2.0", "parameters": "1B", "runs": True}
    return {"name": name, "fits": True, "paged": False, "removable": False} | sizes | about | facts


@dataclass
class EchoLibrary:
    """``known`` are the facts of models by name; ``go`` lets downloads and quantisations end."""

    known: dict[str, dict[str, Any]] = field(default_factory=dict)
    formats: tuple[str, ...] = ("i4g64", "i8")
    go: threading.Event = field(default_factory=threading.Event)
    started: list[str] = field(default_factory=list)
    fails: str = ""

    def models(self) -> list[dict[str, Any]]:
        return list(self.known.values())

    def free_bytes(self) -> int:
        return 50 * GB

    def card(self, source: str) -> dict[str, Any]:
        return CARD

    def remove(self, name: str) -> int:
        if not self.known[name]["removable"]:
            raise NotFound(f"There is nothing of {name} to remove")
        freed = int(self.known[name]["bytes_here"])
        self.known[name] |= {"bytes_here": 0, "removable": False}
        return freed

    def discard(self, name: str) -> int:
        freed, self.known[name]["partial_bytes"] = int(self.known[name]["partial_bytes"]), 0
        return freed

    def quantize(self, source: str, name: str, format: str, progress: Progress) -> ModelEntry:
        made = f"quantized:{name}-{format}"
        self._work(made, progress)
        self.known[made] = listed(made, bytes_here=GB, removable=True)
        return model_entry(EchoModel(made, delay_s=0))

    def fetch(self, name: str, progress: Progress) -> ModelEntry:
        progress.completed = self.known[name]["partial_bytes"]
        self.known[name]["partial_bytes"] = GB
        self._work(name, progress)
        self.known[name] |= {"bytes_here": 2 * GB, "partial_bytes": 0, "removable": True}
        return model_entry(EchoModel(name, delay_s=0))

    def _work(self, name: str, progress: Progress) -> None:
        """Does half of the work, and the rest when it may."""
        self.started.append(name)
        progress.total = 2 * GB
        progress.advance(GB - progress.completed)
        while not self.go.wait(0.005):
            progress.check()
        if self.fails:
            raise Unavailable(self.fails, "Check the network")
        progress.advance(GB)
