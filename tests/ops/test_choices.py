"""The reference sends every token to the experts that transformers sends it to."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_configs import TINY
from tiny_models import Floats, Ints, prompt, take_steps, tiny

from freedive.model import spec
from freedive.ops.reference import ReferenceOps, ReferenceRunner

TOKENS = prompt(70)


@pytest.mark.parametrize("name", TINY)
def test_the_chosen_experts_are_those_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choices: list[Ints] = []
    route = ReferenceOps.route

    def noted(ops: ReferenceOps, logits: Floats, router: spec.Router, *learned: Floats | None) -> Floats:
        routes = route(ops, logits, router, *learned)
        choices.append(np.sort(routes[:, 0], -1).astype(np.int64))
        return routes

    monkeypatch.setattr(ReferenceOps, "route", noted)
    model = tiny(name)
    take_steps(ReferenceRunner(model.spec, model.weights), [TOKENS], [[(0, len(TOKENS))]], [[0, 1, 2]])
    for ours, theirs in zip(choices, model.maker_choices(TOKENS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert len(np.unique(theirs)) > theirs.shape[1]  # not always the same
    assert len(choices) == sum(isinstance(layer.ffn, spec.Experts) for layer in model.spec.layers)
