"""Whole models in every weight format, alone and mixed, compared with the reference on the dequantised weights."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pytest
from tiny_models import Floats, prompt, take_steps
from weights import BEST_LEVEL, KERNELS, random_tensor

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.packed import PackedTensor, pack
from freedive.checkpoint.tensor import Tensor
from freedive.model.params import Param, params
from freedive.model.spec import Attention, FeedForward, Layer, ModelSpec, Rope
from freedive.ops.native import NativeRunner
from freedive.ops.reference import ReferenceRunner

ROPE = Rope(64, tuple(1e4 ** (-i / 32) for i in range(32)))
LAYER = Layer(Attention(num_heads=4, num_kv_heads=2, head_dim=64, rope=ROPE, scale=0.125), FeedForward(512))
MODEL = ModelSpec("test", 100, 256, (LAYER, LAYER), 1e-5, 128, tied=True)


def weight(param: Param, kind: str, seed: int) -> Tensor:
    """Returns random codes of ``kind`` with the spread of a trained matrix; vectors are floats near 1."""
    if len(param.shape) == 1:
        values = (1 + 0.3 * np.random.default_rng(seed).standard_normal(param.shape)).astype(np.float32)
        return Tensor("norm", param.shape, "F32", values.view(np.uint8).reshape(1, -1))
    rows, width = param.shape
    spread = float(dequantize(random_tensor(kind, rows, width, seed=seed)).std())
    return random_tensor(kind, rows, width, scale=0.02 * width**-0.5 / spread, seed=seed)


def pair(kinds: Sequence[str], level: str) -> tuple[NativeRunner, ReferenceRunner]:
    """Returns the same model twice; its weights get the formats ``kinds`` cyclically."""
    tensors = {
        name: weight(param, kind, seed)
        for seed, ((name, param), kind) in enumerate(zip(params(MODEL).items(), cycle(kinds), strict=False))
    }
    packed: dict[str, PackedTensor] = {name: pack(tensor) for name, tensor in tensors.items()}
    exact: dict[str, Floats] = {name: dequantize(tensor) for name, tensor in tensors.items()}
    native = NativeRunner(MODEL, packed, num_threads=2, max_rows=64, num_pages=8, cache_format="f32", isa=level)
    return native, ReferenceRunner(MODEL, exact, num_pages=8)


@pytest.mark.parametrize("level", BEST_LEVEL)
@pytest.mark.parametrize(
    "kinds", [*[(kind,) for kind in KERNELS.values()], tuple(KERNELS.values())], ids=lambda kinds: "+".join(kinds)
)
def test_native_equals_reference_on_dequantised_weights(kinds: Sequence[str], level: str) -> None:
    native, reference = pair(kinds, level)
    tokens = prompt(40, vocab=MODEL.vocab_size)
    got, expected = (take_steps(runner, [tokens], [[(0, 33)], [(0, 7)]], [[1, 0]])[0] for runner in (native, reference))
    assert np.abs(got - expected).max() < 1e-3 * expected.std()
