"""Downloads of models, which are served from then on: for Ollama's clients and for the page."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from freedive.errors import UserError
from freedive.server.library.line import Line, Progress
from freedive.server.models import ModelEntry, Models

Fetch = Callable[[str, Progress], ModelEntry]
"""Downloads a model by its name or address and updates the progress. Runs in a thread. Raises UserError."""


def no_fetch(name: str, progress: Progress) -> ModelEntry:
    """Raises UserError: the ``fetch`` of servers that do not download models."""
    raise UserError("This server does not fetch models", f"Fetch the model with: freedive pull {name}", param="model")


class Pulls:
    """Downloads models, one at a time, and adds them to the served models. Belongs to one event loop."""

    def __init__(self, models: Models, fetch: Fetch) -> None:
        self._models = models
        self._fetch = fetch
        self._line = Line("freedive-pull")

    async def pull(self, name: str, progress: Progress) -> None:
        """Downloads the model, unless it is served already. Raises the errors of the download.

        If the task is cancelled, the download stops; the next one of this model resumes it.
        """
        fetch = partial(self._fetch, name, progress)
        await self._line.run(fetch, progress, self._models.add, unless=lambda: name in self._models)
