"""The synthetic descriptions have every trait that can be described, and each trait changes their logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from functools import cache
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
from descriptions import DESCRIPTIONS, VOCAB, Floats, weights
from tiny_models import prompt, take_steps

from freedive.errors import UserError
from freedive.model import spec
from freedive.model.description import check
from freedive.ops.reference import ReferenceRunner

Trait = tuple[type, str]


def traits(part: Any) -> Iterator[tuple[Trait, Any]]:
    """Yields every field under ``part`` that differs from its default, with its value."""
    for field in fields(part):
        value = getattr(part, field.name)
        if field.default is not MISSING and value != field.default:
            yield (type(part), field.name), value
        for inner in value if isinstance(value, tuple) else (value,):
            if is_dataclass(inner):
                yield from traits(inner)


def without(part: Any, trait: Trait) -> Any:
    """Returns ``part`` with the trait at its default everywhere."""
    if isinstance(part, tuple):
        return tuple(without(inner, trait) for inner in part)
    if not is_dataclass(part) or isinstance(part, type):
        return part
    changes = {
        field.name: field.default if (type(part), field.name) == trait else without(getattr(part, field.name), trait)
        for field in fields(part)
    }
    return replace(part, **changes)


UNSEEN = {(spec.ModelSpec, "mtp"), (spec.ModelSpec, "mtp_normed")}
"""Traits that change no logits; test_mtp tests them."""


def is_valid(described: spec.ModelSpec) -> bool:
    try:
        check(described)
    except UserError:
        return False
    return True


CASES = sorted(
    {
        (name, trait[0].__name__, trait[1])
        for name, described in DESCRIPTIONS.items()
        for trait, _ in traits(described)
        if is_valid(without(described, trait))
    }
)
"""(description, class, field) of every trait that a description has, and without which it is still valid."""


def test_every_trait_and_every_kind_is_described() -> None:
    seen = {(trait, value) for described in DESCRIPTIONS.values() for trait, value in traits(described)}
    for kind in vars(spec).values():
        if is_dataclass(kind) and isinstance(kind, type):
            hints = get_type_hints(kind)
            for field in fields(kind):
                if field.default is not MISSING and (kind, field.name) not in UNSEEN:
                    others = {value for (trait, value) in seen if trait == (kind, field.name)}
                    assert others, f"{kind.__name__}.{field.name}"
                    if isinstance(field.default, str):
                        assert others | {field.default} == set(get_args(hints[field.name])), field.name


@cache
def logits(described: spec.ModelSpec, name: str) -> Floats:
    """Returns the logits of ``described``, with those weights of the description ``name`` that fit it."""
    own, values = weights(described), weights(DESCRIPTIONS[name])
    fitting = {key: values[key] for key, w in own.items() if key in values and values[key].shape == w.shape}
    runner = ReferenceRunner(described, own | fitting, num_pages=2)
    (result,) = take_steps(runner, [prompt(45, vocab=VOCAB)], [[(0, 45)]], [[1, 0]])
    return result


@pytest.mark.parametrize(("name", "kind", "field"), CASES)
def test_each_trait_shows(name: str, kind: str, field: str) -> None:
    described = DESCRIPTIONS[name]
    plain = without(described, (getattr(spec, kind), field))
    assert np.abs(logits(described, name) - logits(plain, name)).max() > 1e-2


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_logits_are_worth_comparing(name: str) -> None:
    assert 0.2 < logits(DESCRIPTIONS[name], name).std() < 10
