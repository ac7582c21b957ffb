"""Model families: a checkpoint's own words -> a description and naming rules."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from freedive.checkpoint.file import quote
from freedive.checkpoint.rules import Rules
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.model.families import gguf
from freedive.model.families.config import Config
from freedive.model.families.family import Family
from freedive.model.families.llama import LLAMA, MISTRAL
from freedive.model.families.names import rules
from freedive.model.families.qwen import QWEN2, QWEN3
from freedive.model.spec import Model

FAMILIES = (LLAMA, MISTRAL, QWEN2, QWEN3)


def describe(checkpoint: Checkpoint) -> tuple[Model, Rules]:
    """The decoder that ``checkpoint`` holds, and how its tensors become canonical.

    Raises UserError for an unknown architecture, an unknown key, or numbers that make no model.
    """
    if checkpoint.kind == "gguf":
        known = {family.name: family for family in FAMILIES if family.in_gguf}
        family = _pick(known, [checkpoint.config.get("general.architecture")])
        config = gguf.read_config(checkpoint)
    else:
        known = {name: family for family in FAMILIES for name in (*family.architectures, family.name)}
        family = _pick(known, _declared(checkpoint))
        config = Config(checkpoint.config, family.defaults)
    spec = family.spec(config)
    config.refuse_unread(family.name)
    return spec, rules(spec, checkpoint.kind, interleaved=checkpoint.kind == "gguf" and family.interleaved_in_gguf)


def _declared(checkpoint: Checkpoint) -> list[object]:
    """What config.json calls the model: the class first, then the type."""
    architectures = checkpoint.config.get("architectures")
    first = architectures[:1] if isinstance(architectures, list) else []
    return [*first, checkpoint.config.get("model_type")]


def _pick(known: dict[str, Family], declared: Iterable[object]) -> Family:
    names = [name for name in declared if isinstance(name, str)]
    for name in names:
        if name in known:
            return known[name]
    if not names:
        raise UserError("The model does not say which architecture it has", "Fetch it again, or choose another model")
    near = difflib.get_close_matches(names[0], known, n=3, cutoff=0.5) or sorted(known)
    raise UserError(
        f"freedive does not know the architecture {quote(names[0])}", f"It knows, nearest: {', '.join(near)}"
    )
