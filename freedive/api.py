"""The Python API: load a model and generate with it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt

from freedive import machine
from freedive.checkpoint.fingerprint import COMPUTING, DESCRIBING, code_digest, code_fingerprint
from freedive.checkpoint.fit import check_fit
from freedive.checkpoint.model_folder import (
    OpenedStore,
    is_model_folder,
    open_described,
    read_model_folder,
    write_description,
)
from freedive.checkpoint.packed import LAYOUT, store_bytes
from freedive.checkpoint.tensor import Checkpoint
from freedive.checkpoint.weight_store import DamagedStore, open_store, remove_others, write_store
from freedive.config import EngineConfig, EngineSettings, settings_text
from freedive.engine.engine import Engine
from freedive.engine.page_store import PageStore
from freedive.engine.pooling import Pooling
from freedive.engine.recording import RecordedAnswer, Recording
from freedive.engine.request import GenerationRequest, embedding_request
from freedive.engine.sampling import RANGES, Sampling, SamplingFields
from freedive.engine.submission import UNSCOPED, Scope
from freedive.errors import Unavailable, UserError
from freedive.files import quote, read_json
from freedive.hub.cache import packed_path, pages_folder
from freedive.hub.catalogue import entry_for
from freedive.hub.paging import paging
from freedive.hub.sources import resolve
from freedive.model import spec
from freedive.model.fewer_experts import with_experts_per_token
from freedive.model.params import tables_by_row
from freedive.ops.memory_plan import num_pages, packed_sizes, plan_memory
from freedive.ops.native import NativeRunner
from freedive.ops.paging import ExpertCacheStats
from freedive.progress import byte_bar
from freedive.reply import Reply
from freedive.text.format import Format
from freedive.text.prepare import PromptMaker
from freedive.text.prompt import Prompt
from freedive.text.request import ChatInput, Input, Messages, TextInput
from freedive.text.template import ChatTemplate
from freedive.text.tokenizer import Tokenizer
from freedive.text.tools import ToolChoice, Tools

RECOMMENDABLE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Sampling fields that generation_config.json may set."""


def load(name: str = "smollm2", **settings: Unpack[EngineSettings]) -> LanguageModel:
    """Loads a model by its catalogue name, hub address (``hf:owner/name``) or path; downloads it if necessary.

    ``settings`` are fields of :class:`freedive.config.EngineConfig`. Raises UserError if the model is not found or not
    supported, or does not fit into memory.
    """
    config = EngineConfig(**settings)
    path = resolve(name)
    threads = config.threads or machine.physical_cores()
    model, checkpoint, weights = open_model(path, threads)
    if config.speculation == "off":
        model = replace(model, mtp=None)
    if config.experts_per_token:
        model, config = _with_fewer_experts(model, config)
    available = machine.available_memory()
    plan = plan_memory(model, packed_sizes(weights), config, available=available, num_threads=threads)
    config = replace(config, prefill_chunk=plan.prefill_chunk)
    if plan.paged:  # drafts would read more experts from disk than they save
        model, config = replace(model, mtp=None), replace(config, speculation="off")
    else:
        config = replace(config, prefer_cached_experts=0.0)  # all are in memory
        if plan.total <= plan.budget:
            weights.read_ahead(tables_by_row(model))
    tokenizer, template = text_parts(path, checkpoint)
    runner = NativeRunner(
        model,
        weights,
        num_threads=threads,
        max_rows=config.prefill_chunk + config.max_batch,
        num_pages=num_pages(model, config),
        max_sequences=config.max_batch,
        max_cache_bytes=None if config.cache_tokens else plan.cache,
        cache_format=config.cache_format,
        precision=config.precision,
        paging=paging(path, weights, plan.slots) if plan.paged else None,
        prefer_cached_experts=config.prefer_cached_experts,
    )
    stores = _page_stores(path, model, runner, config)
    return LanguageModel(name, runner, tokenizer, template, config, recommended(name, path), *stores)


