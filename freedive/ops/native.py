"""Runs a model on the compiled kernels: the operations are recorded once, and a step is one native call."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from freedive import machine
from freedive.arrays import Bytes, Floats, Ints
from freedive.checkpoint.packed import Packed, PackedExperts
from freedive.checkpoint.weight_store import WeightStore
from freedive.errors import UserError
from freedive.model import spec
from freedive.model.batch import MAX_DRAFT, Batch
from freedive.model.params import tables_by_row
from freedive.model.state import per_token_dim
from freedive.native import _native
from freedive.ops.emit import Emitter, Part
from freedive.ops.expert_order import write_order
from freedive.ops.fuse import fuse, until_result
from freedive.ops.paging import ExpertCacheStats, ExpertFile, ExpertTraffic, Paging, page_experts
from freedive.ops.record import record
from freedive.ops.routes import Routes
from freedive.ops.trace import Operation, Tracer

OUTLIER_THRESHOLDS = {"exact": (0.0, 0.0), "balanced": (8.0, 0.0), "fast": (8.0, 8.0)}
"""Precision -> outlier thresholds of tokens early in a prompt and of all other tokens.

A group of activations keeps 16 bits if its largest magnitude exceeds the threshold times the root mean square of the
row; other groups have 8 bits. With threshold 0 all groups keep 16 bits. With threshold 8 about 5% of the groups do."""

NUMBER_BYTES = {"f32": 4, "f16": 2, "int8": 1}
"""Format of the key-value cache -> bytes of one value, without scales."""


MAX_SNAPSHOTS = 1024
"""Maximum number of snapshots of states in memory."""

SNAPSHOT_BYTES = 512 << 20
"""What copies of states may take however small the cache is: enough for all sequences unless states are large."""

LOAD_EVERY = 64
"""One of every ``LOAD_EVERY`` steps counts the rows of each expert."""

SAVE_ORDER_S = 300
"""Seconds between writes of the order in which the next start reads experts."""


def isa_level() -> str:
    """Returns the default instruction-set level: FREEDIVE_ISA if set, else the best level of the machine."""
    return os.environ.get("FREEDIVE_ISA") or _native.isa_levels()[-1]


class NativeRunner:
    """Runs a model on the compiled kernels; implements :class:`freedive.model.batch.Runner`.

    ``max_rows`` is the maximum number of tokens of a step. ``num_pages`` is the size of the key-value cache, which is
    reduced if it would exceed ``max_cache_bytes``. ``cache_format`` is f32, f16 or int8. ``precision`` is a key of
    :data:`OUTLIER_THRESHOLDS`; whether a token is early depends only on its position in the request. ``isa`` selects an
    instruction-set level (default: :func:`isa_level`). ``max_sequences`` is the number of slots for running sequences;
    further slots are for snapshots. With ``paging``, routed experts stay on disk, and ``prefer_cached_experts``, 0 to
    1, is how much generated tokens prefer those in memory. ``num_bytes`` is the memory for weights, cache, states and
    inputs of draft tokens.

    Raises UserError if the machine lacks the instruction-set level, if the cache does not fit into memory, for an int8
    cache of latents, and if the model has more experts or wider heads than the kernels support.
    """

    def __init__(
        self,
        model: spec.ModelSpec,
        weights: Mapping[str, Packed],
        *,
        num_threads: int,
        max_rows: int,
        num_pages: int,
        max_cache_bytes: int | None = None,
        max_sequences: int = 16,
        cache_format: str = "f16",
        precision: str = "exact",
        isa: str | None = None,
        paging: Paging | None = None,
        prefer_cached_experts: float = 0.0,
    ) -> None:
        self.vocab_size = model.vocab_size
        self.max_context = model.max_context
        self.drafts = model.mtp is not None
        self.pages_experts = paging is not None
        self.max_rows = max_rows
        _refuse_what_is_too_wide(model)
        if cache_format == "int8":
            _refuse_latents(model)
        try:
            self._program = _native.Program(isa or isa_level(), num_threads, _native.CacheFormat[cache_format])
        except ValueError as error:
            raise UserError(str(error), "Unset FREEDIVE_ISA, or choose one of these") from None
        self._expert_file: ExpertFile | None = None
        weights = self._placed(model, weights, paging)
        phases = fuse(record(model))
        emitter = Emitter(self._program, weights)
        self._parts = emitter.emit(phases)
        self._routes = emitter.routes
        self._num_steps, self._saved_order_at = 0, time.monotonic()
        self._order_file = paging.order if paging else None
        self._load = [
            np.zeros(layer.ffn.router.num_experts, np.int64)
            for layer in model.layers
            if isinstance(layer.ffn, spec.Experts)
        ]
        self._tracer = Tracer(until_result(phases), weights, NUMBER_BYTES[cache_format])
        if max_cache_bytes is not None:
            num_pages = max(1, min(num_pages, max_cache_bytes // self._program.page_bytes))
        self.num_pages = num_pages
        num_slots = max_sequences + self._num_snapshots(max_sequences)
        draft_bytes = max_sequences * MAX_DRAFT * 4 * sum(part.input_dim for part in model.per_sequence)
        cache_bytes = num_pages * self._program.page_bytes + num_slots * self._program.slot_bytes + draft_bytes
        if cache_bytes > machine.available_memory():  # checked here because the system commits memory only on first use
            what = f"A key-value cache of {cache_bytes / 2**30:.1f} GiB does not fit"
            raise UserError(what, "Lower cache_tokens or max_context")
        program = self._program
        program.early_outlier_threshold, program.late_outlier_threshold = OUTLIER_THRESHOLDS[precision]
        program.bf16_prompts, program.cache_preference = precision != "exact", prefer_cached_experts
        self.boundaries = self._boundaries(model, precision)
        program.allocate(max_rows, num_pages, num_slots, max_sequences)
        self._in_memory = [
            weight.data for weight in weights.values() if not (paging and isinstance(weight, PackedExperts))
        ]
        self.num_bytes = cache_bytes + sum(data.nbytes for data in self._in_memory) + program.slots_bytes

    def _placed(
        self, model: spec.ModelSpec, weights: Mapping[str, Packed], paging: Paging | None
    ) -> Mapping[str, Packed]:
        """Returns the weights where they are needed: mapped, or with ``paging`` in memory except experts."""
        by_row = tables_by_row(model)
        if isinstance(weights, WeightStore):
            weights.expect_rows(by_row)
        if paging:
            weights = page_experts(self._program, weights, paging, by_row)
            assert weights.path
            self._expert_file = ExpertFile(weights.path)
        return weights

    @property
    def isa(self) -> str:
        """The instruction-set level that the kernels use."""
        return self._program.isa

    def resident_bytes(self) -> int:
        """Returns the part of ``num_bytes`` that is in physical memory now. May be called from any thread."""
        arrays = [self.pages, self.states, *self._in_memory]
        return sum(map(_native.resident_bytes, arrays)) + self._program.used_slots_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of one page of the cache, for all layers together."""
        return self._program.page_bytes

    @property
    def pages(self) -> npt.NDArray[np.uint8]:
        """The memory of the cache, uint8 [num_pages, page_bytes]."""
        return self._program.pages

    @property
    def states(self) -> Bytes:
        """Implements :meth:`freedive.model.batch.Runner.states`."""
        return self._program.states

    def _boundaries(self, model: spec.ModelSpec, precision: str) -> tuple[int, ...]:
        """Returns the positions, relative to the end of the prompt, at which arithmetic changes: that of products
        (native/program.h, native/step.h), and latent attention's, which then absorbs weights into queries
        (native/latent.cpp).
        """
        early, late = OUTLIER_THRESHOLDS[precision]
        if self._program.bf16_prompts:
            return (0,)
        return (-_native.LATE_PROMPT_TOKENS,) * (early != late) + (0,) * _has_latents(model)

    def _num_snapshots(self, max_sequences: int) -> int:
        """Returns the number of slots for snapshots, which take about a quarter of the memory of the pages."""
        if not self._program.slot_bytes:
            return 0
        return num_snapshots(self._program.slot_bytes, self.num_pages * self._program.page_bytes, max_sequences)

    @property
    def barriers(self) -> int:
        """Number of thread barriers so far; each phase ends with one."""
        return self._program.barriers

    def step(self, batch: Batch) -> Floats:
        """Implements :meth:`freedive.model.batch.Runner.step`."""
        self._batch = batch
        logits = self._run(batch, self._parts[0])
        if self._num_steps % LOAD_EVERY == 0:
            self._count_experts()
        self._num_steps += 1
        return logits

    def draft(self, tokens: Ints, output_rows: Ints) -> Floats:
        """Implements :meth:`freedive.model.batch.Runner.draft`."""
        return self._run(replace(self._batch, tokens=tokens, output_rows=output_rows), self._parts[1])

    def embed(self, output_rows: Ints) -> Floats:
        """Implements :meth:`freedive.model.batch.Runner.embed`."""
        return self._run(replace(self._batch, output_rows=output_rows), self._parts[-1])

    def trace(self, batch: Batch) -> tuple[Floats, list[Operation]]:
        """Computes a :meth:`step`; returns its logits and its operations in order, with their durations."""
        self._batch, before = batch, self._traffic()
        logits = self._run(batch, self._parts[0], traced=True)
        traffic = [now.since(then) for now, then in zip(self._traffic(), before, strict=True)]
        return logits, self._tracer.operations(batch, self.routes(), self._program.seconds, traffic)

    def _run(self, batch: Batch, part: Part, traced: bool = False) -> Floats:
        arrays = batch.tokens, batch.lengths, batch.starts, batch.pages, batch.output_rows, batch.prompts
        try:
            return self._program.step(*arrays, *part, traced, *_state_arrays(batch))
        except _native.UnreadableWeights as error:
            assert self._expert_file
            raise self._expert_file.explain(error, self._program.unread_rows) from None

    def routes(self) -> list[Routes]:
        """Returns the routes of the last step, for each layer with experts."""
        return [Routes(*self._program.routes(index)) for index in self._routes]

    def chosen_experts(self, row: int) -> Ints:
        """Implements :meth:`freedive.model.batch.Runner.chosen_experts`; an MTP layer, the last one, is left out."""
        return self._program.chosen_experts(row)[: len(self._load)]

    def missed_experts(self) -> Sequence[Sequence[int]]:
        """Implements :meth:`freedive.model.batch.Runner.missed_experts`."""
        return self._program.missed_experts[: len(self._load)]

    def expert_load(self) -> list[list[int]]:
        """Returns the number of rows of each expert in the counted steps, for each layer with experts.

        May be called from any thread; counts only grow.
        """
        return [load.tolist() for load in self._load]

    def expert_cache(self) -> ExpertCacheStats | None:
        """Returns what experts that stay on disk cost so far, None without paging. May be called from any thread."""
        program, layers = self._program, self._traffic()
        return ExpertCacheStats(program.slots_bytes, program.used_slots_bytes, layers) if layers else None

    def _traffic(self) -> list[ExpertTraffic]:
        return [ExpertTraffic(*layer) for layer in self._program.expert_traffic]

    def _count_experts(self) -> None:
        # The routes of an MTP layer, the last ones, are ignored.
        for load, routes in zip(self._load, self.routes(), strict=False):
            load += np.bincount(routes.experts.ravel(), minlength=len(load))
        if time.monotonic() - self._saved_order_at > SAVE_ORDER_S:
            self.save_order()

    def save_order(self) -> None:
        """Writes which experts were used most, so that the next start reads them first; only with paging."""
        self._saved_order_at = time.monotonic()
        if self._order_file and any(load.any() for load in self._load):
            write_order(self._order_file, self.expert_load())


