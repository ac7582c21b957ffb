"""Divides a memory budget among the parts of a running model, and decides whether its experts are paged from disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from freedive.checkpoint.packed import Packed, PackedExperts
from freedive.config import EngineConfig
from freedive.errors import UserError
from freedive.model.batch import MAX_DRAFT, PAGE_TOKENS
from freedive.model.params import ExpertParams, Param, entries, tables_by_row
from freedive.model.size import WeightSizes, state_bytes, weight_sizes
from freedive.model.spec import Experts, ModelSpec
from freedive.model.state import PerToken
from freedive.ops.buffers import assign_buffers
from freedive.ops.fuse import fuse
from freedive.ops.native import NUMBER_BYTES, num_snapshots
from freedive.ops.record import record

StoredBytes = Callable[[str, Param | ExpertParams], float]
"""Returns the bytes of a weight, given its canonical name, or of one expert of a layer."""

CACHE_SHARE = 0.25
"""The share of free memory for the key-value cache if ``cache_tokens`` is not set."""

MARGIN_SHARE, MARGIN_BYTES = 0.05, 512 << 20
"""What the default budget leaves free of the available memory: this share, and at least these bytes.

Other programs and tables of the system grow while a model runs, the budget may be exceeded by up to 5%, and reads of
experts need some page cache."""

PROCESS_BYTES, TOKEN_BYTES = 80 << 20, 1800
"""Memory of the process beside the model: in all, and for each token of the vocabulary.

Measured 2026-11-30 with Python 3.11 on Linux: libraries take 40 MiB. Beyond weights, caches and buffers, answers take
30 MiB of anonymous memory with 4,096 tokens, and with a grammar 110 MiB with 64,001 tokens and 250 MiB with 152,001
tokens: for each token its text, its merges, its bytes and the grammar compiler's copy."""

LEAST_CHUNK, CHUNKS = 512, (4096, 2048, 1024)
"""Prompt tokens in a step where memory is short, and more if experts are read from disk and the memory allows it."""

CHUNK_SHARE = 0.1
"""The share of free memory that activations of larger steps may take."""

LEAST_CONTEXT = 2048
"""Tokens that the cache must hold, unless the model's or the requested context is shorter."""

ROWS, FILE_PAGE_BYTES = 4096, 4096
"""Different tokens whose rows of a table stay in memory, and the size of the pages in which the system reads rows."""

CODE_BYTES = 3
"""Bytes of one quantised activation with its share of the scales of its group (native/isa/kernels.h)."""

SCALES_SHARE = 1 / 16
"""Scales of an int8 cache as a share of its codes, at most."""

WIDTH = 32
"""Rows of buffers, keys and values are padded to a multiple of this width (native/formats/format.h)."""


@dataclass(frozen=True)
class MemoryPlan:
    """The parts of a memory ``budget``, in bytes.

    ``process``: interpreter, libraries and tokenizer. ``working``: activations of a step. ``dense``: all weights except
    routed experts, and some rows of the tables that are read by row. ``cache``: pages of keys and values. ``states``:
    slots of per-sequence states, and inputs of drafts. ``slots``: memory for routed experts, which equals their size,
    ``experts``, if all of them fit. ``prefill_chunk`` is the number of prompt tokens of a step.
    """

    budget: int
    process: int
    working: int
    dense: int
    cache: int
    states: int
    experts: int
    slots: int
    prefill_chunk: int

    @property
    def paged(self) -> bool:
        """Whether experts are read from disk when a token needs them; then nothing is drafted."""
        return self.slots < self.experts

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.process + self.working + self.dense + self.cache + self.states + self.slots


