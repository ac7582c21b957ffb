"""What the server may do about fine-tuning; ``freedive serve`` implements it, in a process with torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.library.line import Progress
from freedive.server.models import ModelEntry

SCHEME = "tuned:"
"""What the names of fine-tuned models begin with."""


@dataclass(frozen=True)
class Draft:
    """A fine-tuning that a user asks for: the bytes of the ``file``, and its settings.

    ``base`` is the name under which the base model is served, ``source`` the one by which the operator named it. The
    result is ``tuned:NAME``. ``epochs`` None leaves their number to the size of the file. The learning rate is higher
    than that of ``freedive finetune``: small files have few steps.
    """

    base: str
    source: str
    name: str
    file: str
    data: bytes
    epochs: float | None = None
    rank: int = 8
    learning_rate: float = 5e-4


Tell = Callable[[Json], None]
"""Receives an event: ``plan``, ``sample``, or the ``loss`` and ``held_out_loss`` of a ``step``. Called in a thread."""


class Finetuning(Protocol):
    """Fine-tuning on this machine. Every method may read files, so it runs in a thread.

    Errors are meant for clients: they name no folders of this machine.
    """

    @property
    def offered(self) -> bool:
        """Whether this server fine-tunes models at all."""
        ...

    def missing(self) -> str:
        """Returns what has to be installed first, "" if nothing."""
        ...

    def estimate(self, draft: Draft) -> Json:
        """Returns what the fine-tuning would take. Raises UserError if the file or the model cannot be used."""
        ...

    def tune(self, draft: Draft, progress: Progress, tell: Tell) -> ModelEntry:
        """Makes the model, and updates the progress in steps. Leaves nothing if it is given up or fails."""
        ...

    def tuned(self) -> list[Json]:
        """Returns the facts of the models that were made: ``name``, ``base``, ``file``, ``date``, ``sample`` and
        ``curve``."""
        ...


class NoFinetuning:
    """The fine-tuning of a server that only offers the models it was given."""

    offered = False

    def missing(self) -> str:
        """Returns that this server cannot do it."""
        return "This server fine-tunes no models. Use: freedive finetune MODEL data.text=FILE"

    def estimate(self, draft: Draft) -> Json:
        """Raises UserError."""
        raise UserError(self.missing())

    def tune(self, draft: Draft, progress: Progress, tell: Tell) -> ModelEntry:
        """Raises UserError."""
        raise UserError(self.missing())

    def tuned(self) -> list[Json]:
        """Returns no model."""
        return []
