"""Reads and writes a model description as JSON and checks every value in it.

The types, choices and ranges are those of model/spec.py. :func:`check` also checks that values are consistent.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from freedive.errors import UserError
from freedive.model.spec import (
    Attention,
    DeltaRule,
    Experts,
    LatentAttention,
    Layer,
    Mixer,
    ModelSpec,
    Range,
    Rope,
    Router,
)
from freedive.model.state import per_token_dim

MAX_LAYERS = 1000
MAX_EXPERTS_IN_ALL = 1 << 16
"""Maximum number of experts of all layers together, twice that of the largest models."""

_LARGEST = 3e38
"""Maximum absolute value of a number in a description, which float32 can represent."""

Read = Callable[[Any], Any]
"""Converts a JSON value to a Python value. Raises _Fault if it is invalid."""


_JSON_NAMES = {"ModelSpec": "Model", "AttentionTemperature": "Temperature", "mixer": "attention"}
"""Names of classes and fields that differ in JSON, so that existing files stay readable."""


def _json_name(name: str) -> str:
    return _JSON_NAMES.get(name, name)


class _Fault(Exception):
    """An invalid value: ``what`` is wrong with it and the ``path`` to it, innermost name first."""

    def __init__(self, what: str, *path: str) -> None:
        super().__init__(what)
        self.what = what
        self.path = list(path)

    def error(self) -> UserError:
        where = f"'s {'.'.join(reversed(self.path))}" if self.path else ""
        return UserError(f"The model's description{where} {self.what}", "Fetch the model again, or choose another")


def to_json(value: Any) -> Any:
    """Returns a description as JSON values; a dataclass becomes an object with its class name, a tuple a list."""
    if is_dataclass(value):
        values = {_json_name(f.name): to_json(getattr(value, f.name)) for f in fields(value)}
        return {"class": _json_name(type(value).__name__)} | values
    return [to_json(item) for item in value] if isinstance(value, tuple) else value


def from_json(value: Any) -> ModelSpec:
    """Returns the model that :func:`to_json` wrote. Raises UserError with the path of an invalid value."""
    try:
        model: ModelSpec = _reader(ModelSpec)(value)
        for name, fits, what in _rules(model):
            if not fits:
                raise _Fault(what, name)
    except _Fault as fault:
        raise fault.error() from None
    return model


def check(model: ModelSpec) -> None:
    """Raises UserError if ``model`` has a value that no description may have."""
    from_json(to_json(model))


def _rules(model: ModelSpec) -> Iterator[tuple[str, bool, str]]:
    """Yields each rule as (name of the value, whether it holds, what is wrong if it does not)."""
    num_layers = len(model.layers)
    yield "layers", 1 <= num_layers <= MAX_LAYERS, f"are {num_layers}, not 1 to {MAX_LAYERS}"
    attends = any(per_token_dim(layer.mixer.state) for layer in model.layers)  # else a page of the cache is empty
    yield "layers", attends, "have no attention, which freedive's cache needs in at least one layer"
    total = sum(layer.ffn.router.num_experts for layer in model.blocks if isinstance(layer.ffn, Experts))
    yield "num_experts", total <= MAX_EXPERTS_IN_ALL, f"make {total} in all layers, more than {MAX_EXPERTS_IN_ALL}"
    for layer in dict.fromkeys(model.blocks):  # most layers are equal
        yield from _layer_rules(layer)
    for index, layer in enumerate(model.blocks):
        if isinstance(layer.mixer, Attention) and layer.mixer.kv_layer >= 0:
            fits = _has_keys_for(layer.mixer, [earlier.mixer for earlier in model.blocks[:index]])
            yield "kv_layer", fits, f"is {layer.mixer.kv_layer}, not an earlier layer with such keys and values"


def _layer_rules(layer: Layer) -> Iterator[tuple[str, bool, str]]:
    attn = layer.mixer
    if isinstance(attn, Attention):
        heads, kv_heads = attn.num_heads, attn.num_kv_heads
        yield "num_kv_heads", heads % kv_heads == 0, f"is {kv_heads}, which does not divide {heads} heads"
        fits = attn.values == "own" or attn.v_head_dim == attn.head_dim
        yield "value_dim", fits, f"is {attn.value_dim}, though values are the keys of {attn.head_dim}"
    if isinstance(attn, DeltaRule):
        heads, key_heads = attn.num_value_heads, attn.num_key_heads
        yield "num_key_heads", heads % key_heads == 0, f"is {key_heads}, which does not divide {heads} value heads"
    if isinstance(attn, Attention | LatentAttention) and attn.rope:
        yield from _rope_rules(attn.rope, attn)
    for ffn in (layer.ffn.expert, layer.ffn.shared) if isinstance(layer.ffn, Experts) else (layer.ffn,):
        bounded = ffn is None or ffn.activation != "clamped_silu" or ffn.limit > 0
        yield "limit", bounded, "is 0, though the activation is clamped"
    if isinstance(layer.ffn, Experts):
        yield from _router_rules(layer.ffn.router)
        alone = layer.ffn.shared is not None and not layer.ffn.shared_gate
        yield "branch_norms", alone or not layer.ffn.branch_norms, "are without a shared expert, or with its gate"


def _has_keys_for(attn: Attention, earlier: Sequence[Mixer]) -> bool:
    """Returns whether the layer ``attn.kv_layer`` is one of ``earlier`` and has keys and values of the same heads."""
    source = earlier[attn.kv_layer] if attn.kv_layer < len(earlier) else None
    return isinstance(source, Attention) and source.state == replace(attn, kv_layer=-1).state


def _rope_rules(rope: Rope, attn: Attention | LatentAttention) -> Iterator[tuple[str, bool, str]]:
    most = attn.rope_dim if isinstance(attn, LatentAttention) else attn.head_dim
    yield "rope.dim", rope.dim <= most and rope.dim % 2 == 0, f"is {rope.dim}, not an even number up to {most}"
    count = len(rope.inv_freq)
    yield "rope.inv_freq", 2 * count == rope.dim, f"has {count} numbers for {rope.dim} dimensions"


def _router_rules(router: Router) -> Iterator[tuple[str, bool, str]]:
    experts, chosen, groups = router.num_experts, router.num_chosen, router.num_groups
    yield "num_chosen", chosen <= experts, f"is {chosen}, more than the {experts} experts"
    yield "num_groups", experts % groups == 0, f"is {groups}, which does not divide {experts} experts"
    if router.group_choice == "each":
        yield "num_groups", chosen % groups == 0, f"is {groups}, which does not divide {chosen} chosen experts"
        return
    kept = router.kept_groups
    enough = kept <= groups and kept * (experts // groups) >= chosen
    yield "kept_groups", enough, f"is {kept} of {groups}, with {chosen} of {experts} experts to choose"


@cache
def _reader(hint: Any) -> Read:
    """Returns the function that reads values of the type ``hint``."""
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _object_reader({_json_name(hint.__name__): hint})  # type: ignore[union-attr]
    if origin is Annotated:
        return _whole_reader(args[1])
    if origin is Literal:
        return _choice_reader(args)
    if origin is tuple:
        return _list_reader(_reader(args[0]))
    if origin in (Union, types.UnionType):
        kinds = {_json_name(kind.__name__): kind for kind in args if kind is not type(None)}
        read = _object_reader(kinds)
        return (lambda value: None if value is None else read(value)) if type(None) in args else read
    return {bool: _read_flag, float: _read_number, str: _read_name}[hint]


def _object_reader(kinds: Mapping[str, Any]) -> Read:
    """Returns the function that reads an object of one of the dataclasses ``kinds``.

    The object has a field ``class`` with the name of the dataclass, and exactly the fields of that dataclass.
    """

    @cache  # evaluated late, because dataclasses may contain each other
    def readers(kind: Any) -> dict[str, Read]:
        hints = get_type_hints(kind, include_extras=True)
        return {field.name: _reader(hints[field.name]) for field in fields(kind)}

    def read(value: Any) -> Any:
        kind = kinds.get(str(value.get("class"))) if isinstance(value, dict) else None
        if kind is None:
            raise _Fault(f"is not described as {' or '.join(kinds)}")
        found = {}
        for field_name, read_field in readers(kind).items():
            name = _json_name(field_name)
            try:
                if name not in value:
                    raise _Fault("is missing")
                found[field_name] = read_field(value[name])
            except _Fault as fault:
                fault.path.append(name)
                raise
        if len(value) != len(found) + 1:
            raise _Fault("has fields that this version of freedive does not know")
        return kind(**found)

    return read


def _list_reader(read_item: Read) -> Read:
    def read(value: Any) -> Any:
        if not isinstance(value, list):
            raise _Fault("is not a list")
        try:
            return tuple(map(read_item, value))
        except _Fault as fault:
            fault.path.append("*")
            raise

    return read


def _whole_reader(range: Range) -> Read:
    def read(value: Any) -> int:
        if type(value) is not int or not range.least <= value <= range.most:
            raise _Fault(f"is {_quoted(value)}, not a whole number from {range.least} to {range.most}")
        return value

    return read


def _choice_reader(known: tuple[Any, ...]) -> Read:
    def read(value: Any) -> Any:
        if not isinstance(value, str) or value not in known:
            raise _Fault(f"is {_quoted(value)}, not one of {', '.join(map(repr, known))}")
        return value

    return read


def _read_flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Fault(f"is {_quoted(value)}, not true or false")
    return value


def _read_number(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= _LARGEST:  # refuses NaN too
        raise _Fault(f"is {_quoted(value)}, not a number")
    return float(value)


def _read_name(value: Any) -> str:
    if not isinstance(value, str) or not value.isprintable() or len(value) > 100:
        raise _Fault(f"is {_quoted(value)}, not a name")
    return value


def _quoted(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."
