"""An existing model for fine-tuning: float32 weights, stacked experts, its own tokenizer and chat template."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from freedive import machine
from freedive.api import text_parts
from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.model_folder import is_model_folder
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import Rules, canonical_tensors
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import Unavailable, UserError
from freedive.families import as_hub, describe
from freedive.hub.cache import MANIFEST
from freedive.hub.choose import COMPANION_FILES
from freedive.hub.sources import resolve
from freedive.model import spec
from freedive.progress import byte_bar
from freedive.text.gguf_tokenizer import read_gguf_tokenizer
from freedive.text.template import ChatTemplate
from freedive.text.tokenizer import Tokenizer
from freedive.train.model.net import Weights, stack_of, stacked_params

NOT_TEXT = ("config.json", MANIFEST)
"""Files of a model folder that belong to the weights rather than to the text."""


@dataclass(frozen=True)
class BaseModel:
    """An opened model whose weights are not read yet; ``config`` and ``hub_rules`` describe its Hugging Face folder.

    It has no vision encoder, and no layer for multi-token prediction, which would need a training of its own.
    """

    path: Path
    checkpoint: Checkpoint
    model: spec.ModelSpec
    rules: Rules
    config: Mapping[str, Any]
    hub_rules: Rules
    tokenizer: Tokenizer
    template: ChatTemplate

    @property
    def num_bytes(self) -> int:
        """The size of all weights in float32, in bytes."""
        return 4 * sum(param.size for param in stacked_params(self.model).values())

    def check_memory(self) -> None:
        """Raises Unavailable if the weights do not fit into the free memory."""
        free = machine.available_memory()
        if self.num_bytes > free:
            raise Unavailable(
                f"The weights take {self.num_bytes / 1e9:.1f} GB in float32, and {free / 1e9:.1f} GB are free",
                "Tune a smaller model, or on a machine with more memory",
            )

    def weights(self) -> Weights:
        """Reads the weights from any format into float32; the experts of a layer are one stack.

        Raises Unavailable as :meth:`check_memory` does.
        """
        self.check_memory()
        weights = {name: torch.empty(param.shape) for name, param in stacked_params(self.model).items()}
        tensors = canonical_tensors(self.checkpoint, self.model, self.rules)
        with byte_bar("reading weights", self.num_bytes) as advance:
            for name, tensor in tensors.items():
                stack, index = stack_of(name)
                target = weights[stack] if index is None else weights[stack][index]
                target.numpy()[...] = dequantize(tensor)
                advance(4 * math.prod(tensor.shape))
        return weights

    def write_text(self, folder: Path) -> None:
        """Writes the tokenizer and template files of a Hugging Face folder, which it copies or makes from GGUF
        metadata."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.checkpoint.kind == "gguf":
            _write_text(self.checkpoint.config, self.tokenizer, self.template, folder)
            return
        source = self.path if self.path.is_dir() else self.path.parent
        for path in (path for pattern in COMPANION_FILES for path in source.glob(pattern)):
            if path.name not in NOT_TEXT and not path.name.endswith(".index.json"):
                shutil.copyfile(path, folder / path.name)


def open_base_model(name: str) -> BaseModel:
    """Opens the model of this name, address or path, and downloads it if necessary.

    Raises UserError if it cannot be tuned.
    """
    path = resolve(name)
    if is_model_folder(path):
        raise UserError(f"{path} was written by freedive quantize", "Tune the model that it was made from")
    checkpoint = open_checkpoint(path)
    model, rules = describe(checkpoint)
    model = replace(model, mtp=None)
    config, hub_rules = as_hub(checkpoint, model)
    return BaseModel(path, checkpoint, model, rules, config, hub_rules, *text_parts(path, checkpoint))


def _write_text(metadata: Mapping[str, Any], tokenizer: Tokenizer, template: ChatTemplate, folder: Path) -> None:
    vocabulary = read_gguf_tokenizer(metadata)
    core = vocabulary.core()
    core.decoder = vocabulary.decoder
    core.save(str(folder / "tokenizer.json"))
    about: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.roles}
    about["clean_up_tokenization_spaces"] = False
    if template.sources:
        named = [{"name": name, "template": text} for name, text in template.sources.items()]
        about["chat_template"] = named if len(named) > 1 else named[0]["template"]
    ends = {"eos_token_id": sorted(tokenizer.stop_ids)}
    for file, values in (("tokenizer_config.json", about), ("generation_config.json", ends)):
        (folder / file).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", "utf-8")
