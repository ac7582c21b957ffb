"""Settings as dataclasses, whose fields define the command-line flags and the FREEDIVE_* environment variables."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, TypedDict, TypeVar

from freedive.errors import UserError
from freedive.field_types import check_fields
from freedive.files import quote

HOST_NAME = re.compile(r"[a-z0-9._-]+")
ORIGIN = re.compile(r"[*]|null|[a-z][a-z0-9+.-]*://[^\s/?#@]+")
SIZE = re.compile(r"(?P<number>\d{1,9}([.]\d{1,9})?) ?(?P<prefix>[kmgt])(?P<unit>i?b)?")
"""A size in bytes; K, M, G and T count in steps of 1024, as do KiB, MiB, GiB and TiB, but KB, MB, GB and TB of 1000."""

Config = TypeVar("Config", bound="EngineConfig | ServerConfig")

BOOLEANS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
"""The spellings of a boolean setting."""

PARSERS: dict[str, Callable[[str], Any]] = {
    "int": int,
    "int | None": int,
    "float": float,
    "float | None": float,
    "str": str,
    "str | None": str,
    "bool": lambda text: boolean(text),
    "tuple[str, ...]": lambda text: (text,),
}
"""The parser of an environment variable's text, by the annotation of its field."""


def setting(
    default: Any, help: str, *, low: float | None = None, high: float = float("inf"), choices: tuple[str, ...] = ()
) -> Any:
    """Returns a dataclass field with a description and its valid values: ``low`` to ``high``, or ``choices``."""
    limits = None if low is None else (low, high)
    return field(default=default, metadata={"help": help, "range": limits, "choices": choices})


