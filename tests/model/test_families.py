"""Families describe what transformers means by the same files."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.model.families import describe
from freedive.model.families.config import Config
from freedive.model.families.rope import SCALINGS, max_context, rope
from freedive.model.params import params

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
    from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

BASE = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": (
        "Llama",
        {
            "head_dim": 32,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": LLAMA3_ROPE,
        },
    ),
    "mistral": ("Mistral", {"sliding_window": 8}),
    "qwen2": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1, "rope_parameters": YARN_ROPE},
    ),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


def tiny_model(name: str, **changes: Any) -> Any:
    """A transformers model with random weights."""
    family, settings = TINY[name]
    config = getattr(transformers, f"{family}Config")(**{**BASE, **settings, **changes})
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="module", params=TINY)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A tiny model and the folder that transformers saved it in."""
    model = tiny_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def test_saved_folder_gives_the_configured_shape_and_all_weights(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    checkpoint = open_checkpoint(folder)
    spec, rules = describe(checkpoint)
    tensors = canonical_tensors(checkpoint, spec, rules)
    config = model.config

    assert (spec.vocab_size, spec.hidden_dim, len(spec.layers)) == (128, 64, 2)
    assert (spec.norm_eps, spec.max_context, spec.tied) == (1e-6, 256, config.tie_word_embeddings)
    assert spec.layers[0].attention.head_dim == (getattr(config, "head_dim", None) or 16)
    assert {name: param.shape for name, param in params(spec).items()} == {n: t.shape for n, t in tensors.items()}
    weights = dict(model.named_parameters())
    for name, tensor in maker_tensors(tensors, rules).items():
        np.testing.assert_array_equal(dequantize(tensor), weights.pop(name).detach().numpy(), err_msg=name)
    assert not weights


def test_windows_are_those_of_transformers_layers(saved: tuple[Any, Path]) -> None:
    model, folder = saved
    spec, _ = describe(open_checkpoint(folder))
    theirs = [getattr(layer.self_attn, "sliding_window", None) or 0 for layer in model.model.layers]
    if model.config.model_type == "mistral":  # its mask reads the configuration
        theirs = [model.config.sliding_window] * 2
    assert [layer.attention.window for layer in spec.layers] == theirs


# --- GGUF ---------------------------------------------------------------------------------------------------------


def write_gguf(model: Any, path: Path, arch: str) -> None:
    """``model`` as llama.cpp's converter writes it, by the gguf library's own name tables."""
    config = model.config
    writer = gguf.GGUFWriter(path, arch)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    if config.rope_parameters["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])
        writer.add_rope_scaling_orig_ctx_len(config.rope_parameters["original_max_position_embeddings"])
    if config.rope_parameters["rope_type"] == "llama3":
        plain = LlamaRotaryEmbedding.compute_default_rope_parameters(config)[0]
        writer.add_tensor("rope_freqs.weight", (plain / model.model.rotary_emb.inv_freq).numpy())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, parameter in model.named_parameters():
        data = parameter.detach().numpy()
        num_heads = heads.get(name.split(".")[-2])
        if arch == "llama" and num_heads:
            data = data.reshape(num_heads, 2, head_dim // 2, -1).swapaxes(1, 2).reshape(data.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("name", ["llama", "qwen2", "qwen3"])
def test_gguf_gives_the_same_description_and_weights_as_safetensors(name: str, tmp_path: Path) -> None:
    model = tiny_model(name, **({"use_sliding_window": False} if name == "qwen2" else {}))
    model.save_pretrained(tmp_path / "folder")
    write_gguf(model, tmp_path / "model.gguf", name)
    ours, theirs = (open_checkpoint(tmp_path / entry) for entry in ("model.gguf", "folder"))
    spec, rules = describe(ours)
    reference, reference_rules = describe(theirs)

    assert spec.norm_eps == pytest.approx(reference.norm_eps, rel=1e-7)  # GGUF holds a float32
    for layer, other in zip(spec.layers, reference.layers, strict=True):
        assert layer.attention.rope
        assert other.attention.rope
        assert layer.attention.rope.inv_freq == pytest.approx(other.attention.rope.inv_freq, rel=1e-6)
        assert replace(layer.attention, rope=other.attention.rope) == other.attention
        assert layer.attention.rope.factor == other.attention.rope.factor
        assert layer.ffn == other.ffn
    assert replace(spec, layers=reference.layers, norm_eps=reference.norm_eps) == reference
    tensors = canonical_tensors(ours, spec, rules)
    for key, tensor in canonical_tensors(theirs, reference, reference_rules).items():
        np.testing.assert_array_equal(dequantize(tensors[key]), dequantize(tensor), err_msg=key)


def test_transformers_reads_the_same_weights_out_of_a_llama_gguf(tmp_path: Path) -> None:
    """Its own GGUF loader undoes the row order independently."""
    model = tiny_model("llama", attention_bias=False, mlp_bias=False, head_dim=16)
    write_gguf(model, tmp_path / "model.gguf", "llama")
    loaded = load_gguf_checkpoint(tmp_path / "model.gguf", return_tensors=True, model_to_load=model)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    spec, rules = describe(checkpoint)
    tensors = canonical_tensors(checkpoint, spec, rules)
    assert loaded["config"]["num_key_value_heads"] == spec.layers[0].attention.num_kv_heads
    for name in ("q", "k", "v"):
        theirs = loaded["tensors"][f"model.layers.1.self_attn.{name}_proj.weight"].numpy()
        np.testing.assert_array_equal(dequantize(tensors[f"layers.1.attn.{name}"]), theirs)


def test_rules_restore_the_makers_bytes(tmp_path: Path) -> None:
    write_gguf(tiny_model("llama"), tmp_path / "model.gguf", "llama")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    spec, rules = describe(checkpoint)
    restored = maker_tensors(canonical_tensors(checkpoint, spec, rules), rules)
    assert checkpoint.tensors.keys() - restored.keys() == {"rope_freqs.weight"}
    for name, tensor in restored.items():
        assert tensor.data.tobytes() == checkpoint.tensors[name].data.tobytes()
        assert (tensor.name, tensor.shape) == (name, checkpoint.tensors[name].shape)


def test_real_smollm2_is_described(smollm2_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    spec, rules = describe(checkpoint)
    tensors = canonical_tensors(checkpoint, spec, rules)
    attn = spec.layers[0].attention
    assert (spec.vocab_size, spec.hidden_dim, len(spec.layers), spec.layers[0].ffn.dim) == (49152, 576, 30, 1536)
    assert (attn.num_heads, attn.num_kv_heads, attn.head_dim, spec.max_context, spec.tied) == (9, 3, 64, 8192, True)
    assert sum(param.size for param in params(spec).values()) == 134_515_008  # the model card's 135M
    assert (tensors["embed"].format, tensors["layers.29.attn.q"].format) == ("Q8_0", "Q4_1")


# --- rope ---------------------------------------------------------------------------------------------------------

ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "llama3": LLAMA3_ROPE,
    "llama 3.1": {**LLAMA3_ROPE, "original_max_position_embeddings": 8192},
    "yarn": YARN_ROPE,
    "qwen2.5 yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn mscale": dict(YARN_ROPE, mscale=0.707, mscale_all_dim=1.0, beta_fast=16, beta_slow=2),
    "yarn untruncated": dict(YARN_ROPE, truncate=False, attention_factor=1.3),
}


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128])
@pytest.mark.parametrize("name", ROPES)
def test_rope_is_that_of_transformers(name: str, head_dim: int) -> None:
    settings = ROPES[name]
    theirs = transformers.LlamaConfig(**{**BASE, "head_dim": head_dim, "rope_parameters": dict(settings)})
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
        config.refuse_unread("llama")
        assert ours.dim == head_dim
        np.testing.assert_allclose(ours.inv_freq, inv_freq.numpy(), rtol=5e-7)
        assert ours.factor == pytest.approx(factor)


def test_fixed_ntk_alpha_is_that_of_hunyuan() -> None:
    settings = {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0}
    theirs = transformers.HunYuanDenseV1Config(**{**BASE, "head_dim": 32, "rope_parameters": dict(settings)})
    inv_freq = HunYuanDenseV1RotaryEmbedding(theirs).inv_freq.numpy()
    ours = rope(Config({"max_position_embeddings": 256, "rope_parameters": settings}), 32)
    np.testing.assert_allclose(ours.inv_freq, inv_freq, rtol=5e-7)


def test_every_scaling_is_compared() -> None:
    assert {settings["rope_type"] for settings in ROPES.values()} == set(SCALINGS)


def test_yarn_stretches_the_context() -> None:
    table = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert max_context(Config({"max_position_embeddings": 32768, "rope_scaling": table})) == 131072


# --- what is refused ----------------------------------------------------------------------------------------------

LLAMA_JSON: dict[str, Any] = dict(BASE, architectures=["LlamaForCausalLM"], model_type="llama", rms_norm_eps=1e-5)


def described(**changes: Any) -> Any:
    return describe(Checkpoint("safetensors", {**LLAMA_JSON, **changes}, {}))[0]


def test_configurations_of_real_models_pass() -> None:
    smollm2 = {
        "is_llama_config": True,
        "rope_interleaved": False,
        "rope_scaling": None,
        "pretraining_tp": 1,
        "use_cache": True,
    }
    assert described(**smollm2, torch_dtype="bfloat16", rope_theta=100000).layers[0].attention.rope.inv_freq[0] == 1
    qwen = {
        "architectures": ["Qwen2ForCausalLM"],
        "use_sliding_window": False,
        "sliding_window": 32768,
        "max_window_layers": 21,
    }
    assert described(**qwen, use_mrope=False).layers[0].attention.window == 0
    old_mistral = {"architectures": ["MistralForCausalLM"], "sliding_window": None}
    assert described(**old_mistral).layers[0].attention.window == 0
    assert described(architectures=["MistralForCausalLM"]).layers[0].attention.window == 4096


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0, "beta_fast": 3}}, r"rope_scaling\.beta_fast"),
        ({"rope_scaling": {"type": "longrope"}}, "longrope"),
        ({"rope_scaling": [2]}, "not an object"),
        ({"rope_scaling": {"type": "linear"}}, r"lacks rope_scaling\.factor"),
        ({"rope_scaling": {**LLAMA3_ROPE, "high_freq_factor": 1.0}}, "high_freq_factor"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"num_hidden_layers": 2**40}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_attention_heads": 3}, "num_key_value_heads"),
        ({"num_attention_heads": 6}, "does not divide a hidden size of 64"),
        ({"num_key_value_heads": 3}, "num_key_value_heads"),
        ({"head_dim": 7}, "odd"),
        ({"hidden_size": -1}, "hidden_size"),
        ({"hidden_size": 64.0}, "hidden_size"),
        ({"hidden_size": True}, "hidden_size"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"vocab_size": None}, "lacks vocab_size"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"attention_bias": 1}, "attention_bias"),
        ({"architectures": ["LlamaForCausalML"], "model_type": "x"}, "nearest: LlamaForCausalLM"),
        ({"architectures": ["\x1b[2J\n"], "model_type": None}, "does not know the architecture"),
        ({"architectures": None, "model_type": None}, "does not say which architecture"),
        ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_impossible_and_unknown_configurations_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        described(**changes)
    assert str(caught.value).isprintable()


