"""The one request that every wire format is parsed into."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from freedive.engine.request import Sampling
from freedive.errors import NotFound, UserError
from freedive.server.model import Generation, Model
from freedive.server.problems import ContextLengthExceeded


def find_model(models: Sequence[Model], name: str) -> Model:
    """Raises NotFound, naming the models that are loaded."""
    for model in models:
        if model.name == name:
            return model
    loaded = ", ".join(model.name for model in models)
    raise NotFound(f"the model '{name}' is not loaded", f"Loaded: {loaded}", param="model")


@dataclass(frozen=True)
class Job:
    """Prompts for one model, each answered ``num_choices`` times; ``continues`` where answers go on with them.

    ``keep`` tells which special tokens have a text.
    """

    model: Model
    prompts: Sequence[Sequence[int]]
    sampling: Sampling
    num_choices: int = 1
    continues: bool = False
    keep: Callable[[str], bool] | None = None

    def submit(self) -> list[Generation]:
        """One generation per choice, prompt by prompt; all or none. Raises what ``Engine.submit`` raises."""
        generations: list[Generation] = []
        try:
            for prompt in self.prompts:
                for choice in range(self.num_choices):
                    generations.append(self._submit(prompt, self._sampling(choice)))
        except UserError:
            for generation in generations:
                generation.cancel()
            raise
        return generations

    def _submit(self, prompt: Sequence[int], sampling: Sampling) -> Generation:
        try:
            return self.model.engine.submit(prompt, sampling, continues=self.continues, keep=self.keep)
        except UserError as error:
            if len(prompt) + (sampling.max_tokens or 1) > self.model.max_context:
                raise ContextLengthExceeded(error.what, error.remedy, param=error.param) from error
            raise

    def _sampling(self, choice: int) -> Sampling:
        """Choices of a seeded request differ from each other, and from run to run they do not."""
        seed = self.sampling.seed
        return self.sampling if seed is None else replace(self.sampling, seed=seed + choice)
