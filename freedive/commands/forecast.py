"""Predicts for ``freedive plan`` how a model runs on this machine, from its description and measured speeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from freedive import machine
from freedive.checkpoint.packed import aligned
from freedive.commands import trace as tracing
from freedive.commands.describe import bytes_in, configured_sizes, opened, with_weights
from freedive.config import EngineConfig
from freedive.errors import UserError
from freedive.hub import cache
from freedive.hub.disks import disk_speed_of_cache
from freedive.hub.sources import Address, parse
from freedive.model.batch import PAGE_TOKENS
from freedive.model.params import ExpertParams, Param
from freedive.model.size import WeightSizes, footprint, mixer_costs, state_bytes, weight_sizes
from freedive.model.spec import ModelSpec
from freedive.model.speed import (
    ATTENTION_EFFICIENCY,
    PREFILL_EFFICIENCY,
    TILE_EFFICIENCY,
    MachineSpeed,
    TokenCost,
    budget_for,
    decode_seconds,
    hit_rates,
    prefill_seconds,
)
from freedive.native import _native
from freedive.ops.memory_plan import MemoryPlan, StoredBytes, page_bytes, plan_memory

PROMPTS = (512, 2048)
"""Lengths of prompts whose time to the first token is predicted."""

DECODED_AFTER = 512
"""Tokens before the decoded ones."""


@dataclass(frozen=True)
class Described:
    """A model whose weights need not be here: the size of the download in bytes (0: it is here), its description, and
    the sizes of its weights in memory. ``assumed_bits`` is the size of each if the configuration does not tell it."""

    download_bytes: int
    spec: ModelSpec
    stored: StoredBytes
    assumed_bits: int | None = None

    @property
    def sizes(self) -> WeightSizes:
        return weight_sizes(self.spec, self.stored)


def described(ref: str) -> Described:
    """Describes a model from local files, or else from the headers of its files on a hub.

    Raises UserError for a model that freedive cannot run, or that must be downloaded to be described.
    """
    place = parse(ref)
    if isinstance(place, Path):
        return _at(place, 0)
    if stored := cache.find(str(place)):
        return _at(stored.path, 0)
    if place.scheme == "pypi":
        raise UserError(f"{ref} is inside of a package, whose files cannot be read one by one", f"freedive pull {ref}")
    return _remote(place)


def _remote(address: Address) -> Described:
    from freedive.hub.headers import fetch_headers  # imports the HTTP client

    with TemporaryDirectory(prefix="freedive-plan-") as folder:
        path, download_bytes = fetch_headers(address, Path(folder))
        return _at(path, download_bytes)


def _at(path: Path, download_bytes: int) -> Described:
    path = with_weights(path)
    if path.suffix == ".json":
        spec, num_bytes, assumed_bits = configured_sizes(path)
        return Described(download_bytes, spec, _by_record(num_bytes), assumed_bits)
    spec, _, formats = opened(path)
    return Described(download_bytes, spec, _by_record(bytes_in(formats)))


def _by_record(num_bytes: Callable[[str, Param], float]) -> StoredBytes:
    """Returns the function of the bytes of weights and of experts' records; all experts of a layer have equal sizes."""

    def stored(name: str, entry: Param | ExpertParams) -> float:
        if isinstance(entry, Param):
            return num_bytes(name, entry)
        return aligned(round(sum(num_bytes(f"{name}.0.{part}", param) for part, param in entry.parts.items())))

    return stored


def measure_machine(threads: int, record_bytes: int) -> MachineSpeed:
    """Measures this machine with ``threads`` threads; the disk only if it has not been measured before."""
    peaks = _native.compute_peaks(threads)
    products = max(
        (peak * (TILE_EFFICIENCY if name.startswith("tdp") else PREFILL_EFFICIENCY) for _, name, peak in peaks),
        default=1e9,
    )
    attention = ATTENTION_EFFICIENCY * max((peak for kind, _, peak in peaks if kind == "fp32"), default=1e9)
    disk = disk_speed_of_cache(record_bytes)
    return MachineSpeed(1e9 * tracing.bandwidth(threads), disk.bytes_per_second, products, attention)


@dataclass(frozen=True)
class Speed:
    """Predicted speeds: tokens/s of decoding at ``worst``, with uniform routing, and with ``usual`` text; seconds to
    the first token by length of the prompt."""

    worst: float
    usual: float
    first_token_s: dict[int, float]


def speed(cost: TokenCost, on: MachineSpeed, slots: float, chunk: int) -> Speed:
    """Predicts the speed of a model with ``slots`` bytes of experts in memory."""
    worst, usual = (1 / decode_seconds(cost, on, rate) for rate in hit_rates(cost.sizes, slots))
    return Speed(worst, usual, {count: prefill_seconds(cost, on, count, chunk, slots) for count in PROMPTS})


@dataclass(frozen=True)
class Forecast:
    """How a model runs. ``doubling`` is the budget that doubles the speed in the worst case; None if none does."""

    plan: MemoryPlan
    cost: TokenCost
    speed: Speed
    resident: Speed
    doubling: int | None


def forecast(
    model: Described, config: EngineConfig, on: MachineSpeed, threads: int, available: int | None = None
) -> Forecast:
    """Plans the memory of ``model`` and predicts its speed. Raises UserError if the budget is too small.

    ``available`` is the memory that is not in use, by default that of now.
    """
    free = machine.available_memory() if available is None else available
    plan = plan_memory(model.spec, model.stored, config, available=free, num_threads=threads)
    cost = token_cost(model, config)
    now, chunk = speed(cost, on, plan.slots, plan.prefill_chunk), plan.prefill_chunk

    def seconds(slots: int) -> float:
        return decode_seconds(cost, on, hit_rates(cost.sizes, slots)[0])

    slots = budget_for(0.5 / now.worst, plan.slots, plan.experts, seconds) if plan.paged else None
    others = plan.total - plan.slots
    return Forecast(plan, cost, now, speed(cost, on, plan.experts, chunk), None if slots is None else others + slots)


def token_cost(model: Described, config: EngineConfig) -> TokenCost:
    """Returns the cost of the tokens of a model, without layers that draft."""
    spec = replace(model.spec, mtp=None)
    tables = ("embed", "inputs.embed", "head")
    operations = 2.0 * footprint(spec, lambda name, param: 0 if name in tables else param.size).read
    read = page_bytes(spec, config.cache_format) / PAGE_TOKENS * DECODED_AFTER
    states = 2 * state_bytes(spec)
    return TokenCost(weight_sizes(spec, model.stored), operations, read, states, mixer_costs(spec))
