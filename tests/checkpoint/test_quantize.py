"""`freedive quantize`: small errors, tensors that stay as they are, and folders that run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import save
from typer.testing import CliRunner
from weights import Floats, quantize, random_tensor

import freedive
from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.model_folder import DESCRIPTION, STORE
from freedive.checkpoint.packed import pack
from freedive.checkpoint.quantize import FORMATS, Target, to_bf16
from freedive.checkpoint.quantize import quantize as quantized
from freedive.checkpoint.tensor import Tensor
from freedive.cli import app
from freedive.errors import UserError
from freedive.model.params import Param, Role


def convert(tensor: Tensor, target: Target, *, name: str = "w", role: Role = "linear", threads: int = 1) -> Tensor:
    return quantized({name: tensor}, {name: Param(tensor.shape, role)}, target, num_threads=threads)[name]


def normal(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(0.02)


def error(tensor: Tensor, values: Floats) -> float:
    """Returns the relative squared error."""
    return float(((dequantize(tensor) - values) ** 2).sum() / (values**2).sum())


@pytest.mark.parametrize(("target", "most"), [("i4g64", 9e-3), ("i4g128", 1.1e-2), ("i8", 5e-5), ("bf16", 3e-6)])
def test_the_error_is_small(target: Target, most: float) -> None:
    values = normal(64, 512)
    assert 0 < error(convert(quantize("w", values, "F32"), target), values) < most


def test_four_bits_in_groups_of_32_are_closer_than_the_gguf_library() -> None:
    values = normal(64, 96)
    ours = convert(quantize("w", values, "F32"), "i4g64")
    assert ours.format == "Q4_0"
    assert error(ours, values) < 0.95 * error(quantize("w", values, "Q4_0"), values)


@pytest.mark.parametrize("target", FORMATS)
def test_a_width_takes_the_widest_groups_that_divide_it(target: Target) -> None:
    for width, expected in {
        256: {"i4g64": "I4G64", "i4g128": "I4G128", "i8": "I8G128"},
        192: {"i4g64": "I4G64", "i4g128": "I4G64", "i8": "Q8_0"},
        96: {"i4g64": "Q4_0", "i4g128": "Q4_0", "i8": "Q8_0"},
        45: {},
    }.items():
        tensor = convert(quantize("w", normal(3, width), "F32"), target)
        assert tensor.format == expected.get(target, "BF16")
        assert pack(tensor).format == tensor.format


@pytest.mark.parametrize("target", FORMATS)
def test_embedding_and_head_keep_eight_bits_and_the_rest_its_floats(target: Target) -> None:
    wide = "BF16" if target == "bf16" else "I8G128"
    matrix, vector, heads = (quantize("w", normal(*shape), "F32") for shape in ((4, 128), (128,), (2, 4, 128)))
    assert convert(matrix, target, name="embed", role="embedding").format == wide
    assert convert(matrix, target, name="head").format == wide
    assert convert(matrix, target, role="router") is matrix
    assert convert(vector, target, role="norm") is vector
    assert convert(heads, target, role="heads").format == ("BF16" if target == "bf16" else "F32")


@pytest.mark.parametrize("kind", ["F16", "Q8_0", "Q4_K", "MXFP4", "F8G128", "I4G128Z", "IQ2_XS", "F4G16"])
def test_any_format_can_be_converted(kind: str) -> None:
    source = random_tensor(kind, 40, 256)
    for target in FORMATS:
        tensor = convert(source, target)
        assert error(tensor, dequantize(source)) < 2e-2
        for begin, end in ((0, 40), (3, 17), (39, 40)):
            np.testing.assert_array_equal(tensor.rows(begin, end), tensor.data[begin:end])


def test_the_result_does_not_depend_on_threads() -> None:
    source = quantize("w", normal(700, 512), "F32")
    np.testing.assert_array_equal(convert(source, "i4g64").data, convert(source, "i4g64", threads=3).data)


@pytest.mark.parametrize("target", FORMATS)
def test_peculiar_groups(target: Target) -> None:
    """Zeros stay zeros; a single outlier, equal numbers and tiny numbers are restored."""
    values = np.zeros((5, 128), np.float32)
    values[1, 77] = -3
    values[2] = 0.5
    values[3] = 1e-7
    tensor = convert(quantize("w", values, "F32"), target)
    got = dequantize(tensor)
    np.testing.assert_allclose(got[[0, 1, 2, 4]], values[[0, 1, 2, 4]], rtol=1e-2, atol=0)
    np.testing.assert_allclose(got[3], values[3], atol=1e-7)
    for value in (np.nan, np.inf, -np.inf):
        values[4, 3] = value
        with pytest.raises(UserError, match="'w' has NaN or infinite"):
            pack(convert(quantize("w", values, "F32"), target))


def test_bfloats_round_to_nearest_even() -> None:
    values = np.random.default_rng(0).integers(0, 1 << 32, 10_000, np.uint32).view(np.float32)
    values = values[np.isfinite(values)].reshape(1, -1)
    np.testing.assert_array_equal(to_bf16(values), quantize("w", values, "BF16").data)


# --- the folder ---------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    return tmp_path


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["quantize", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def answer(path: Path) -> str:
    with freedive.load(str(path), cache_tokens=256) as model:
        return "".join(model.complete("Once upon a time", max_tokens=8, temperature=0))


def test_the_real_model_in_bf16_answers_as_before_from_its_folder_alone(smollm2_path: Path, home: Path) -> None:
    expected = answer(smollm2_path)
    out = invoke(str(smollm2_path), str(home / "out"), "--format", "bf16")
    assert f"freedive run {home / 'out'}" in out
    assert sorted(path.name for path in (home / "out").iterdir()) == [DESCRIPTION, STORE]
    assert answer(home / "out") == expected


def test_the_real_model_in_four_bits_is_small_and_says_something(smollm2_path: Path, home: Path) -> None:
    invoke(str(smollm2_path), str(home / "out"))
    assert (home / "out" / STORE).stat().st_size < 0.65 * 135e6 + 5e6
    assert len(answer(home / "out")) > 10


def test_a_folder_that_is_not_empty_is_refused(smollm2_path: Path, home: Path) -> None:
    (home / "file").touch()
    for folder in (home, home / "file", home / "file" / "below"):
        result = CliRunner().invoke(app, ["quantize", str(smollm2_path), str(folder)])
        assert (result.exit_code, result.stdout) == (1, "")
        assert "Name a" in result.stderr
    assert sorted(path.name for path in home.iterdir()) == ["file"]


def test_text_files_are_copied(home: Path) -> None:
    save("qwen3", home / "model")
    (home / "model" / "generation_config.json").write_text('{"temperature": 0.5}')
    invoke(str(home / "model"), str(home / "out"), "--format", "i8")
    names = {path.name for path in (home / "out").iterdir()}
    assert {"generation_config.json", "config.json", DESCRIPTION, STORE} <= names
    assert not any(name.endswith(".safetensors") for name in names)
