"""Facts that a server reports about a model without loading it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from freedive.api import recommended, text_parts
from freedive.commands.describe import main_formats, opened
from freedive.errors import UserError
from freedive.model.size import size
from freedive.server.model_info import ModelInfo
from freedive.text.dialects.registry import dialect_for
from freedive.text.infill import can_infill
from freedive.text.thinking import can_think


def about(name: str, path: Path) -> ModelInfo:
    """Returns facts about the model ``name`` at ``path``; one that freedive cannot run has no capabilities."""
    try:
        return _about(name, path)
    except (UserError, OSError):
        return ModelInfo(capabilities=())


def _about(name: str, path: Path) -> ModelInfo:
    spec, checkpoint, formats = opened(path)
    tokenizer, template = text_parts(path, checkpoint)
    return ModelInfo(
        family=spec.family,
        num_params=size(spec).total,
        format=main_formats(spec, formats)[0],
        max_context=spec.max_context,
        hidden_dim=spec.hidden_dim,
        template=template.sources.get("default", ""),
        sampling=recommended(name, path),
        capabilities=capabilities(template.source, tokenizer.added_tokens.values()),
    )


def capabilities(source: str, added_tokens: Collection[str]) -> tuple[str, ...]:
    """Returns the capabilities of a model with this chat template and vocabulary.

    It can use tools if the template renders them and the parser reads its calls.
    """
    dialect = dialect_for(source, added_tokens)
    abilities = {
        "completion": True,
        "embedding": True,
        "tools": "tools" in source and bool(dialect.codecs),
        "thinking": can_think(source, dialect),
        "insert": can_infill(added_tokens),
    }
    return tuple(name for name, there in abilities.items() if there)