class LanguageModel:
    """A model in memory. Close it, or use it in a ``with`` block.

    ``engine`` runs requests from any thread in batches; ``tokenizer`` and ``template`` convert text to tokens;
    ``recommended`` holds the maker's sampling fields, the defaults of a request. ``store`` keeps pages of prompts on
    disk, ``state_store`` the per-sequence states at the ends of these pages.
    """

    def __init__(
        self,
        name: str,
        runner: NativeRunner,
        tokenizer: Tokenizer,
        template: ChatTemplate,
        config: EngineConfig,
        recommended: Mapping[str, Any],
        store: PageStore | None = None,
        state_store: PageStore | None = None,
    ) -> None:
        self.name = name
        self.created = int(time.time())
        self.runner = runner
        self.tokenizer = tokenizer
        self.template = template
        self.recommended = recommended
        self._config = config
        self.engine = Engine(runner, tokenizer, config, store, state_store)
        self._prompts = PromptMaker(tokenizer, template, self.max_context)

    @property
    def max_context(self) -> int:
        """The most tokens of prompt and answer together."""
        return self.engine.max_context

    @property
    def num_bytes(self) -> int:
        """Bytes of memory for weights and key-value cache."""
        return self.runner.num_bytes

    def resident_bytes(self) -> int:
        """Returns how many of ``num_bytes`` are in physical memory: mapped weights are read at their first use."""
        return self.runner.resident_bytes()

    @property
    def can_think(self) -> bool:
        """Whether the model can think before it answers."""
        return self._prompts.can_think

    def expert_load(self) -> list[list[int]]:
        """Returns how often each expert of each mixture layer was chosen, in a sample of all steps so far."""
        return self.runner.expert_load()

    def expert_cache(self) -> ExpertCacheStats | None:
        """Returns what experts that stay on disk cost so far; None if all are in memory."""
        return self.runner.expert_cache()

    @property
    def lossy(self) -> Mapping[str, float]:
        """The settings in effect that change which experts compute a token, with their values; usually none."""
        return self._config.lossy

    def prepare(self, asked: Input) -> Prompt:
        """Returns the prompt of an input, with the parser of its answer. Raises UserError if it cannot be honoured."""
        return self._prompts.prepare(asked)

    def chat(
        self,
        messages: Messages,
        *,
        tools: Tools = (),
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        format: Format | None = None,
        thinking: bool | None = None,
        effort: str | None = None,
        thinking_budget: int | None = None,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] = MappingProxyType({}),
        scope: Scope = UNSCOPED,
        **sampling: Unpack[SamplingFields],
    ) -> Reply:
        """Returns the reply to ``messages`` ({"role": ..., "content": ...}); iterate over it for its text.

        :class:`freedive.text.request.ChatInput` describes the arguments, and
        :class:`freedive.engine.sampling.Sampling` those in ``sampling``: temperature, max_tokens, seed and others.
        Without tools, the reply has tool calls as text.
        """
        asked = ChatInput(
            messages,
            tools,
            tool_choice,
            parallel_tool_calls,
            format,
            thinking,
            effort,
            thinking_budget,
            continue_final_message,
            template_kwargs,
        )
        [reply] = self.generate([asked], scope=scope, **sampling)
        return reply

    def complete(
        self,
        prompt: str,
        *,
        suffix: str = "",
        format: Format | None = None,
        scope: Scope = UNSCOPED,
        **sampling: Unpack[SamplingFields],
    ) -> Reply:
        """Returns the continuation of ``prompt``, or the text between ``prompt`` and ``suffix``, without template."""
        [reply] = self.generate([TextInput(prompt, suffix, format=format)], scope=scope, **sampling)
        return reply

    def generate(
        self,
        prompts: Sequence[str | Messages | Input],
        *,
        format: Format | None = None,
        scope: Scope = UNSCOPED,
        **sampling: Unpack[SamplingFields],
    ) -> list[Reply]:
        """Returns a reply to each of ``prompts`` (texts to continue, conversations, or inputs), computed in one batch.

        ``format`` applies to texts and conversations; an input has its own.
        """
        _check_list("prompts", prompts)
        inputs = tuple(_input(prompt, format) for prompt in prompts)
        return self.answer(GenerationRequest(self.name, inputs, sampling, scope=scope))

    def answer(self, request: GenerationRequest) -> list[Reply]:
        """Returns ``n`` replies for each input of ``request``, in order; ignores the model that it names."""
        prompts = [self.prepare(asked) for asked in request.inputs]
        jobs = request.jobs(prompts, self.sampling(**request.sampling), self.max_context)
        return [Reply(generation) for generation in self.engine.submit_all(jobs)]

    @cached_property
    def fingerprint(self) -> Mapping[str, str]:
        """Everything that the bits of an answer depend on, except weights and request: code, machine and settings."""
        return {
            "code": code_digest(COMPUTING)[:16],
            "isa": self.runner.isa,
            "precision": self._config.precision,
            "cache_format": self._config.cache_format,
            "lossy": settings_text(self.lossy),
        }

    def record(self, request: GenerationRequest, replies: Sequence[Reply]) -> Recording:
        """Returns the recording of a ``request`` and its ``replies`` from :meth:`answer`; reads them to the end."""
        answers = tuple(RecordedAnswer(reply.seed, reply.token_ids, reply.finish_reason) for reply in replies)
        sampling = asdict(self.sampling(**request.sampling))
        return Recording(replace(request, sampling=sampling), answers, self.fingerprint)

    def replay(self, recording: Recording) -> list[Reply]:
        """Returns replies to the request of ``recording``, each with its recorded seed."""
        prompts = [self.prepare(asked) for asked in recording.request.inputs]
        jobs = recording.jobs(prompts, self.sampling(**recording.request.sampling), self.max_context)
        return [Reply(generation) for generation in self.engine.submit_all(jobs)]

    def embed(self, texts: Sequence[str], *, pooling: Pooling = "mean") -> npt.NDArray[np.float32]:
        """Returns the embedding of each text, [len(texts), hidden_dim]: the mean or the last of its tokens' states.

        Vectors have length 1, so the product of two vectors is their cosine similarity.
        """
        _check_list("texts", texts)
        if not texts:
            raise UserError("There are no texts", "Give at least one", param="texts")
        request = embedding_request(self.name, texts, pooling)
        prompts = [self.prepare(asked) for asked in request.inputs]
        jobs = request.jobs(prompts, self.sampling(**request.sampling), self.max_context)
        outputs = [output for generation in self.engine.submit_all(jobs) for output in generation]
        return np.stack([output.embedding for output in outputs if output.embedding is not None])

    def sampling(self, **given: Unpack[SamplingFields]) -> Sampling:
        """Returns the ``given`` fields and the recommended ones for the rest. Raises UserError for invalid values."""
        return Sampling(**{**self.recommended, **given})

    def close(self) -> None:
        """Cancels running requests and frees the threads."""
        self.engine.close()
        self.runner.save_order()

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _with_fewer_experts(model: spec.ModelSpec, config: EngineConfig) -> tuple[spec.ModelSpec, EngineConfig]:
    """Returns the model with ``experts_per_token``; the configuration loses it if that is the model's own number."""
    assert config.experts_per_token
    fewer = with_experts_per_token(model, config.experts_per_token)
    return fewer, config if fewer != model else replace(config, experts_per_token=None)


