"""gpt-oss is described as OpenAI publishes it, and its experts are read in every form in which they are stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from published import active_billions, total_billions
from tiny_models import save

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.families import describe, describe_config
from freedive.model.params import params
from freedive.model.spec import ModelSpec

GPT_OSS_20B: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2880,
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 12,
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 8,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
    "vocab_size": 201088,
}
GPT_OSS_120B = {
    **GPT_OSS_20B,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "num_hidden_layers": 36,
    "num_local_experts": 128,
}


def figures(spec: ModelSpec) -> tuple[float, float]:
    return round(total_billions(spec), 2), round(active_billions(spec, embedding=False), 2)


def test_gpt_oss_is_as_its_card_says() -> None:
    """OpenAI's table counts the output head among the active parameters, but not the embedding."""
    spec = describe_config(GPT_OSS_20B)
    first, second = spec.layers[0].mixer, spec.layers[1].mixer
    assert (first.window, second.window, first.sinks, spec.max_context) == (128, 0, True, 131072)
    assert figures(spec) == (20.91, 3.61)
    assert figures(describe_config(GPT_OSS_120B)) == (116.83, 5.13)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"swiglu_alpha": 1.5}, "swiglu_alpha"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"layer_types": ["sliding_attention"]}, "layer_types"),
        ({"num_experts_per_tok": 33}, "num_experts_per_tok"),
    ],
)
def test_what_gpt_oss_is_not_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        describe_config({**GPT_OSS_20B, **changes})


def test_alternating_rows_of_stacked_experts_are_told_apart(tmp_path: Path) -> None:
    """Both forms: [experts, in, out] in floats, and MXFP4's [experts, out, in], here with floats."""
    model = save("gpt_oss", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    spec, rules = describe(checkpoint)
    tensors = canonical_tensors(checkpoint, spec, rules)
    experts = model.model.layers[1].mlp.experts
    wanted = {
        "gate": experts.gate_up_proj[5, :, 0::2].T,
        "up": experts.gate_up_proj[5, :, 1::2].T,
        "down": experts.down_proj[5].T,
        "gate_bias": experts.gate_up_proj_bias[5, 0::2],
        "up_bias": experts.gate_up_proj_bias[5, 1::2],
        "down_bias": experts.down_proj_bias[5],
    }
    stored = {tensor.name: tensor for tensor in map(_as_blocks, checkpoint.tensors.values())}
    again = canonical_tensors(Checkpoint("safetensors", {}, stored), spec, rules)
    for name, weight in wanted.items():
        for read in (tensors, again):
            got = dequantize(read[f"layers.1.ffn.experts.5.{name}"])
            np.testing.assert_array_equal(got, weight.detach().numpy(), err_msg=name)
    assert list(tensors) == list(params(spec))
    for name, tensor in maker_tensors(tensors, rules).items():
        assert tensor.data.tobytes() == checkpoint.tensors[name].data.tobytes(), name


def _as_blocks(tensor: Tensor) -> Tensor:
    """Returns a stack of transposed matrices under the name that MXFP4 has when a file is opened."""
    if len(tensor.shape) < 3:
        return tensor
    values = np.ascontiguousarray(dequantize(tensor).swapaxes(1, 2))
    rows = values.view(np.uint8).reshape(-1, 4 * values.shape[2])
    return Tensor(f"{tensor.name}.weight", values.shape, "F32", rows)