def plan_memory(
    model: ModelSpec, stored: StoredBytes, config: EngineConfig, *, available: int, num_threads: int = 1
) -> MemoryPlan:
    """Returns the plan for a model on a machine with ``available`` bytes of memory.

    If all weights fit into the budget (by default :func:`default_budget`), experts are resident, and the cache takes up
    to :data:`CACHE_SHARE` of the memory. If not, it takes up to this share of what dense weights leave, and slots take
    the rest. Where memory is short, a step has fewer prompt tokens than ``config`` allows. Without ``config.memory``, a
    model that cannot be paged either is planned to be resident. Raises UserError if the budget of ``config.memory`` is
    too small.
    """
    given = config.memory_bytes
    budget = default_budget(available) if given is None else given
    needs = _Needs(model, stored, config, num_threads)
    short = replace(needs, config=replace(config, prefill_chunk=min(config.prefill_chunk, LEAST_CHUNK)))
    experts, most = needs.sizes.experts, int(CACHE_SHARE * min(available, given or available))
    for each in (needs, short):
        room = budget - each.fixed - experts
        if room >= each.least:
            return each.plan(budget, min(most, room - each.states(room)), experts, experts)
    paged = replace(short, model=replace(model, mtp=None))
    least_slots = least_slot_bytes(paged.sizes)
    paged = _with_larger_chunks(paged, budget, least_slots)
    room = budget - paged.fixed
    if experts and room >= paged.least + least_slots:
        plan = paged.plan(budget, min(int(CACHE_SHARE * room), paged.context_cache), experts, 0)
        return replace(plan, slots=min(budget - plan.total, paged.sizes.experts))
    if given is None:
        return needs.plan(budget, most, experts, experts)
    least = paged.fixed + paged.least + least_slots
    remedy = f"Give it at least --memory {-(-least >> 20) + 1}MiB, or choose a smaller model"
    raise UserError(f"A memory of {config.memory} is too small for this model", remedy, param="memory")


def _with_larger_chunks(needs: _Needs, budget: int, least_slots: int) -> _Needs:
    """Returns ``needs`` with as many prompt tokens in a step as pay: each step reads most experts from disk once.

    The activations of a step take up to :data:`CHUNK_SHARE` of the memory that is not taken otherwise.
    """
    most = CHUNK_SHARE * (budget - needs.fixed - needs.least - least_slots)
    for chunk in CHUNKS:
        larger = replace(needs, config=replace(needs.config, prefill_chunk=chunk))
        if chunk > needs.config.prefill_chunk and larger.working - needs.working <= most:
            return larger
    return needs


def default_budget(available: int) -> int:
    """Returns the memory budget on a machine with ``available`` bytes: all but a margin."""
    return max(0, available - max(int(available * MARGIN_SHARE), MARGIN_BYTES))


def num_pages(model: ModelSpec, config: EngineConfig) -> int:
    """Returns the number of cache pages: by ``cache_tokens``, else for a full batch of full contexts."""
    if config.cache_tokens:
        return _pages_for(config.cache_tokens)
    return _pages_for(config.max_context or model.max_context) * config.max_batch


def packed_sizes(weights: Mapping[str, Packed]) -> StoredBytes:
    """Returns the function of the bytes of packed ``weights``."""

    def stored(name: str, _: Param | ExpertParams) -> int:
        packed = weights[name]
        return packed.stride if isinstance(packed, PackedExperts) else packed.data.nbytes

    return stored


def least_slot_bytes(sizes: WeightSizes) -> int:
    """Returns the least memory for slots: two records of each size, since a step takes a layer's experts in waves."""
    return 2 * sum({layer.record_bytes for layer in sizes.layers})


def page_bytes(model: ModelSpec, cache_format: str) -> int:
    """Returns the bytes of one page of the cache for all layers, at most."""
    values = sum(
        part.heads * _padded(part.dim)
        for layer in model.blocks
        for part in layer.mixer.state
        if isinstance(part, PerToken)
    )
    scales = SCALES_SHARE if cache_format == "int8" else 0
    return round(PAGE_TOKENS * values * NUMBER_BYTES[cache_format] * (1 + scales))


