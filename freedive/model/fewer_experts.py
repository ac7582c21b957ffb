"""Routes tokens to fewer experts than a model was trained with."""

from __future__ import annotations

from dataclasses import replace

from freedive.errors import UserError
from freedive.model.spec import Experts, Layer, ModelSpec


def with_experts_per_token(model: ModelSpec, count: int) -> ModelSpec:
    """Returns ``model`` with at most ``count`` routed experts of each token in each layer, those that it prefers.

    Their weights are those of the router as it is: renormalised over the ``count`` experts if it renormalises. A layer
    that chooses fewer keeps its number. Raises UserError if no layer has so many, or none has experts.
    """
    most = max((layer.ffn.router.num_chosen for layer in model.layers if isinstance(layer.ffn, Experts)), default=0)
    if not most:
        raise UserError("This model has no experts", "Leave experts_per_token out", param="experts_per_token")
    if not 1 <= count <= most:
        what = f"experts_per_token is {count}, but a token of this model has {most}"
        raise UserError(what, f"Choose a number from 1 to {most}", param="experts_per_token")
    layers = tuple(_limited(layer, count) for layer in model.layers)
    return replace(model, layers=layers, mtp=model.mtp and _limited(model.mtp, count))


def _limited(layer: Layer, count: int) -> Layer:
    if not isinstance(layer.ffn, Experts) or layer.ffn.router.num_chosen <= count:
        return layer
    router = layer.ffn.router
    if router.group_choice == "each" and count % router.num_groups:
        what = f"experts_per_token is {count}, but this model has {router.num_groups} groups, which choose equally many"
        raise UserError(what, f"Choose a multiple of {router.num_groups}", param="experts_per_token")
    return replace(layer, ffn=replace(layer.ffn, router=replace(router, num_chosen=count)))
