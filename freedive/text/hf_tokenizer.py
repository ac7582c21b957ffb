"""Tokenizers from a model folder: tokenizer.json, and the special tokens that the other files name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from freedive.errors import NotFound
from freedive.files import read_json
from freedive.json_object import Json
from freedive.text.vocabulary import Vocabulary, add_ends, damage, stop_ids

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def read_hf_tokenizer(folder: Path) -> Vocabulary:
    """Reads tokenizer.json in ``folder`` and, if present, the configuration files. Raises UserError and NotFound."""
    core = _core(folder / "tokenizer.json")
    decoder = core.get_added_tokens_decoder()
    added = {index: token.content for index, token in decoder.items()}
    size = max(core.get_vocab_size(with_added_tokens=False), *(index + 1 for index in added), 0)
    config = optional_json(folder / "tokenizer_config.json")
    roles = _roles(optional_json(folder / "special_tokens_map.json")) | _roles(config)
    if config.get("add_bos_token") and core.num_special_tokens_to_add(False) == 0:
        # The tokenizer.json of Llama-class models (and DeepSeek's) may lack the post-processor that adds BOS and EOS.
        add_ends(core, roles.get("bos_token"), roles.get("eos_token") if config.get("add_eos_token") else None)
    return Vocabulary(
        core=lambda: core,
        token=core.id_to_token,
        added=added,
        special=frozenset(index for index, token in decoder.items() if token.special),
        decoder=core.decoder,
        size=size,
        roles=roles,
        bos_id=core.token_to_id(roles["bos_token"]) if "bos_token" in roles else None,
        stop_ids=stop_ids(added, size, *_named_ends(folder, core, roles)),
    )


def optional_json(path: Path) -> Json:
    """Returns the JSON object in the file, an empty one if the file does not exist."""
    return read_json(path, duplicates=True) if path.exists() else {}


def _core(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise NotFound(f"{path.parent} has no tokenizer.json", "Choose a model with a tokenizer.json, or a GGUF file")
    with damage("tokenizer.json is damaged or too new"):
        core = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8-sig"))
        core.encode("a")  # some damage appears only in use
    core.no_truncation()
    core.no_padding()
    return core


def _roles(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns the special tokens by role; each entry is a string, or an object with the string under "content"."""
    values = {role: config[role] for role in _ROLES if config.get(role) is not None}
    texts = {role: value.get("content") if isinstance(value, dict) else value for role, value in values.items()}
    return {role: text for role, text in texts.items() if isinstance(text, str)}


def _named_ends(folder: Path, core: tokenizers.Tokenizer, roles: Mapping[str, str]) -> tuple[list[object], str]:
    """Returns the end-of-sequence ids of tokenizer and configuration, and the name of the configuration file.

    The file is generation_config.json or, if it does not exist, config.json.
    """
    source = "generation_config.json" if (folder / "generation_config.json").is_file() else "config.json"
    named = optional_json(folder / source).get("eos_token_id")
    listed = [index for index in (named if isinstance(named, list) else [named]) if index is not None]
    eos = core.token_to_id(roles["eos_token"]) if "eos_token" in roles else None
    return (listed if eos is None else [*listed, eos]), source