def num_snapshots(slot_bytes: int, cache_bytes: int, max_sequences: int) -> int:
    """Copies of states of ``slot_bytes`` beside a cache of ``cache_bytes``: a quarter of it, but two of each sequence.

    Where two of each sequence would take more than :data:`SNAPSHOT_BYTES`, as many as fit into that do.
    """
    least = max(2, min(2 * max_sequences, SNAPSHOT_BYTES // slot_bytes))
    return max(least, min(cache_bytes // 4 // slot_bytes, MAX_SNAPSHOTS))


def _state_arrays(batch: Batch) -> tuple[Ints | None, Ints | None]:
    """Returns slot, begin and end of each request as int32 [S, 3], and the copies to make, or None without states."""
    if batch.states is None:
        return None, None
    updates = batch.states
    return np.stack([updates.slots, updates.begins, updates.ends], 1), updates.saves


def _has_latents(model: spec.ModelSpec) -> bool:
    return any(isinstance(layer.mixer, spec.LatentAttention) for layer in model.blocks)


def _refuse_latents(model: spec.ModelSpec) -> None:
    if _has_latents(model):
        what = "This model caches latents (multi-head latent attention), for which there is no int8 cache"
        raise UserError(what, "Choose cache_format f16", param="cache_format")


def _refuse_what_is_too_wide(model: spec.ModelSpec) -> None:
    for layer in model.blocks:
        ffn, widths = layer.ffn, _head_widths(layer.mixer)
        if max(widths) > _native.MAX_HEAD_DIM:
            what = f"The kernels run heads up to {_native.MAX_HEAD_DIM} wide, not {max(widths)}"
            raise UserError(what, "Choose another model")
        if isinstance(ffn, spec.Experts) and ffn.router.num_experts > _native.MAX_EXPERTS:
            what = f"The kernels run up to {_native.MAX_EXPERTS} experts a layer, not {ffn.router.num_experts}"
            raise UserError(what, "Choose another model")


def _head_widths(mixer: spec.Mixer) -> list[int]:
    match mixer:
        case spec.Attention():
            return [mixer.head_dim, mixer.v_head_dim]
        case spec.LatentAttention():
            return [mixer.head_dim, mixer.value_dim, per_token_dim(mixer.state)]
        case spec.DeltaRule():
            return [mixer.key_dim, mixer.value_dim]
        case spec.ShortConv():
            return [0]
