"""The sizes of models and the costs of a token, compared with the figures that makers publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_families_deepseek import K2, V3
from test_families_gemma import GEMMA3_27B
from test_families_mixtures import MIXTRAL_8X7B, QWEN3_30B
from test_families_openai import GPT_OSS_20B, GPT_OSS_120B
from tiny_models import save

from freedive.checkpoint.quantized.discover import METHODS
from freedive.errors import UserError
from freedive.families import describe_config
from freedive.families.storage import declared
from freedive.files import read_json
from freedive.model.size import cache_bound, cache_dim, footprint, layers_in_words, size
from freedive.model.spec import Experts

MXFP4 = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}
"""The quantisation in gpt-oss's config.json."""

INT4 = {
    "config_groups": {
        "group_0": {
            "input_activations": None,
            "output_activations": None,
            "targets": ["Linear"],
            "weights": {
                "actorder": None,
                "block_structure": None,
                "dynamic": False,
                "group_size": 32,
                "num_bits": 4,
                "observer": "minmax",
                "strategy": "group",
                "symmetric": True,
                "type": "int",
            },
        }
    },
    "format": "pack-quantized",
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|gate_up|down)_proj.*"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
}
"""The quantisation in the config.json of Kimi K2 Thinking, which has the sizes of K2."""


@pytest.mark.parametrize(
    ("config", "active", "with_embedding"),
    [
        (V3, 37, None),
        (K2, 32, None),
        (GPT_OSS_20B, 3.6, None),
        (GPT_OSS_120B, 5.1, None),
        (QWEN3_30B, None, 3.3),
        (MIXTRAL_8X7B, None, 12.9),
    ],
)
def test_makers_count_active_weights_with_or_without_the_embedding(
    config: dict[str, Any], active: float | None, with_embedding: float | None
) -> None:
    counted = size(describe_config(config))
    assert counted.embedding == config["vocab_size"] * config["hidden_size"]
    if active:
        assert round(counted.active / 1e9, 1 if active < 10 else 0) == active
    if with_embedding:
        assert (counted.active + counted.embedding) / 1e9 == pytest.approx(with_embedding, rel=0.02)


def test_a_token_reads_all_weights_but_unused_experts_and_embedding_rows() -> None:
    spec = describe_config(V3)
    counted, experts = size(spec), 58 * (256 - 8) * 3 * 7168 * 2048
    assert counted.total - counted.active == experts + 129279 * 7168


@pytest.mark.parametrize("name", ["llama", "qwen3_moe", "deepseek_v3", "gpt_oss", "granitemoeshared"])
def test_weights_are_as_many_as_transformers_has(name: str, tmp_path: Path) -> None:
    maker = save(name, tmp_path)
    spec = describe_config(read_json(tmp_path / "config.json"))
    counts = {key: weight.numel() for key, weight in maker.state_dict().items() if "inv_freq" not in key}
    if spec.tied:
        del counts["lm_head.weight"]
    assert size(spec).total == sum(counts.values())
    mixtures = [layer.ffn for layer in spec.layers if isinstance(layer.ffn, Experts)]
    experts = sum(count for key, count in counts.items() if ".experts." in key)
    idle = 1 - mixtures[0].router.num_chosen / mixtures[0].router.num_experts if mixtures else 0
    other_words = 0 if spec.tied else (spec.vocab_size - 1) * spec.hidden_dim
    assert size(spec).active == sum(counts.values()) - round(idle * experts) - other_words


def test_a_tied_embedding_is_read_whole_as_the_head() -> None:
    counted = size(describe_config(GEMMA3_27B))
    assert (counted.active, counted.embedding) == (counted.total, 0)


