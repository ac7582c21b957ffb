"""Runs llama.cpp's own converter without a tokenizer: python -O llama_convert.py SOURCES FOLDER FILE

SOURCES is the folder of llama.cpp; FOLDER holds config.json and model.safetensors; FILE is written in 32-bit floats.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sources, folder, file = map(Path, sys.argv[1:])
sys.path[:0] = [str(sources / "gguf-py"), str(sources)]

import gguf  # noqa: E402
import torch  # noqa: E402
from conversion import get_model_class  # noqa: E402
from conversion.base import ModelBase, ModelType, get_model_architecture  # noqa: E402


def set_no_vocabulary(self: Any) -> None:
    self.gguf_writer.add_tokenizer_model("no_vocab")


settings = ModelBase.load_hparams(folder, False)
kind = get_model_class(get_model_architecture(settings, ModelType.TEXT))
kind.no_mtp = "num_nextn_predict_layers" not in settings  # MiMo V2 has three that nothing announces
parts = [part for part in vars(kind).values() if isinstance(part, type)]  # Mistral 3 chooses one of two inner classes
for ancestor in {each for part in (kind, *parts) for each in part.__mro__}:
    if "set_vocab" in ancestor.__dict__:
        ancestor.set_vocab = set_no_vocabulary
vocabulary = {str(index): index for index in range(settings["vocab_size"])}
(folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))  # for Gemma 3
with torch.inference_mode():
    kind(folder, gguf.LlamaFileType.ALL_F32, file, eager=True).write()
