"""Compares freedive with llama.cpp on tiny GGUF files of every architecture: python bench/gguf_parity.py

If llama.cpp reads a file as freedive does, both give the same logits but for rounding. With the sources of llama.cpp
(--sources), its converter must write the same metadata and tensors from the same safetensors as tests/tiny_gguf.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from quality import Closeness
from workers import FOLDER, peer_python, start_llama

sys.path.insert(0, str(FOLDER.parent / "tests"))

from tiny_gguf import ARCHITECTURES, save_both
from tiny_models import Floats, prompt, take_steps

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.gguf_writer import write_gguf
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.families import describe
from freedive.ops.reference import ReferenceRunner

MAX_KL = 1e-5
PROMPT = prompt(48)

_NO_TEMPERATURE = "the converter leaves out the temperature, which begins at position 8192 in the published model"
DIFFERENT = {
    "mimo_v2_flash": "llama.cpp's windows are one position shorter than the maker's",
    "deepseek_v2": "llama.cpp ranks groups of experts by their two best, DeepSeek V2 by the best",
    "mistral4": _NO_TEMPERATURE,
    "mistral4_grouped": _NO_TEMPERATURE,
}
"""Tiny models that llama.cpp computes differently than their makers, and the difference."""

PUBLISHED: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"scoring_func": "sigmoid"},
    "moonlight": {"scoring_func": "sigmoid"},
    "glm4_moe_lite": {"scoring_func": "sigmoid", "first_k_dense_replace": 1},
    "glm4_moe": {"num_nextn_predict_layers": 0},
    "mistral4": {"architectures": ["Mistral3ForConditionalGeneration"]},
    "mistral4_grouped": {"architectures": ["Mistral3ForConditionalGeneration"]},
    "minimax_m2": {"scoring_func": "sigmoid"},
    "exaone_moe": {"scoring_func": "sigmoid"},
    "solar_open": {"partial_rotary_factor": 1.0, "num_nextn_predict_layers": 0},
    "dots1": {"scoring_func": "sigmoid"},
    "bailing_moe_v2": {"score_function": "sigmoid"},
    "afmoe": {"score_func": "sigmoid", "route_norm": True},
    "mimo_v2_flash": {
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
        "hybrid_layer_pattern": [0, 1, 1, 1],
        "sliding_window": 8,
        "swa_num_key_value_heads": 4,
        "swa_num_attention_heads": 4,
        "swa_head_dim": 24,
        "swa_v_head_dim": 16,
        "rope_parameters": {
            "partial_rotary_factor": 0.334,
            "full_attention": {"rope_theta": 5e6},
            "sliding_attention": {"rope_theta": 1e4},
        },
    },
    "hunyuan_moe": {"moe_intermediate_size": [48, 48], "num_shared_expert": [1, 1]},
    "granitemoehybrid": {"layer_types": ["attention"] * 2},
    "granitemoehybrid_dense": {"layer_types": ["attention"] * 2},
    "gemma4_unified": {"architectures": ["Gemma4UnifiedForConditionalGeneration"], "moe_intermediate_size": None},
    "granite_swa": {"no_rope_layers": [0, 1, 1, 1]},
    "granitemoe_swa": {"no_rope_layers": [0, 1, 1, 1]},
}
"""Values of published configurations that the converter needs and that transformers writes
differently or not at all."""


def our_logits(checkpoint: Checkpoint) -> Floats:
    spec, rules = describe(checkpoint)
    weights = {name: dequantize(tensor) for name, tensor in canonical_tensors(checkpoint, spec, rules).items()}
    (logits,) = take_steps(ReferenceRunner(spec, weights), [PROMPT], [[(0, len(PROMPT))]], [(0, 1)])
    return logits


def with_tokenizer(path: Path) -> Path:
    """Returns a copy of the file with a vocabulary of bytes, which llama.cpp requires."""
    checkpoint = open_checkpoint(path)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(125))]
    vocabulary: dict[str, Any] = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-float(index) for index in range(128)],
        "tokenizer.ggml.token_type": [2, 3, 3] + [1] * 125,
    }
    whole = path.with_name("whole.gguf")
    write_gguf(whole, {**checkpoint.config, **vocabulary}, checkpoint.tensors)
    return whole


def compare_logits(path: Path, python: Path) -> tuple[float, Closeness]:
    """Returns the largest difference of a logit, and how close the distributions are."""
    file = path.with_name("logits.npy")
    with start_llama(with_tokenizer(path), 1, python) as worker:
        worker.call("logits", tokens=PROMPT, file=str(file), exact=True)
    ours, theirs = our_logits(open_checkpoint(path)), np.load(file)
    return float(np.abs(ours - theirs).max()), Closeness.of(ours, theirs)


def conversion_faults(name: str, folder: Path, path: Path, sources: Path) -> Iterator[str]:
    """Yields the differences between the converter's file and ours."""
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **PUBLISHED.get(name, {})}))
    converted = path.with_name("converted.gguf")
    script: list[str | Path] = [FOLDER / "llama_convert.py", sources, folder, converted]
    # -O skips its assertions on published sizes.
    subprocess.run([sys.executable, "-O", *script], check=True, stderr=subprocess.DEVNULL)
    ours, theirs = open_checkpoint(path), open_checkpoint(converted)
    prefix = f"{ARCHITECTURES[name][0]}."
    for key in sorted(key for key in ours.config.keys() | theirs.config.keys() if key.startswith(prefix)):
        if ours.config.get(key) != theirs.config.get(key):
            yield f"{key} is {ours.config.get(key)}, not {theirs.config.get(key)}"
    for key in sorted(ours.tensors.keys() ^ theirs.tensors.keys()):
        yield f"{key} is in one of them"
    for key in sorted(ours.tensors.keys() & theirs.tensors.keys()):
        values, others = dequantize(ours.tensors[key]), dequantize(theirs.tensors[key])
        tolerance = 1e-5 if key == "rope_freqs.weight" or key.endswith("ssm_a") else 0
        if not np.allclose(values, others.reshape(-1, *values.shape[1:]), tolerance, tolerance):
            yield f"{key} has other values"


def main(
    names: Annotated[
        list[str] | None, typer.Argument(help="Tiny models of tests/tiny_gguf.py; all by default.")
    ] = None,
    peer: Annotated[Path | None, typer.Option("--peer-python", help="The Python that has llama-cpp-python.")] = None,
    sources: Annotated[Path | None, typer.Option(help="The folder of llama.cpp's sources, for its converter.")] = None,
) -> None:
    """Compare what llama.cpp makes of tiny files with what freedive does."""
    python, failed = peer_python(peer), False
    for name in names or ARCHITECTURES:
        with TemporaryDirectory() as place:
            path = save_both(name, Path(place))
            distance, closeness = compare_logits(path, python)
            faults = list(conversion_faults(name, Path(place), path, sources)) if sources else []
        kl, same = float(closeness.kl.max()), f"{closeness.same.sum()}/{closeness.same.size}"
        remark = DIFFERENT.get(name) or ("" if kl < MAX_KL else "differs")
        failed |= remark == "differs" or bool(faults)
        converted = f"  converter: {'; '.join(faults) or 'same'}" if sources else ""
        figures = f"{distance:8.0e}  KL {kl:7.0e}  top {same}"
        print(f"{name:24}{ARCHITECTURES[name][0]:16}{figures}  {remark}{converted}", flush=True)
    if failed:
        raise UserError("freedive and llama.cpp read some of these files differently", "See the lines above")


if __name__ == "__main__":
    try:
        typer.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
