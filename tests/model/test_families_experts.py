"""Routers send each token to the experts that transformers sends it to, with the same weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tiny_configs import TINY
from tiny_models import Floats, prompt, take_steps, tiny

from freedive.model.spec import Experts
from freedive.ops.reference import ReferenceOps, ReferenceRunner

MIXTURES = [name for name in TINY if "moe" in name or name in ("mixtral", "gpt_oss", "hy_v3", "moonlight")]
MIXTURES += [name for name in TINY if name.startswith("deepseek")]
PROMPT = prompt(120, seed=5)


@pytest.mark.parametrize("name", MIXTURES)
def test_experts_and_weights_are_those_of_transformers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny(name)
    routes: list[Floats] = []
    route = ReferenceOps.route

    def noted(self: ReferenceOps, *args: Any) -> Floats:
        routes.append(route(self, *args))
        return routes[-1]

    monkeypatch.setattr(ReferenceOps, "route", noted)
    take_steps(ReferenceRunner(model.spec, model.weights), [PROMPT], [[(0, len(PROMPT))]], [list(range(4))])
    theirs = model.maker_routes(PROMPT)
    mixtures = [layer.ffn for layer in model.spec.layers if isinstance(layer.ffn, Experts)]
    assert len(mixtures) == len(routes) == len(theirs) > 0
    for moe, ours, (experts, weights) in zip(mixtures, routes, theirs, strict=True):
        order = ours[:, 0].argsort(-1)
        np.testing.assert_array_equal(np.take_along_axis(ours[:, 0], order, -1), experts)
        np.testing.assert_allclose(np.take_along_axis(ours[:, 1], order, -1), weights, rtol=1e-4)
        used = len(np.unique(experts))
        assert used > moe.router.num_experts // 2, f"{used} of {moe.router.num_experts} experts are ever chosen"
