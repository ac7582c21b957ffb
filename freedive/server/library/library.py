"""What the server may know of and do with models on this machine's disk; ``freedive serve`` implements it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from freedive.errors import NotFound, UserError
from freedive.json_object import Json
from freedive.server.library.line import Progress
from freedive.server.models import ModelEntry


class Library(Protocol):
    """The models of the catalogue and of this machine. Every method may read files, so it runs in a thread.

    Errors are meant for clients: they name no folders of this machine.
    """

    @property
    def formats(self) -> Sequence[str]:
        """The formats into which models can be quantised."""
        ...

    def models(self) -> list[Json]:
        """Returns the facts of ``freedive list``, and ``partial_bytes``: what an unfinished download has."""
        ...

    def free_bytes(self) -> int:
        """Returns the space on the disk that models may take."""
        ...

    def card(self, source: str) -> Json:
        """Returns what ``freedive plan`` predicts; of a model that can only be estimated, fewer facts."""
        ...

    def remove(self, name: str) -> int:
        """Deletes a model and returns the number of bytes freed. Raises NotFound."""
        ...

    def discard(self, name: str) -> int:
        """Deletes what an unfinished download left, waiting for its end, and returns the number of bytes freed."""
        ...

    def quantize(self, source: str, name: str, format: str, progress: Progress) -> ModelEntry:
        """Makes a quantised copy of the model ``name`` and updates the progress. Leaves nothing if it is given up."""
        ...


class NoLibrary:
    """The library of a server that only offers the models it was given."""

    formats: Sequence[str] = ()

    def models(self) -> list[Json]:
        """Returns no model."""
        return []

    def free_bytes(self) -> int:
        """Returns 0: nothing can be stored."""
        return 0

    def card(self, source: str) -> Json:
        """Raises NotFound."""
        raise NotFound("This server predicts no speeds", "Use: freedive plan MODEL")

    def remove(self, name: str) -> int:
        """Raises UserError."""
        raise UserError("This server removes no models", "Use: freedive rm MODEL")

    def discard(self, name: str) -> int:
        """Returns 0: there are no downloads."""
        return 0

    def quantize(self, source: str, name: str, format: str, progress: Progress) -> ModelEntry:
        """Raises UserError."""
        raise UserError("This server quantises no models", "Use: freedive quantize MODEL FOLDER")
