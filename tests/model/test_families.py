"""Families give the same meaning to files as transformers does."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_models import maker_model

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors, maker_tensors
from freedive.errors import UserError
from freedive.families import describe
from freedive.model.params import params

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding


def tiny_model(name: str, **changes: Any) -> Any:
    """Returns a transformers model with random weights."""
    return maker_model(name, **{"max_position_embeddings": 256, **changes})


@pytest.fixture(scope="module", params=["llama", "mistral", "qwen2", "qwen3"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Returns a tiny model and the folder that transformers saved it in."""
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
    assert spec.layers[0].mixer.head_dim == (getattr(config, "head_dim", None) or 16)
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
    assert [layer.mixer.window for layer in spec.layers] == theirs


# --- GGUF ---------------------------------------------------------------------------------------------------------


def write_gguf(model: Any, path: Path, arch: str) -> None:
    """Writes ``model`` as llama.cpp's converter does, with the name tables of the gguf library."""
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

    assert spec.norm_eps == pytest.approx(reference.norm_eps, rel=1e-7)  # GGUF stores a float32
    for layer, other in zip(spec.layers, reference.layers, strict=True):
        assert layer.mixer.rope
        assert other.mixer.rope
        assert layer.mixer.rope.inv_freq == pytest.approx(other.mixer.rope.inv_freq, rel=1e-6)
        assert replace(layer.mixer, rope=other.mixer.rope) == other.mixer
        assert layer.mixer.rope.factor == other.mixer.rope.factor
        assert layer.ffn == other.ffn
    assert replace(spec, layers=reference.layers, norm_eps=reference.norm_eps) == reference
    tensors = canonical_tensors(ours, spec, rules)
    for key, tensor in canonical_tensors(theirs, reference, reference_rules).items():
        np.testing.assert_array_equal(dequantize(tensors[key]), dequantize(tensor), err_msg=key)


def test_transformers_reads_the_same_weights_out_of_a_llama_gguf(tmp_path: Path) -> None:
    """The GGUF loader of transformers undoes the row order independently."""
    model = tiny_model("llama", attention_bias=False, mlp_bias=False, head_dim=16)
    write_gguf(model, tmp_path / "model.gguf", "llama")
    loaded = load_gguf_checkpoint(tmp_path / "model.gguf", return_tensors=True, model_to_load=model)
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    spec, rules = describe(checkpoint)
    tensors = canonical_tensors(checkpoint, spec, rules)
    assert loaded["config"]["num_key_value_heads"] == spec.layers[0].mixer.num_kv_heads
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
    attn = spec.layers[0].mixer
    assert (spec.vocab_size, spec.hidden_dim, len(spec.layers), spec.layers[0].ffn.dim) == (49152, 576, 30, 1536)
    assert (attn.num_heads, attn.num_kv_heads, attn.head_dim, spec.max_context, spec.tied) == (9, 3, 64, 8192, True)
    assert sum(param.size for param in params(spec).values()) == 134_515_008  # 135M by the model card
    assert (tensors["embed"].format, tensors["layers.29.attn.q"].format) == ("Q8_0", "Q4_1")


def test_unknown_gguf_key_is_refused(tmp_path: Path) -> None:
    write_gguf(tiny_model("qwen3"), tmp_path / "model.gguf", "qwen3")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    checkpoint.config["qwen3.expert_count"] = 8
    with pytest.raises(UserError, match=r"qwen3\.expert_count = 8"):
        describe(checkpoint)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qwen3.rope.scaling.factor": 0.0}, r"qwen3\.rope\.scaling\.factor is 0\.0"),
        ({"qwen3.rope.scaling.type": "ntk"}, r"qwen3\.rope\.scaling\.type is 'ntk'"),
        ({"qwen3.rope.scaling.type": "longrope"}, r"rope_scaling\.short_factor is missing"),
        ({"qwen3.rope.scaling.type": "linear"}, r"lacks qwen3\.rope\.scaling\.factor"),
        ({"qwen3.attention.value_length": 16}, r"qwen3\.attention\.value_length"),
        ({"qwen3.rope.dimension_count": 64}, r"qwen3\.rope\.dimension_count"),
        ({"qwen3.attention.head_count_kv": [2, 1]}, r"qwen3\.attention\.head_count_kv is \[2, 1\]"),
    ],
)
def test_gguf_rope_and_head_keys_are_honoured_or_refused(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    write_gguf(tiny_model("qwen3"), tmp_path / "model.gguf", "qwen3")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    checkpoint.config.update(changes)
    with pytest.raises(UserError, match=words):
        describe(checkpoint)


@pytest.mark.parametrize("damage", [{"format": "F16"}, {"source": np.zeros((1, 64), np.uint8)}])
def test_unusable_rope_factors_of_a_gguf_are_refused(damage: dict[str, Any], tmp_path: Path) -> None:
    write_gguf(tiny_model("llama"), tmp_path / "model.gguf", "llama")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    checkpoint.tensors["rope_freqs.weight"] = replace(checkpoint.tensors["rope_freqs.weight"], **damage)
    with pytest.raises(UserError, match="rope_"):
        describe(checkpoint)


def test_rope_factors_beyond_any_head_are_not_listed(tmp_path: Path) -> None:
    """A sparse file may claim more of them than memory has room for."""
    write_gguf(tiny_model("llama"), tmp_path / "model.gguf", "llama")
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    many = {"shape": (1 << 20,), "source": np.zeros((1, 4 << 20), np.uint8)}
    checkpoint.tensors["rope_freqs.weight"] = replace(checkpoint.tensors["rope_freqs.weight"], **many)
    with pytest.raises(UserError, match=r"rope_freqs\.weight is F32 \[1048576\] instead of at most 2048 numbers"):
        describe(checkpoint)
