"""Optimizers and the learning-rate schedule, compared with torch and the papers."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from weights import BEST_LEVEL

from freedive.model.params import Param, Role
from freedive.train.model import kernels
from freedive.train.model.optim import BETAS, EPS, MOMENTUM, Optimizer, learning_rate, orthogonal
from freedive.train.run import config

LR, DECAY, CLIP = 0.01, 0.1, 0.5
SHAPES = {"a": (3, 40, 17), "b": (2000, 9), "norm": (7,)}
ROLES: dict[str, Role] = {"a": "linear", "b": "embedding", "norm": "norm"}
TABLE = {name: Param(SHAPES[name], role) for name, role in ROLES.items()}


WAYS = [pytest.param((*level.values, threads), marks=level.marks) for level in BEST_LEVEL for threads in (1, 3)]


@pytest.fixture(params=WAYS, ids=str)
def _level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    level, threads = request.param
    monkeypatch.setattr(kernels, "current", lambda precision: kernels.kernels(threads, level, precision))


def some(seed: int) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=source) for name, shape in SHAPES.items()}


def gradients() -> Iterator[dict[str, Tensor]]:
    yield from map(some, range(1, 5))


@pytest.mark.usefixtures("_level")
def test_adamw_is_torch_s() -> None:
    weights, theirs = some(0), {name: torch.nn.Parameter(weight.double()) for name, weight in some(0).items()}
    ours = Optimizer(weights, TABLE, DECAY, muon=False)
    decayed = [
        {"params": [theirs["a"], theirs["b"]], "weight_decay": DECAY},
        {"params": [theirs["norm"]], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(decayed, lr=LR, betas=BETAS, eps=EPS)
    for given in gradients():
        for name, parameter in theirs.items():
            parameter.grad = given[name].double() * CLIP
        adamw.step()
        ours.step(given, LR, shrink=CLIP)
    for name, weight in weights.items():
        torch.testing.assert_close(weight.double(), theirs[name].detach(), rtol=2e-5, atol=2e-6)


@pytest.mark.usefixtures("_level")
def test_muon_is_the_paper_s() -> None:
    weights, weight, momentum = some(0), some(0)["a"].double(), torch.zeros(SHAPES["a"], dtype=torch.float64)
    ours = Optimizer(weights, TABLE, DECAY)
    for given in gradients():
        gradient = given["a"].double() * CLIP
        momentum = MOMENTUM * momentum + gradient
        update = orthogonal(gradient + MOMENTUM * momentum)
        weight = weight * (1 - LR * DECAY) - LR * 0.2 * math.sqrt(40) * update
        ours.step(given, LR, shrink=CLIP)
    torch.testing.assert_close(weights["a"].double(), weight, rtol=1e-4, atol=1e-4)


def test_warm_up_stable_decay() -> None:
    stage = config.preset("nano").pretrain
    rates = [learning_rate(stage, step) / stage.lr for step in range(stage.steps)]
    warm = round(stage.warmup * stage.steps)
    assert rates[: warm + 1] == pytest.approx([min(1, (step + 1) / warm) for step in range(warm + 1)])
    assert rates[warm : round(0.7 * stage.steps)] == pytest.approx([1] * (round(0.7 * stage.steps) - warm))
    assert rates[-1] == pytest.approx(stage.lr_end, abs=0.01)
    assert all(one >= other for one, other in zip(rates[warm:], rates[warm + 1 :], strict=False))


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (3, 8, 8)])
def test_orthogonal_brings_singular_values_near_one(shape: tuple[int, ...]) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonal(matrices))
    assert values.min() > 0.3
    assert values.max() < 1.3
