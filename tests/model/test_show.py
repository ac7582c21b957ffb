"""``freedive show`` for published configurations, for files and for stored models."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import gguf
import pytest
from test_families_deepseek import K2, K25, V3
from test_families_mixtures import QWEN3_30B
from test_families_openai import GPT_OSS_20B
from tiny_models import save
from typer.testing import CliRunner

from freedive.cli import app
from freedive.commands.formatting import count_text, size_text
from freedive.commands.quantize import quantize
from freedive.hub import cache
from freedive.hub.catalogue import catalogue

SHOWN = {
    "DeepSeek-V3": (
        V3,
        ["deepseek_v3", "671B, 36.6B active (37.6B with the embedding)", "163840 tokens", "129280 tokens"],
        ["3 x latent attention, 128 heads", "58 x latent attention, 128 heads", "8 of 256 experts of 2048 by sigmoid"],
        ["fp8     674.2 GB, 38.7 GB read", "bf16    1342.1 GB", f"70.3 kB for each token ({576 * 61} numbers)"],
    ),
    "Kimi-K2": (
        K2,
        ["deepseek_v3", "1.03T, 31.7B active (32.9B with the embedding)", "131072 tokens", "163840 tokens"],
        ["1 x latent attention, 64 heads", "60 x latent attention, 64 heads", "8 of 384 experts of 2048 by sigmoid"],
        ["fp8     1029.7 GB, 33.5 GB read", "i4g64   547.4 GB", f"70.3 kB for each token ({576 * 61} numbers)"],
    ),
    "Qwen3-30B-A3B": (
        QWEN3_30B,
        ["qwen3_moe", "30.5B, 3.04B active (3.35B with the embedding)", "40960 tokens", "151936 tokens"],
        ["48 x attention, 32 heads of 128 on 4, norms of heads; 8 of 128 experts of 768 by softmax"],
        ["bf16    61.1 GB, 6.1 GB read", "i8      31.0 GB, 3.1 GB read", "98.3 kB for each token (49152 numbers)"],
    ),
    "gpt-oss-20b": (
        {**GPT_OSS_20B, "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn"]}},
        ["gpt_oss", "20.9B, 3.61B active (4.19B with the embedding)", "131072 tokens", "201088 tokens"],
        [
            "12 x attention, 64 heads of 64 on 8, window 128, sinks, biases",
            "12 x attention, 64 heads of 64 on 8, sinks",
        ],
        [
            "mxfp4   13.8 GB, 3.7 GB read",
            "49.2 kB for each token (24576 numbers)",
            "window or chunks look back at 3.1 MB",
        ],
    ),
}
"""A published config.json, and the expected text for the model, for its layers, and for its bytes."""


FACT = re.compile(r"^(\S+(?: \S+)*) +(.*(?:\n .*)*)\n", re.MULTILINE)
"""A name, and text that may continue in indented lines."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def show(ref: str | Path) -> dict[str, str]:
    """Returns the printed facts by name."""
    result = CliRunner().invoke(app, ["show", str(ref)])
    assert (result.exit_code, result.stderr) == (0, "")
    return {name: re.sub(r"\n +", "\n", text) for name, text in FACT.findall(result.stdout)}