def working_bytes(model: ModelSpec, config: EngineConfig, num_threads: int) -> int:
    """Returns the bytes of the activations of a step, which native/program.cpp allocates.

    Rows of results that few tokens of a step need, such as logits, take memory only when they are used.
    """
    rows = config.prefill_chunk + config.max_batch + num_threads - 1
    wanted = min(rows, config.max_batch + MAX_DRAFT)
    buffers, _ = assign_buffers(fuse(record(model)))
    results = sum(_padded(buffer.width) * (wanted if buffer.wanted else rows) for buffer in buffers)
    inputs = max(shape[-1] for shape in _matrix_shapes(model))
    mixtures = [layer.ffn for layer in model.blocks if isinstance(layer.ffn, Experts)]
    hidden = max((_hidden_width(ffn) for ffn in mixtures), default=0)
    routes = 2 * sum(_padded(ffn.router.num_chosen) for ffn in mixtures)
    return 4 * results + rows * (4 * (hidden + routes) + (4 + CODE_BYTES) * _padded(inputs))


@dataclass(frozen=True)
class _Needs:
    """What a model needs under a configuration, in bytes."""

    model: ModelSpec
    stored: StoredBytes
    config: EngineConfig
    num_threads: int

    @cached_property
    def sizes(self) -> WeightSizes:
        return weight_sizes(self.model, self.stored)

    @cached_property
    def working(self) -> int:
        return working_bytes(self.model, self.config, self.num_threads)

    @property
    def process(self) -> int:
        return PROCESS_BYTES + TOKEN_BYTES * self.model.vocab_size

    @property
    def dense(self) -> int:
        return self.sizes.dense + self._rows

    @property
    def _rows(self) -> int:
        """Bytes of the pages of tables that are read by row: those of the tokens of a few requests."""
        row = self.sizes.embedding / self.model.vocab_size + len(tables_by_row(self.model)) * FILE_PAGE_BYTES
        return min(self.sizes.embedding, round(ROWS * row))

    @property
    def fixed(self) -> int:
        """Everything except experts, cache and states."""
        return self.process + self.working + self.dense

    @property
    def wanted_cache(self) -> int:
        return num_pages(self.model, self.config) * page_bytes(self.model, self.config.cache_format)

    @property
    def context_cache(self) -> int:
        """The cache of one request of the longest context."""
        return self._cache(self.config.max_context or self.model.max_context)

    @property
    def least_cache(self) -> int:
        return min(self.context_cache, self._cache(LEAST_CONTEXT))

    def _cache(self, num_tokens: int) -> int:
        """Returns the bytes of a cache of ``num_tokens``, or of the configured size."""
        pages = _pages_for(self.config.cache_tokens or num_tokens)
        return pages * page_bytes(self.model, self.config.cache_format)

    @property
    def least(self) -> int:
        """The smallest cache, with its states."""
        return self.least_cache + self.states(self.least_cache)

    def states(self, cache: int) -> int:
        """Returns the bytes of the states beside a cache of ``cache`` bytes."""
        if not (slot := state_bytes(self.model)):
            return 0
        count = self.config.max_batch
        inputs = 4 * MAX_DRAFT * sum(part.input_dim for part in self.model.per_sequence)
        return count * inputs + (count + num_snapshots(slot, max(cache, 0), count)) * slot

    def plan(self, budget: int, most_cache: int, experts: int, slots: int) -> MemoryPlan:
        """Returns a plan whose cache is as large as wanted, but at most ``most_cache`` and at least the smallest."""
        cache = max(self.least_cache, min(self.wanted_cache, most_cache))
        states = self.states(cache)
        parts = self.process, self.working, self.dense, cache, states, experts, slots
        return MemoryPlan(budget, *parts, self.config.prefill_chunk)


def _hidden_width(ffn: Experts) -> int:
    shared = _padded(ffn.shared.dim) if ffn.shared else 0
    return ffn.router.num_chosen * _padded(ffn.expert.dim) + shared


def _matrix_shapes(model: ModelSpec) -> list[tuple[int, ...]]:
    matrices = [entry for entry in entries(model).values() if isinstance(entry, Param)]
    return [param.shape for param in matrices if len(param.shape) > 1]


def _pages_for(num_tokens: int) -> int:
    return -(-num_tokens // PAGE_TOKENS)


def _padded(width: int) -> int:
    return -(-width // WIDTH) * WIDTH
