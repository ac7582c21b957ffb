"""Files with all experts of a layer in one tensor, as transformers keeps them in memory, hold the same model."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors
from freedive.model.families import describe

FUSED = ("gpt_oss", "ernie4_5_moe", "hunyuan_moe", "hy_v3")


@pytest.mark.parametrize("name", FUSED)
def test_experts_are_read_out_of_one_tensor(name: str, tmp_path: Path) -> None:
    model = tiny(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.maker.save_pretrained(tmp_path, save_original_format=False)
    checkpoint = open_checkpoint(tmp_path)
    spec, rules = describe(checkpoint)
    assert spec == model.spec
    assert any(len(tensor.shape) == 3 for tensor in checkpoint.tensors.values())
    for key, tensor in canonical_tensors(checkpoint, spec, rules).items():
        np.testing.assert_array_equal(dequantize(tensor), model.weights[key], err_msg=key)