def _check_list(name: str, values: object) -> None:
    """Raises UserError where ``values`` is no list: one text would be taken for a list of letters."""
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise UserError(f"{name} is {quote(values)}", "Give a list", param=name)


def _input(prompt: str | Messages | Input, format: Format | None) -> Input:
    """Returns ``prompt`` as an input: a text to continue, or a conversation."""
    if isinstance(prompt, ChatInput | TextInput):
        return prompt
    return TextInput(prompt, format=format) if isinstance(prompt, str) else ChatInput(prompt, format=format)


def open_model(path: Path, threads: int) -> OpenedStore:
    """Opens the model at ``path``; packs its weights first, with ``threads`` threads, if that was not done before."""
    return read_model_folder(path) if is_model_folder(path) else _packed(path, threads)


def _packed(path: Path, threads: int) -> OpenedStore:
    """Opens the packed store of the model at ``path``; writes the store first if it is missing or damaged."""
    store = packed_path(path, LAYOUT)
    description, code = store.with_suffix(".json"), code_fingerprint(DESCRIBING)
    try:
        return open_described(description, store, by=code)
    except (UserError, DamagedStore, FileNotFoundError):
        model, checkpoint, weights = _pack(path, store, threads)
    with suppress(Unavailable):  # without a description, the next start takes as long as this one
        write_description(description, store, model, checkpoint, by=code)
    return model, checkpoint, weights


