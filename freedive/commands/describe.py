"""Facts that ``freedive show`` prints about the decoder in a checkpoint or in a config.json."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.model_folder import is_model_folder, read_model_folder
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.packed import Packed, PackedExperts
from freedive.checkpoint.quantize import FORMATS, target_format
from freedive.checkpoint.repack import packed_format
from freedive.checkpoint.rules import canonical_tensors
from freedive.checkpoint.tensor import Checkpoint
from freedive.commands.formatting import count_text, size_text
from freedive.families import describe, describe_config
from freedive.families.storage import declared
from freedive.files import read_json
from freedive.model.params import Param, params
from freedive.model.size import Footprint, cache_bound, cache_dim, footprint, layers_in_words, size, state_bytes
from freedive.model.spec import ModelSpec

CACHE_BYTES = 2
"""The size in bytes of a number in the key-value cache, a half float."""


def decoder_facts(path: Path) -> dict[str, str]:
    """Returns facts by name, as text of one or several lines.

    Raises UserError if freedive cannot read or run the model.
    """
    path = with_weights(path)
    spec, weights = _configured(path) if path.suffix == ".json" else _stored(path)
    return {
        "family": spec.family,
        "layers": "\n".join(layers_in_words(spec)),
        "context": f"{spec.max_context} tokens",
        "vocabulary": f"{spec.vocab_size} tokens",
        "parameters": _parameters(spec),
        "weights": _weights(weights),
        "key-value cache": _cache(spec),
    }


def with_weights(path: Path) -> Path:
    """Returns ``path``, or of a folder with a config.json but no weights this file."""
    config = path / "config.json"
    if not config.is_file() or is_model_folder(path) or any(path.glob("*.safetensors")) or any(path.glob("*.gguf")):
        return path
    return config


def _configured(path: Path) -> tuple[ModelSpec, dict[str, Footprint]]:
    """Returns the model of a config.json, with the size of its weights in its own format and in those of ``freedive
    quantize``."""
    values = read_json(path)
    spec, storage = describe_config(values), declared(values)
    weights = {storage.method: footprint(spec, storage.num_bytes)} if storage else {}
    for target in reversed(FORMATS):
        formats = {name: target_format(name, param, "BF16", target) for name, param in params(spec).items()}
        weights[target] = _footprint(spec, formats)
    return spec, weights


def _stored(path: Path) -> tuple[ModelSpec, dict[str, Footprint]]:
    """Returns the model of a checkpoint, or of a folder that freedive has written, with the size of its weights."""
    spec, _, formats = opened(path)
    return spec, {", ".join(main_formats(spec, formats)): _footprint(spec, formats)}


def opened(path: Path) -> tuple[ModelSpec, Checkpoint, dict[str, str]]:
    """Returns the model of a checkpoint or folder, the checkpoint of its tokenizer, and the format of each weight."""
    if is_model_folder(path):
        spec, checkpoint, packed = read_model_folder(path)
        return spec, checkpoint, _packed_formats(packed)
    checkpoint = open_checkpoint(path)
    spec, rules = describe(checkpoint)
    tensors = canonical_tensors(checkpoint, spec, rules)
    return spec, checkpoint, {name: tensor.format for name, tensor in tensors.items()}


def main_formats(spec: ModelSpec, formats: Mapping[str, str]) -> list[str]:
    """Returns the formats of the matrices, the one with most parameters first."""
    sizes: Counter[str] = Counter()
    for name, param in params(spec).items():
        if len(param.shape) > 1:
            sizes[formats[name]] += param.size
    return [format for format, _ in sizes.most_common()]


def _packed_formats(weights: Mapping[str, Packed]) -> dict[str, str]:
    formats: dict[str, str] = {}
    for name, packed in weights.items():
        if isinstance(packed, PackedExperts):
            for index in range(packed.count):
                formats |= {f"{name}.{index}.{key}": part.format for key, part in packed.parts.items()}
        else:
            formats[name] = packed.format
    return formats


def _footprint(spec: ModelSpec, formats: Mapping[str, str]) -> Footprint:
    """Returns the footprint of weights in ``formats``, by canonical name."""
    return footprint(spec, bytes_in(formats))


def bytes_in(formats: Mapping[str, str]) -> Callable[[str, Param], float]:
    """Returns the function of the bytes of a weight in ``formats``, by canonical name; partial blocks count as whole.

    Formats that are repacked count as what they become in memory.
    """

    def num_bytes(name: str, param: Param) -> float:
        elements, block_bytes = BLOCKS[packed_format(formats[name])]
        *outer, width = param.shape
        return math.prod(outer) * -(-width // elements) * block_bytes

    return num_bytes


def configured_sizes(path: Path) -> tuple[ModelSpec, Callable[[str, Param], float], int | None]:
    """Returns the model of a config.json, and the function of the bytes of its weights in its own format.

    If the file names no format, the weights have 16 bits, which are returned too.
    """
    values = read_json(path)
    spec, storage = describe_config(values), declared(values)
    return (spec, storage.num_bytes, None) if storage else (spec, lambda _, param: 2 * param.size, 16)


def _parameters(spec: ModelSpec) -> str:
    """Returns the number of parameters; for a mixture also the active ones, as model cards do."""
    counted = size(spec)
    if counted.active + counted.embedding >= counted.total:
        return count_text(counted.total)
    text = f"{count_text(counted.total)}, {count_text(counted.active)} active"
    return (
        f"{text} ({count_text(counted.active + counted.embedding)} with the embedding)" if counted.embedding else text
    )


def _weights(weights: dict[str, Footprint]) -> str:
    width = max(map(len, weights))
    return "\n".join(
        f"{name.ljust(width)}  {size_text(taken.total)}, {size_text(taken.read)} read for each token"
        for name, taken in weights.items()
    )


def _cache(spec: ModelSpec) -> str:
    numbers, bound = cache_dim(spec), cache_bound(spec)
    each, whole = CACHE_BYTES * numbers, CACHE_BYTES * numbers * spec.max_context
    text = f"{size_text(each)} for each token ({numbers} numbers), {size_text(whole)} for the whole context"
    if bound:
        text += f"\nlayers with a window or chunks look back at {size_text(CACHE_BYTES * bound)} at most"
    if once := state_bytes(spec):
        text += f"\n{size_text(once)} once for each sequence, whatever its length"
    return text