@pytest.mark.parametrize(
    ("config", "quantization", "gigabytes"),
    [(GPT_OSS_20B, MXFP4, 12.8 * 1.024**3), (GPT_OSS_120B, MXFP4, 60.8 * 1.024**3), (K2, INT4, 594)],
)
def test_quantised_checkpoints_are_as_large_as_published(
    config: dict[str, Any], quantization: dict[str, Any], gigabytes: float
) -> None:
    values = {**config, "quantization_config": quantization}
    storage = declared(values)
    assert storage
    assert storage.experts_only
    assert footprint(describe_config(values), storage.num_bytes).total / 1e9 == pytest.approx(gigabytes, rel=0.005)


NVFP4 = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"weights": {"num_bits": 4, "type": "float", "group_size": 16, "symmetric": True}}},
}

DECLARATIONS: list[tuple[dict[str, Any], float]] = [
    (V3["quantization_config"], 8 + 32 / 128**2),
    ({"quant_method": "fp8"}, 8),
    ({"quant_method": "fbgemm_fp8"}, 8),
    ({"quant_method": "mxfp4"}, 4 + 8 / 32),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, 4 + 20 / 128),
    ({"quant_method": "gptq", "bits": 8, "group_size": -1}, 8),
    ({"quant_method": "awq", "bits": 4, "group_size": 64}, 4 + 20 / 64),
    ({**INT4, "ignore": ["lm_head"]}, 4 + 16 / 32),
    (NVFP4, 4 + 8 / 16),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4 + 8 / 16),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, 8),
]


@pytest.mark.parametrize(("quantization", "bits"), DECLARATIONS)
def test_a_declared_method_has_its_bits(quantization: dict[str, Any], bits: float) -> None:
    for values in ({"quantization_config": quantization}, {"text_config": {"quantization_config": quantization}}):
        storage = declared(values)
        assert storage
        assert (storage.bits, storage.experts_only) == (bits, False)


def test_every_supported_method_has_a_size() -> None:
    assert {quantization["quant_method"] for quantization, _ in DECLARATIONS} == set(METHODS)


def test_unquantised_models_declare_no_method() -> None:
    assert declared({}) is None
    assert declared({"quantization_config": None}) is None


@pytest.mark.parametrize(
    ("quantization", "words"),
    [
        ({"quant_method": "bitsandbytes"}, "quantised by 'bitsandbytes'"),
        ("fp8", "quantised by None"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, r"quantization_config\.weight_block_size"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, r"quantization_config\.bits"),
        ({"quant_method": "awq", "bits": 4}, r"lacks quantization_config\.group_size"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, r"quantization_config\.config_groups"),
        ({"quant_method": "compressed-tensors"}, r"lacks quantization_config\S+\.num_bits"),
    ],
)
def test_an_invalid_quantisation_config_is_refused(quantization: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        declared({"quantization_config": quantization})


def test_footprints_and_parameter_counts_agree() -> None:
    spec = describe_config(QWEN3_30B)
    taken, counted = footprint(spec, lambda name, param: 2 * param.size), size(spec)
    assert (taken.total, taken.read) == (2 * counted.total, 2 * counted.active)


def test_the_cache_keeps_latents_whole_and_of_windows_what_they_see() -> None:
    assert cache_dim(describe_config(V3)) == 576 * 61
    assert cache_bound(describe_config(V3)) == 0
    oss = describe_config(GPT_OSS_20B)
    assert (cache_dim(oss), cache_bound(oss)) == (24 * 2 * 8 * 64, 12 * 128 * 2 * 8 * 64)


def test_layers_are_described_by_kind() -> None:
    for config, counts in ((V3, [3, 58]), (GPT_OSS_20B, [12, 12]), (QWEN3_30B, [48]), (GEMMA3_27B, [52, 10])):
        words = layers_in_words(describe_config(config))
        assert [int(text.partition(" x ")[0]) for text in words] == counts
    dense, sparse = layers_in_words(describe_config(V3))
    assert "feed-forward 18432" in dense
    assert "512 + 64 cached; 8 of 256 experts of 2048 by sigmoid in 4 of 8 groups, 2048 shared" in sparse
