"""Settings: one dataclass each. Command-line flags and FREEDIVE_* variables derive from the fields."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypeVar

from freedive.errors import UserError

Config = TypeVar("Config", bound="EngineConfig | ServerConfig")

PARSERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "int | None": int,
    "float": float,
    "float | None": float,
    "str": str,
    "bool": lambda text: bool(int(text)),
}
"""Text of an environment variable -> value, by the annotation of its field."""


def setting(
    default: Any, help: str, *, low: float | None = None, high: float = float("inf"), choices: tuple[str, ...] = ()
) -> Any:
    """A field with its description and what it may be: a number from ``low`` to ``high``, or one of ``choices``."""
    limits = None if low is None else (low, high)
    return field(default=default, metadata={"help": help, "range": limits, "choices": choices})


@dataclass(frozen=True)
class EngineConfig:
    """How a model is run. None means that the machine or the model decides."""

    threads: int | None = setting(None, "Threads that compute; default: the physical cores", low=1)
    max_context: int | None = setting(
        None, "Longest prompt and answer together, in tokens; default: the model's", low=2
    )
    cache_tokens: int | None = setting(None, "Tokens that the key-value cache holds; default: by free memory", low=32)
    cache_format: str = setting(
        "f16",
        "What the cache keeps keys and values as: f16, or int8, which takes half the memory and is faster far into a "
        "conversation, but less exact",
        choices=("f16", "int8"),
    )
    max_batch: int = setting(16, "Requests computed together", low=1, high=4096)
    prefill_chunk: int = setting(512, "Prompt tokens computed in one step", low=2, high=65536)
    max_queue: int = setting(256, "Requests that may wait for a place", low=0)
    precision: str = setting(
        "balanced",
        "Activations in 8 bits but for what stands out: of early prompt tokens (balanced), of all tokens (fast: nearer "
        "to the truth than others' 8 bits), of none (exact)",
        choices=("balanced", "fast", "exact"),
    )
    prefix_cache: str = setting("on", "Compute once what several requests begin with: on or off", choices=("on", "off"))
    disk_cache_gb: float = setting(
        4.0, "GB on disk for the beginnings of requests, to be there after a restart; 0 for none", low=0
    )
    watchdog: float = setting(300, "Seconds without progress after which /health tells that a model has stalled", low=1)
    speculation: str = setting("auto", "Guess tokens ahead where it pays: auto or off", choices=("auto", "off"))

    def __post_init__(self) -> None:
        _check(self)


@dataclass(frozen=True)
class ServerConfig:
    """Where and how to serve HTTP."""

    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 for every network")
    port: int = setting(8000, "Port to listen on; 0 for any free one", low=0, high=65535)
    keep_alive: float = setting(300, "Seconds that a model loaded on demand stays when unused; -1 for ever", low=-1)
    memory_gb: float | None = setting(
        None, "Memory that loaded models may take together; default: by free memory", low=0.1
    )
    insecure: bool = setting(False, "Listen on other addresses than this machine's own though there are no keys")
    hosts: str = setting("", "Names of this server besides localhost, with commas between them")
    max_body_mb: float = setting(32, "Largest request, in MiB", low=0.001, high=1024)
    stall_timeout: float = setting(120, "Seconds after which a client that takes nothing is dropped", low=0.1)
    drain: float = setting(30, "Seconds that running answers may go on after SIGTERM", low=0)
    log: str = setting("off", "A line for each request on standard error", choices=("off", "text", "json"))

    def __post_init__(self) -> None:
        _check(self)


def load(kind: type[Config], given: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """``kind`` filled from ``given`` (where not None), else from FREEDIVE_<FIELD> in ``environ``, else by default."""
    values = {
        item.name: _parse(item, environ[variable(item.name)])
        for item in fields(kind)
        if environ.get(variable(item.name))
    }
    return kind(**values | {name: value for name, value in (given or {}).items() if value is not None})


def variable(name: str) -> str:
    """The environment variable of a field."""
    return f"FREEDIVE_{name.upper()}"


def _parse(item: Field[Any], text: str) -> Any:
    try:
        return PARSERS[str(item.type)](text)
    except ValueError:
        raise UserError(f"{variable(item.name)} is {text!r}", "Set it to a number, or unset it") from None


def _check(config: EngineConfig | ServerConfig) -> None:
    for item in fields(config):
        value, limits = getattr(config, item.name), item.metadata["range"]
        if limits and value is not None and not limits[0] <= value <= limits[1]:
            bounds = f"at least {limits[0]}" if limits[1] == float("inf") else f"from {limits[0]} to {limits[1]}"
            raise UserError(f"{item.name} is {value}", f"Choose a value {bounds}", param=item.name)
        choices = item.metadata["choices"]
        if choices and value not in choices:
            raise UserError(f"{item.name} is {value!r}", f"Choose {' or '.join(choices)}", param=item.name)