def refusal(ref: str | Path) -> str:
    result = CliRunner().invoke(app, ["show", str(ref)])
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.mark.parametrize("name", SHOWN)
def test_published_configurations_show_the_published_figures(name: str, tmp_path: Path) -> None:
    config, whole, layers, sizes = SHOWN[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = show(tmp_path / "config.json")
    assert [facts[key] for key in ("family", "parameters", "context", "vocabulary")] == whole
    assert all(words in facts["layers"] for words in layers)
    assert all(words in facts["weights"] + facts["key-value cache"] for words in sizes)


def test_the_text_part_of_a_wrapped_configuration_is_shown(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(K25))
    facts = show(tmp_path / "config.json")
    assert (facts["family"], facts["context"]) == ("deepseek_v3", "262144 tokens")
    assert facts["weights"].startswith("fp8")


def test_a_folder_is_shown_as_it_is_stored(tmp_path: Path) -> None:
    maker = save("qwen3_moe", tmp_path / "model")
    counts = {name: weight.numel() for name, weight in maker.state_dict().items()}
    total, config = 4 * sum(counts.values()), maker.config
    idle = 1 - config.num_experts_per_tok / config.num_experts
    unread = 4 * idle * sum(count for name, count in counts.items() if ".experts." in name)
    unread += 4 * (counts["model.embed_tokens.weight"] - config.hidden_size)
    expected = f"F32  {size_text(total)}, {size_text(total - unread)} read for each token"
    for path in (tmp_path / "model", tmp_path / "model" / "model.safetensors"):
        assert show(path)["weights"] == expected


def test_a_folder_that_freedive_has_written_is_shown_as_it_is_stored(tmp_path: Path) -> None:
    maker = save("qwen3_moe", tmp_path / "model")
    quantize(str(tmp_path / "model"), tmp_path / "small", "bf16")
    taken = sum(
        weight.numel() * (2 if weight.ndim > 1 and not name.endswith("mlp.gate.weight") else 4)  # routers stay float
        for name, weight in maker.state_dict().items()
    )
    facts = show(tmp_path / "small")
    assert facts["family"] == "qwen3_moe"
    assert facts["weights"].startswith(f"BF16, F32  {size_text(taken)}, ")


def test_a_gguf_file_is_shown_as_it_is_stored(smollm2_path: Path, tmp_path: Path) -> None:
    shutil.copy(smollm2_path, tmp_path / "m.gguf")
    facts = show(tmp_path / "m.gguf")
    taken = size_text(sum(int(tensor.n_bytes) for tensor in gguf.GGUFReader(smollm2_path).tensors))
    assert facts["weights"] == f"Q4_1, Q8_0  {taken}, {taken} read for each token"
    assert (facts["family"], facts["parameters"]) == ("llama", "135M")
    assert "30 x attention, 9 heads of 64 on 3; feed-forward 1536" in facts["layers"]


def test_a_stored_model_is_described_beside_what_is_known_of_its_files(smollm2_path: Path) -> None:
    ref = catalogue()["smollm2"].ref
    path = cache.model_folder(ref) / cache.FILES / "m.gguf"
    path.parent.mkdir(parents=True)
    shutil.copy(smollm2_path, path)
    cache.record(ref, "m.gguf", (cache.StoredFile("m.gguf", 98_000_000, "ab" * 32),), "Apache-2.0", "r1")
    facts = show("smollm2")
    assert (facts["name"], facts["revision"], facts["parameters"], facts["path"]) == (
        "smollm2",
        "r1",
        "135M",
        str(path),
    )
    assert facts["files"] == f"m.gguf  98.0 MB  sha256 {'ab' * 32}"
    assert "key-value cache" in facts


def test_a_stored_model_that_cannot_run_says_why() -> None:
    folder = cache.model_folder("hf:owner/name") / cache.FILES
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"architectures": ["KimiK3ForConditionalGeneration"]}))
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    cache.record(
        "hf:owner/name", ".", tuple(cache.StoredFile(name, 1, "") for name in ("config.json", "model.safetensors"))
    )
    facts = show("hf:owner/name")
    assert "Kimi Delta Attention" in facts["problem"]
    assert "layers" not in facts
    assert facts["path"] == str(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is empty"),
        ("{", "cannot be parsed"),
        ("[]", "not an object"),
        ("{}", "does not say which architecture"),
        ('{"architectures": ["LlamaForCausalLM"]}', "lacks"),
        ('{"architectures": ["LamaForCausalLM"]}', "nearest known names are LlamaForCausalLM"),
        (json.dumps({**V3, "num_hidden_layers": 0}), "num_hidden_layers"),
        (json.dumps({**V3, "index_topk": 1}), "index_topk"),
        (json.dumps({**V3, "quantization_config": {"quant_method": "exl3"}}), "quantised by 'exl3'"),
    ],
)
def test_a_bad_configuration_is_one_line(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    assert words in refusal(tmp_path / "config.json")


def test_what_is_not_there_or_no_model_is_one_line(tmp_path: Path) -> None:
    assert "There is no file or folder" in refusal("none/config.json")
    assert "contains no model" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (671.03e9, "671B"),
        (1.0264e12, "1.03T"),
        (999.7e9, "1T"),
        (3.0413e9, "3.04B"),
        (999.8e6, "1B"),
        (135e6, "135M"),
        (700, "0.0007M"),
    ],
)
def test_parameters_have_three_digits(count: float, text: str) -> None:
    assert count_text(count) == text


@pytest.mark.parametrize(
    ("size", "text"), [(1342.06e9, "1342.1 GB"), (2_000_000, "2.0 MB"), (70_272, "70.3 kB"), (0, "0.0 kB")]
)
def test_bytes_have_decimal_units(size: float, text: str) -> None:
    assert size_text(size) == text