@dataclass(frozen=True)
class EngineConfig:
    """Settings of the engine. None means a default that depends on the machine or the model."""

    threads: int | None = setting(None, "Threads for computation; default: the physical cores", low=1, high=1024)
    max_context: int | None = setting(None, "Most tokens of prompt and answer together; default: the model's", low=2)
    cache_tokens: int | None = setting(None, "Tokens that the key-value cache holds; default: by free memory", low=32)
    cache_format: str = setting(
        "f16",
        "Format of cached keys and values: f16, or int8, which takes half the memory and is faster in long "
        "conversations, but less exact",
        choices=("f16", "int8"),
    )
    max_batch: int = setting(16, "Requests computed together", low=1, high=4096)
    prefill_chunk: int = setting(2048, "Most prompt tokens computed in one step", low=2, high=65536)
    max_queue: int = setting(256, "Requests that may wait in the queue", low=0)
    precision: str = setting(
        "balanced",
        "Activations in 8 bits, with outliers in higher precision: for early prompt tokens (balanced), for all tokens "
        "(fast), for none (exact); prompts in bfloat16 where the processor has tiles (AMX), unless exact",
        choices=("balanced", "fast", "exact"),
    )
    prefix_cache: bool = setting(True, "Reuse computed pages of shared prompt prefixes: on or off")
    disk_cache_gb: float = setting(
        4.0, "GB on disk for pages of prompt prefixes, which are reused after a restart; 0 for none", low=0, high=1e9
    )
    watchdog: float = setting(300, "Seconds without progress after which /health reports a stalled model", low=1)
    speculation: str = setting("auto", "Speculative decoding: auto (where faster) or off", choices=("auto", "off"))
    memory: str | None = setting(
        None,
        "Memory that the model may take with everything it needs, such as 8GiB or 8000M; experts that do not fit are "
        "read from disk; default: what is available, less a margin",
    )
    experts_per_token: int | None = setting(
        None, "Lossy: route each token to this many of its experts only, the best; default: the model's number", low=1
    )
    prefer_cached_experts: float = setting(
        0.0,
        "Lossy, and answers depend on what was asked before: where experts stay on disk, generated tokens prefer those "
        "in memory; from 0 (never) to 1 (whenever they are not among a token's best half)",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        _check(self)
        if self.memory is not None:
            byte_size(self.memory, "memory")
        if self.prefer_cached_experts and self.precision == "exact":
            what = "prefer_cached_experts makes answers depend on the cache, so they are not exact"
            raise UserError(what, "Choose another precision, or leave it out", param="prefer_cached_experts")

    @property
    def lossy(self) -> dict[str, float]:
        """The settings that change which experts compute a token, with their values; empty by default."""
        given: dict[str, float | None] = {
            "experts_per_token": self.experts_per_token,
            "prefer_cached_experts": self.prefer_cached_experts,
        }
        return {name: value for name, value in given.items() if value}

    @property
    def memory_bytes(self) -> int | None:
        """The bytes of ``memory``."""
        return None if self.memory is None else byte_size(self.memory, "memory")


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
    memory: str | None
    experts_per_token: int | None
    prefer_cached_experts: float


@dataclass(frozen=True)
class ServerConfig:
    """Settings of the HTTP server."""

    host: str = setting("127.0.0.1", "Address to listen on; 0.0.0.0 for every network")
    port: int = setting(8000, "Port to listen on; 0 for any free one", low=0, high=65535)
    keep_alive: float = setting(300, "Seconds that a model loaded on demand stays when unused; -1 for ever", low=-1)
    memory_gb: float | None = setting(
        None,
        "GB that all loaded models may take together before idle ones are unloaded; default: by free memory. The "
        "budget of each model is --memory",
        low=0.1,
    )
    insecure: bool = setting(False, "Listen on addresses of other networks although there are no keys")
    hosts: str = setting("", "Host names of this server in addition to localhost, separated by commas")
    origins: tuple[str, ...] = setting(
        (),
        "Origins whose web pages may use this server, such as http://localhost:3000 or app://obsidian.md, separated by "
        "commas; * for all, which needs keys",
    )
    alias: tuple[str, ...] = setting(
        (), "A further name for a served model: NAME=MODEL, separated by commas or repeated"
    )
    pull: bool = setting(False, "On a server without keys, let other machines download models, too")
    pull_limit_gb: float = setting(
        200, "GB on disk for all models together; at the limit, clients cannot download more", low=0
    )
    max_body_mb: float = setting(32, "Largest request body, in MiB", low=0.001, high=1024)
    conversations_gb: float = setting(
        2, "GB that the chat page's conversations of each key may take on disk, without their search index", low=0
    )
    stall_timeout: float = setting(120, "Seconds after which a client that reads nothing is disconnected", low=0.1)
    drain: float = setting(30, "Seconds that running answers may continue after SIGTERM", low=0)
    keep_requests: int = setting(
        0,
        "Number of last requests of each key, with answers, that are kept in memory for freedive replay",
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
                raise UserError(what, f"For a web page of another origin, use --origins {origin}", param="hosts")
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
        """The names in ``hosts``, in lower case."""
        return frozenset(listed(self.hosts.lower()))

    @property
    def allowed_origins(self) -> frozenset[str]:
        """The origins in ``origins`` in the spelling of browsers: lower case, without a trailing slash."""
        return frozenset(origin.lower().rstrip("/") for origin in listed(*self.origins))

    @property
    def aliases(self) -> dict[str, str]:
        """The model of each name in ``alias``."""
        pairs = (text.partition("=") for text in listed(*self.alias))
        return {name.strip(): model.strip() for name, _, model in pairs}


def listed(*texts: str) -> tuple[str, ...]:
    """Returns the parts between the commas of all ``texts``, without empty ones."""
    return tuple(part.strip() for text in texts for part in text.split(",") if part.strip())


def load(kind: type[Config], given: Mapping[str, Any] | None = None, environ: Mapping[str, str] = os.environ) -> Config:
    """Returns a ``kind`` from ``given`` (if not None), else from FREEDIVE_<FIELD> in ``environ``, else defaults."""
    values = {
        item.name: _parse(item, environ[variable(item.name)])
        for item in fields(kind)
        if environ.get(variable(item.name))
    }
    return kind(**values | {name: value for name, value in (given or {}).items() if value is not None})


def settings_text(values: Mapping[str, float]) -> str:
    """Returns numeric settings as text: "name=value, name=value"."""
    return ", ".join(f"{name}={value:g}" for name, value in values.items())


def boolean(text: str) -> bool:
    """Parses a boolean setting. Raises ValueError for a text that is not in :data:`BOOLEANS`."""
    try:
        return BOOLEANS[text.strip().lower()]
    except KeyError:
        raise ValueError(text) from None


def byte_size(text: str, name: str) -> int:
    """Returns the bytes of a size such as "8GiB", "8G" (the same) or "8GB" (10^9 each).

    Raises UserError for another text; ``name`` is the setting that has it.
    """
    match = SIZE.fullmatch(text.strip().lower())
    if not match:
        raise UserError(f"{name} is {quote(text)}", "Write a size such as 8GiB, 8G, 8000M or 500MB", param=name)
    base = 1000 if match["unit"] == "b" else 1024
    return int(float(match["number"]) * base ** ("kmgt".index(match["prefix"]) + 1))


def variable(name: str) -> str:
    """Returns the environment variable of a field."""
    return f"FREEDIVE_{name.upper()}"


def _parse(item: Field[Any], text: str) -> Any:
    try:
        return PARSERS[str(item.type)](text)
    except ValueError:
        values = "true or false" if item.type == "bool" else "a number"
        raise UserError(f"{variable(item.name)} is {text!r}", f"Set it to {values}, or unset it") from None


def _switch(name: str, value: object) -> bool:
    """Parses a boolean setting from the command line or from Python. Raises UserError."""
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
