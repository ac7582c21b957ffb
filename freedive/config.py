"""Settings: one dataclass each. Command-line flags and FREEDIVE_* variables derive from the fields."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypedDict, TypeVar

from freedive.errors import UserError
from freedive.field_types import check_fields

HOST_NAME = re.compile(r"[a-z0-9._-]+")
ORIGIN = re.compile(r"[*]|null|[a-z][a-z0-9+.-]*://[^\s/?#@]+")

Config = TypeVar("Config", bound="EngineConfig | ServerConfig")

BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
"""How a setting that is on or off may be written."""

PARSERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "int | None": int,
    "float": float,
    "float | None": float,
    "str": str,
    "bool": lambda text: boolean(text),
    "tuple[str, ...]": lambda text: (text,),
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

    threads: int | None = setting(None, "Threads that compute; default: the physical cores", low=1, high=1024)
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
    prefix_cache: bool = setting(True, "Compute once what several requests begin with: on or off")
    disk_cache_gb: float = setting(
        4.0, "GB on disk for the beginnings of requests, to be there after a restart; 0 for none", low=0, high=1e9
    )
    watchdog: float = setting(300, "Seconds without progress after which /health tells that a model has stalled", low=1)
    speculation: str = setting("auto", "Guess tokens ahead where it pays: auto or off", choices=("auto", "off"))

    def __post_init__(self) -> None:
        _check(self)


class EngineSettings(TypedDict, total=False):
    """The fields of :class:`EngineConfig`, as keywords of what takes some of them."""

    threads: int | None
    max_context: int | None
    cache_tokens: int | None
    cache_format: str
    max_batch: int
    prefill_chunk: int
    max_queue: int
    precision: str
    prefix_cache: bool
    disk_cache_gb: float
    watchdog: float
    speculation: str


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
    origins: tuple[str, ...] = setting(
        (),
        "Web pages that may use this server from elsewhere: exact origins such as http://localhost:3000 or "
        "app://obsidian.md, with commas between them, or, where keys are, * for all",
    )
    alias: tuple[str, ...] = setting(
        (), "A further name for a served model: NAME=MODEL, with commas between several, or repeated"
    )
    pull: bool = setting(False, "Let everybody who reaches a server without keys fetch models, not only this machine")
    pull_limit_gb: float = setting(
        200, "GB on disk that models may take together when clients of the server fetch more of them", low=0
    )
    max_body_mb: float = setting(32, "Largest request, in MiB", low=0.001, high=1024)
    stall_timeout: float = setting(120, "Seconds after which a client that takes nothing is dropped", low=0.1)
    drain: float = setting(30, "Seconds that running answers may go on after SIGTERM", low=0)
    keep_requests: int = setting(
        0,
        "Last requests of each key that are kept in memory, prompts and answers, for freedive replay",
        low=0,
        high=1000,
    )
    log: str = setting("off", "A line for each request on standard error", choices=("off", "text", "json"))

    def __post_init__(self) -> None:
        _check(self)
        for name in self.host_names:
            if not HOST_NAME.fullmatch(name):
                what = f"hosts has {name!r}, which is not a name of this server, such as box.lan"
                origin = name if "://" in name else f"http://{name}"
                raise UserError(what, f"For a web page from elsewhere, write --origins {origin}", param="hosts")
        for origin in self.allowed_origins:
            if not ORIGIN.fullmatch(origin):
                what = f"{origin!r} is not an origin"
                remedy = "Write scheme, host and port as the page has them, such as http://localhost:3000"
                raise UserError(what, remedy, param="origins")
        for text in listed(*self.alias):
            if not all(part.strip() for part in text.partition("=")):
                raise UserError(f"{text!r} is not an alias", "Write NAME=MODEL", param="alias")

    @property
    def host_names(self) -> frozenset[str]:
        """``hosts``, one by one, in small letters."""
        return frozenset(listed(self.hosts.lower()))

    @property
    def allowed_origins(self) -> frozenset[str]:
        """``origins``, one by one, as browsers write them: in small letters, without a slash at the end."""
        return frozenset(origin.lower().rstrip("/") for origin in listed(*self.origins))

    @property
    def aliases(self) -> dict[str, str]:
        """``alias``, one by one: name -> model."""
        pairs = (text.partition("=") for text in listed(*self.alias))
        return {name.strip(): model.strip() for name, _, model in pairs}


def listed(*texts: str) -> tuple[str, ...]:
    """What stands between the commas of ``texts``."""
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def load(kind: type[Config], given: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """``kind`` filled from ``given`` (where not None), else from FREEDIVE_<FIELD> in ``environ``, else by default."""
    values = {
        item.name: _parse(item, environ[variable(item.name)])
        for item in fields(kind)
        if environ.get(variable(item.name))
    }
    return kind(**values | {name: value for name, value in (given or {}).items() if value is not None})


def boolean(text: str) -> bool:
    """The value of a setting that is on or off; ValueError for a text that is none of :data:`BOOLEANS`."""
    try:
        return BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError(text) from None


def variable(name: str) -> str:
    """The environment variable of a field."""
    return f"FREEDIVE_{name.upper()}"


def _parse(item: Field[Any], text: str) -> Any:
    try:
        return PARSERS[str(item.type)](text)
    except ValueError:
        values = "true or false" if item.type == "bool" else "a number"
        raise UserError(f"{variable(item.name)} is {text!r}", f"Set it to {values}, or unset it") from None


def _switch(name: str, value: object) -> bool:
    """A setting that is on or off as the command line and older programs give it."""
    try:
        return boolean(str(value))
    except ValueError:
        raise UserError(f"{name} is {value!r}", "Choose on or off", param=name) from None


def _check(config: EngineConfig | ServerConfig) -> None:
    for item in fields(config):
        value = getattr(config, item.name)
        if item.type == "bool" and not isinstance(value, bool):
            object.__setattr__(config, item.name, _switch(item.name, value))
    check_fields(config)
    for item in fields(config):
        value, limits = getattr(config, item.name), item.metadata["range"]
        if limits and value is not None and not limits[0] <= value <= limits[1]:
            bounds = f"at least {limits[0]}" if limits[1] == float("inf") else f"from {limits[0]} to {limits[1]}"
            raise UserError(f"{item.name} is {value}", f"Choose a value {bounds}", param=item.name)
        choices = item.metadata["choices"]
        if choices and value not in choices:
            raise UserError(f"{item.name} is {value!r}", f"Choose {' or '.join(choices)}", param=item.name)