def test_gguf_faults_are_named_as_the_file_spells_them() -> None:
    config = {"general.architecture": "qwen2", "qwen2.block_count": 0, "qwen2.expert_count": 8}
    with pytest.raises(UserError, match=r"qwen2\.attention\.head_count"):
        describe(Checkpoint("gguf", config, {}))
    with pytest.raises(UserError, match="deepseek99"):
        describe(Checkpoint("gguf", {"general.architecture": "deepseek99"}, {}))


def test_unknown_gguf_key_is_refused(tmp_path: Path) -> None:
    write_gguf(tiny_model("qwen3"), tmp_path / "model.gguf", "qwen3")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    checkpoint.config["qwen3.expert_count"] = 8
    with pytest.raises(UserError, match=r"qwen3\.expert_count = 8"):
        describe(checkpoint)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qwen3.rope.scaling.factor": 2.0}, r"qwen3\.rope\.scaling\.factor = 2\.0"),  # of which type?
        ({"qwen3.rope.scaling.type": "longrope"}, r"qwen3\.rope\.scaling\.type is 'longrope'"),
        ({"qwen3.rope.scaling.type": "linear"}, r"lacks qwen3\.rope\.scaling\.factor"),
        ({"qwen3.attention.value_length": 16}, r"qwen3\.attention\.value_length"),
        ({"qwen3.rope.dimension_count": 64}, r"qwen3\.rope\.dimension_count"),
        ({"qwen3.attention.head_count_kv": [2, 2]}, r"qwen3\.attention\.head_count_kv is \[2, 2\]"),
    ],
)
def test_gguf_rope_and_head_keys_are_honoured_or_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_gguf(tiny_model("qwen3"), tmp_path / "model.gguf", "qwen3")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    checkpoint.config.update(changes)
    with pytest.raises(UserError, match=words):
        describe(checkpoint)


