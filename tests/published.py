"""Figures of descriptions that makers publish: how many weights there are, and how many a token uses."""

from __future__ import annotations

from freedive.model import spec
from freedive.model.params import params


def total_billions(model: spec.Model) -> float:
    """Weights in all, in 1e9."""
    return sum(param.size for param in params(model).values()) / 1e9


def active_billions(model: spec.Model) -> float:
    """Weights that one token multiplies with, in 1e9: of each mixture's experts those that a token goes to."""
    return sum(param.size for name, param in params(model).items() if _is_active(name, model)) / 1e9


def active_without_vocabulary(model: spec.Model) -> float:
    """Likewise, but for the embedding and the output head."""
    return active_billions(model) - model.vocab_size * model.hidden_dim * (1 if model.tied else 2) / 1e9


def _is_active(name: str, model: spec.Model) -> bool:
    match name.split("."):
        case ["layers", layer, "ffn", "experts", expert, _]:
            ffn = model.layers[int(layer)].ffn
            return isinstance(ffn, spec.Experts) and int(expert) < ffn.router.num_chosen
    return True