def _pack(path: Path, store: Path, threads: int) -> OpenedStore:
    """Reads the model files at ``path``; packs their weights in ``store`` unless this code has done so before."""
    from freedive.checkpoint.open import open_checkpoint  # a warm start imports none of these
    from freedive.checkpoint.rules import canonical_tensors
    from freedive.families import describe

    checkpoint, code = open_checkpoint(path), code_digest(DESCRIBING)
    model, rules = describe(checkpoint)
    tensors = canonical_tensors(checkpoint, model, rules)
    try:
        weights = open_store(store, code=code)
        check_fit(model, weights)
    except (UserError, FileNotFoundError, DamagedStore):
        with byte_bar("packing weights", store_bytes(tensors)) as advance:
            write_store(store, tensors, num_threads=threads, advance=advance, code=code)
        remove_others(store)
        weights = open_store(store)
    return model, checkpoint, weights


def text_parts(path: Path, checkpoint: Checkpoint) -> tuple[Tokenizer, ChatTemplate]:
    """Returns tokenizer and chat template of the model at ``path``, from which ``checkpoint`` was opened."""
    if checkpoint.kind == "gguf":
        tokenizer = Tokenizer.from_gguf(checkpoint.config)
        return tokenizer, ChatTemplate.from_gguf(checkpoint.config, tokenizer)
    folder = path if path.is_dir() else path.parent
    tokenizer = Tokenizer.from_folder(folder)
    return tokenizer, ChatTemplate.from_folder(folder, tokenizer)


def recommended(name: str, path: Path) -> Mapping[str, Any]:
    """Returns the maker's sampling fields from the catalogue, else the valid values of generation_config.json.

    Invalid values, such as a top_k of -1, mean that a field is not set.
    """
    if entry := entry_for(name):
        return entry.sampling
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    values = read_json(file) if file.exists() else {}
    numbers = {name: values[name] for name in RECOMMENDABLE if type(values.get(name)) in (int, float)}
    return {name: value for name, value in numbers.items() if RANGES[name][0] <= value <= RANGES[name][1]}


def _page_stores(path: Path, model: spec.ModelSpec, runner: NativeRunner, config: EngineConfig) -> list[PageStore]:
    """Returns the disk stores of the runner's pages and states; the folder depends on all that affects their bits."""
    if not config.prefix_cache or not config.disk_cache_gb:
        return []
    kinds = LAYOUT, config.cache_format, config.precision, config.prefer_cached_experts, runner.isa
    memories = [memory for memory in (runner.pages, runner.states) if memory.shape[1]]
    return [
        PageStore(
            pages_folder(path, repr((*kinds, memory.shape[1], place, model, code_fingerprint(COMPUTING)))),
            memory,
            int(config.disk_cache_gb * 1e9),
        )
        for place, memory in enumerate(memories)
    ]
