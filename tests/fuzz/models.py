"""The tiny models that are mutated."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tiny_gguf import save_both
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from freedive.checkpoint.gguf import open_gguf
from freedive.checkpoint.gguf_writer import write_gguf
from freedive.checkpoint.model_folder import write_model_folder
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.packed import store_bytes
from freedive.checkpoint.quantize import quantize
from freedive.checkpoint.rules import canonical_tensors
from freedive.families import describe
from freedive.model.params import params

FAMILIES = ("llama", "qwen3_moe", "deepseek_v3", "gpt_oss", "lfm2", "lfm2_moe", "qwen3_5")

SEEDS = {
    "model-folder": [f"{name}-model-folder" for name in FAMILIES],
    "gguf": [f"{name}-gguf" for name in FAMILIES],
    "safetensors": [f"{name}-folder" for name in FAMILIES],
    "template": ["llama-folder"],
}
"""The folders of each kind of model, relative to that of :func:`make_seeds`."""


def make_seeds(root: Path) -> None:
    """Writes each family as a safetensors folder, as a GGUF file with a tokenizer, and as a 4-bit model folder."""
    for name in FAMILIES:
        folder = root / f"{name}-folder"
        folder.mkdir(parents=True)
        made = save_both(name, folder)
        _write_tokenizer(folder)
        _write_gguf(made, root / f"{name}-gguf")
        shutil.rmtree(made.parent)
        _write_model_folder(folder, root / f"{name}-model-folder")


def _write_tokenizer(folder: Path) -> None:
    core = Tokenizer(models.WordLevel({f"▁w{index}": index for index in range(128)}, unk_token="▁w0"))
    core.pre_tokenizer, core.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    core.save(str(folder / "tokenizer.json"))


def _write_gguf(made: Path, folder: Path) -> None:
    """Copies a GGUF file with a vocabulary of bytes and words."""
    checkpoint = open_gguf(made)
    tokens = [f"<0x{byte:02X}>" for byte in range(64)] + [f"▁w{index}" for index in range(64)]
    vocabulary: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * len(tokens),
        "tokenizer.ggml.token_type": [6] * 64 + [1] * 64,
        "tokenizer.ggml.eos_token_id": 65,
    }
    folder.mkdir()
    write_gguf(folder / "model.gguf", {**checkpoint.config, **vocabulary}, checkpoint.tensors)


def _write_model_folder(folder: Path, to: Path) -> None:
    checkpoint = open_checkpoint(folder)
    model, rules = describe(checkpoint)
    tensors = quantize(canonical_tensors(checkpoint, model, rules), params(model), "i4g64")
    to.mkdir()
    assert store_bytes(tensors) < 4 << 20
    write_model_folder(to, model, checkpoint, tensors)
    shutil.copyfile(folder / "tokenizer.json", to / "tokenizer.json")