@pytest.mark.parametrize("damage", [{"format": "F16"}, {"data": np.zeros((1, 64), np.uint8)}])
def test_unusable_rope_factors_of_a_gguf_are_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    write_gguf(tiny_model("llama"), tmp_path / "model.gguf", "llama")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    checkpoint.tensors["rope_freqs.weight"] = replace(checkpoint.tensors["rope_freqs.weight"], **damage)
    with pytest.raises(UserError, match="rope_"):
        describe(checkpoint)


# --- tensors that do not fit --------------------------------------------------------------------------------------


def tensors_of(spec: Any, rules: Any) -> dict[str, Tensor]:
    """The maker's tensors of ``spec``, without bytes."""
    empty = np.zeros((1, 0), np.uint8)
    ours = {name: Tensor(name, param.shape, "F32", empty) for name, param in params(spec).items()}
    return dict(maker_tensors(ours, rules))


def test_missing_unexpected_and_misshapen_tensors_are_named() -> None:
    spec, rules = describe(Checkpoint("safetensors", LLAMA_JSON, {}))
    tensors = tensors_of(spec, rules)
    canonical_tensors(Checkpoint("safetensors", {}, tensors), spec, rules)

    def fault(**changes: Tensor | None) -> str:
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        files = {key: value for key, value in {**tensors, **changed}.items() if value is not None}
        with pytest.raises(UserError) as caught:
            canonical_tensors(Checkpoint("safetensors", {}, files), spec, rules)
        return str(caught.value)

    name = "model.layers.1.mlp.up_proj.weight"
    key = name.replace(".", "__")
    assert f"{name} [96, 64] is missing" in fault(**{key: None})
    assert f"'{name}' is [96, 63] instead of [96, 64]" in fault(**{key: replace(tensors[name], shape=(96, 63))})
    norm = tensors["model.norm.weight"]
    assert "is Q8_0 instead of F32" in fault(model__norm__weight=replace(norm, format="Q8_0"))
    for layer, extra in ((2, "mlp.up_proj.weight"), (0, "self_attn.q_proj.bias"), ("{}", "mlp.up_proj.weight")):
        extra = f"model.layers.{layer}.{extra}"
        assert f"'{extra}' is unexpected" in fault(**{extra: replace(tensors[name], name=extra)})
    assert "and 17 more" in fault(**dict.fromkeys(tensors))


def test_buffers_and_the_copy_of_a_tied_head_are_ignored() -> None:
    spec, rules = describe(Checkpoint("safetensors", {**LLAMA_JSON, "tie_word_embeddings": True}, {}))
    tensors = tensors_of(spec, rules)
    for extra in ("lm_head.weight", "model.layers.1.self_attn.rotary_emb.inv_freq"):
        tensors[extra] = replace(tensors["model.norm.weight"], name=extra)
    assert list(canonical_tensors(Checkpoint("safetensors", {}, tensors), spec, rules)) == list(params(spec))
