"""Inverse frequencies and factors equal those of transformers, from both formats of configurations."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from tiny_configs import BASE, LLAMA3_ROPE, YARN_ROPE

from freedive.families.config import Config
from freedive.families.rope import SCALINGS, max_context, plain_rope, rope

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import HunYuanDenseV1Config, LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "llama3": LLAMA3_ROPE,
    "llama 3.1": {**LLAMA3_ROPE, "original_max_position_embeddings": 8192},
    "llama 4": {**LLAMA3_ROPE, "low_freq_factor": 1.0, "high_freq_factor": 1.0},
    "yarn": YARN_ROPE,
    "qwen2.5 yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn mscale": dict(YARN_ROPE, mscale=0.707, mscale_all_dim=1.0, beta_fast=16, beta_slow=2),
    "gemma 4": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    "gemma 4 linear": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.3, "factor": 8.0},
    "yarn untruncated": dict(YARN_ROPE, truncate=False, attention_factor=1.3),
}


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("name", ROPES)
def test_rope_is_that_of_transformers(name: str, head_dim: int) -> None:
    settings = ROPES[name]
    theirs = LlamaConfig(**{**BASE, "head_dim": head_dim, "rope_parameters": dict(settings)})
    compute = ROPE_INIT_FUNCTIONS.get(settings["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters)
    inv_freq, factor = compute(theirs, device="cpu")
    old = {key: value for key, value in settings.items() if key not in ("rope_theta", "rope_type")}
    shapes: list[dict[str, Any]] = [
        {"rope_parameters": settings},
        {"rope_theta": settings["rope_theta"], "rope_scaling": {"type": settings["rope_type"], **old}},
    ]
    for shape in shapes:
        config = Config({"max_position_embeddings": 256, **shape})
        ours = rope(config, head_dim)
        assert max_context(config) >= 256
        config.refuse_unread("llama")
        assert ours.dim == head_dim
        np.testing.assert_allclose(ours.inv_freq, inv_freq.numpy(), rtol=5e-7)
        assert ours.factor == pytest.approx(factor)


def test_inverse_frequencies_are_rounded_as_torch_rounds_them() -> None:
    """A few may differ, since torch's own powers are not always the nearest number."""
    apart = total = 0
    for theta in (1e4, 5e4, 1e5, 1.5e5, 2e5, 5e5, 1e6, 1e7):
        for dim in (16, 32, 64, 80, 96, 128, 192, 256):
            theirs = 1.0 / theta ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim)
            ours = np.array(plain_rope(theta, dim).inv_freq, np.float32)
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=2.5e-7)
            apart, total = apart + int((ours != theirs.numpy()).sum()), total + dim // 2
    assert apart / total < 0.02


def test_fixed_ntk_alpha_is_that_of_hunyuan() -> None:
    settings = {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0}
    theirs = HunYuanDenseV1Config(**{**BASE, "head_dim": 32, "rope_parameters": dict(settings)})
    inv_freq = HunYuanDenseV1RotaryEmbedding(theirs).inv_freq.numpy()
    ours = rope(Config({"max_position_embeddings": 256, "rope_parameters": settings}), 32)
    np.testing.assert_allclose(ours.inv_freq, inv_freq, rtol=5e-7)


@pytest.mark.parametrize("longest", [64, 256])
@pytest.mark.parametrize("kind", ["longrope", "su"])
def test_longrope_is_that_of_transformers_at_the_maximum_context(longest: int, kind: str) -> None:
    lists = {"short_factor": [1.0, 1.0, 1.5, 2.0], "long_factor": [1.0, 2.0, 4.0, 8.0]}
    settings = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 64, **lists}
    theirs = LlamaConfig(**{**BASE, "max_position_embeddings": longest, "head_dim": 8, "rope_parameters": settings})
    inv_freq, factor = ROPE_INIT_FUNCTIONS["longrope"](theirs, device="cpu", seq_len=longest)
    table = {"rope_type": kind, "original_max_position_embeddings": 64, **lists}
    ours = rope(Config({"max_position_embeddings": longest, "rope_scaling": table}), 8)
    np.testing.assert_allclose(ours.inv_freq, inv_freq.numpy(), rtol=5e-7)
    assert ours.factor == pytest.approx(factor)


def test_every_scaling_is_compared() -> None:
    assert {settings["rope_type"] for settings in ROPES.values()} | {"longrope", "su"} == set(SCALINGS)


def test_yarn_stretches_the_context() -> None:
    table = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert max_context(Config({"max_position_embeddings": 32768, "rope_scaling": table})) == 131072
