"""What ``freedive show`` says of the decoder in a checkpoint, or in a config.json alone."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from freedive.checkpoint.file import BLOCKS, read_json
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors
from freedive.checkpoint.tensor import Tensor
from freedive.commands.words import count_text, size_text
from freedive.model.families import describe, describe_config
from freedive.model.families.storage import OURS, declared
from freedive.model.size import Footprint, cache_bound, cache_dim, footprint, layers_in_words, size
from freedive.model.spec import Model

CACHE_BYTES = 2
"""Of a number in the key-value cache: half floats."""


def decoder_facts(path: Path) -> dict[str, str]:
    """Facts by name, several on lines of their own. Raises UserError for what freedive cannot read or run."""
    if path.suffix == ".json":
        values = read_json(path)
        spec = describe_config(values)
        storages = [storage for storage in (declared(values), *OURS) if storage]
        weights = {storage.name: footprint(spec, storage.num_bytes) for storage in storages}
    else:
        checkpoint = open_checkpoint(path)
        spec, rules = describe(checkpoint)
        tensors = canonical_tensors(checkpoint, spec, rules)
        weights = {_formats(tensors): footprint(spec, lambda name, _: _num_bytes(tensors[name]))}
    return {
        "family": spec.family,
        "layers": "\n".join(layers_in_words(spec)),
        "context": f"{spec.max_context} tokens",
        "vocabulary": f"{spec.vocab_size} tokens",
        "parameters": _parameters(spec),
        "weights": _weights(weights),
        "key-value cache": _cache(spec),
    }


def _num_bytes(tensor: Tensor) -> int:
    elements, num_bytes = BLOCKS[tensor.format]
    *outer, width = tensor.shape
    return math.prod(outer) * -(-width // elements) * num_bytes


def _formats(tensors: dict[str, Tensor]) -> str:
    """Those of matrices, the one with the most numbers first."""
    sizes: Counter[str] = Counter()
    for tensor in tensors.values():
        if len(tensor.shape) > 1:
            sizes[tensor.format] += math.prod(tensor.shape)
    return ", ".join(format for format, _ in sizes.most_common())


def _parameters(spec: Model) -> str:
    """Of a mixture both counts that model cards give."""
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


def _cache(spec: Model) -> str:
    numbers, bound = cache_dim(spec), cache_bound(spec)
    each, whole = CACHE_BYTES * numbers, CACHE_BYTES * numbers * spec.max_context
    text = f"{size_text(each)} for each token ({numbers} numbers), {size_text(whole)} for the whole context"
    windows = f"\nlayers with a window or chunks look back at {size_text(CACHE_BYTES * bound)} at most"
    return text + windows if bound else text
