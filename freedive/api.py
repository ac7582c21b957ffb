"""freedive from Python: load a model, talk to it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

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
from freedive.config import EngineConfig
from freedive.engine.engine import Engine
from freedive.engine.generation import RANGES, Sampling
from freedive.engine.kvcache import pages_for
from freedive.engine.page_store import PageStore
from freedive.engine.pooling import Pooling
from freedive.engine.submission import Job
from freedive.errors import Unavailable, UserError
from freedive.files import read_json
from freedive.hub.cache import packed_path, pages_folder
from freedive.hub.catalogue import entry_for
from freedive.hub.sources import resolve
from freedive.model import spec
from freedive.ops.native import NativeRunner
from freedive.progress import byte_bar
from freedive.text.dialects.dialect import Event, Mark, Text, initial_state
from freedive.text.dialects.registry import dialect_for
from freedive.text.format import Format
from freedive.text.grammar_constraint import GrammarCompiler, MakeConstraint
from freedive.text.infill import infill_marks
from freedive.text.lark import Lark
from freedive.text.output_spec import OutputSpec, constrain
from freedive.text.prompt import Prompt
from freedive.text.roles import rendered
from freedive.text.template import ChatTemplate
from freedive.text.thinking import (
    can_think,
    effort_budget,
    has_switch,
    is_wanted,
    thinking_variables,
    without_thoughts,
)
from freedive.text.thinking_budget import thinking_budget as budget_for
from freedive.text.tokenizer import Tokenizer
from freedive.text.tools import ToolChoice, Tools

CACHE_SHARE = 0.25
"""Part of the memory that is free which the key-value cache may take where ``cache_tokens`` is not set."""

RECOMMENDABLE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
"""Sampling fields that generation_config.json may set."""

Messages = Sequence[Mapping[str, Any]]


def load(name: str = "smollm2", **settings: Any) -> LanguageModel:
    """Load a model by a catalogue name, a hub address (``hf:owner/name``) or a path, fetching it if need be.

    ``settings`` are fields of :class:`freedive.config.EngineConfig`. Raises UserError when it is not to be had or does
    not fit.
    """
    config = EngineConfig(**settings)
    path = resolve(name)
    threads = config.threads or machine.physical_cores()
    model, checkpoint, weights = read_model_folder(path) if is_model_folder(path) else _packed(path, threads)
    if config.speculation == "off":
        model = replace(model, mtp=None)
    tokenizer, template = text_parts(path, checkpoint)
    runner = NativeRunner(
        model,
        weights,
        num_threads=threads,
        max_rows=config.prefill_chunk + config.max_batch,
        num_pages=_num_pages(model, config),
        max_sequences=config.max_batch,
        max_cache_bytes=None if config.cache_tokens else int(machine.available_memory() * CACHE_SHARE),
        cache_format=config.cache_format,
        precision=config.precision,
    )
    stores = _page_stores(path, model, runner, config)
    return LanguageModel(name, runner, tokenizer, template, config, recommended(name, path), *stores)


class LanguageModel:
    """A model in memory. Close it, or use it in a ``with`` block.

    ``engine`` runs requests side by side from any thread; ``tokenizer`` and ``template`` turn text into tokens;
    ``dialect`` tells thoughts and tool calls in an answer from its text; ``recommended`` are the sampling fields that
    its maker advises, used where a request does not say. ``store`` keeps beginnings of requests on disk,
    ``state_store`` the per-sequence states at their ends.
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
        self.dialect = dialect_for(template.source, tokenizer.added_tokens.values())
        self.grammar_compiler = GrammarCompiler(
            tokenizer, lambda text: text in (*self.dialect.marks, *self.dialect.separators)
        )
        self.recommended = recommended
        self.engine = Engine(runner, tokenizer, config, store, state_store)

    @property
    def max_context(self) -> int:
        """Most tokens that prompt and answer can have together."""
        return self.engine.max_context

    @property
    def num_bytes(self) -> int:
        """Memory for weights and key-value cache."""
        return self.runner.num_bytes

    def resident_bytes(self) -> int:
        """How much of that is in physical memory now: mapped weights are read from disk when they are used first."""
        return self.runner.resident_bytes()

    @property
    def can_think(self) -> bool:
        """Whether it can be asked for thoughts before the answer."""
        return can_think(self.template.source, self.dialect)

    def expert_load(self) -> list[list[int]]:
        """How often each expert of each layer with experts was chosen, in a sample of all steps so far."""
        return self.runner.expert_load()

    def chat(self, messages: Messages, **sampling: Any) -> Iterator[str]:
        """The text of the answer to ``messages`` ({"role": ..., "content": ...}), piece by piece.

        ``sampling`` are fields of :class:`freedive.engine.generation.Sampling`: temperature, max_tokens, seed ...
        """
        return (event.text for event in self.answer(messages, **sampling) if isinstance(event, Text))

    def answer(
        self,
        messages: Messages,
        tools: Tools = (),
        *,
        format: Format | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        **sampling: Any,
    ) -> Iterator[Event]:
        """The answer with its thoughts and its calls of ``tools``, as it comes. Without tools, calls are text.

        ``tools`` are as OpenAI has them: {"type": "function", "function": {"name": ..., "parameters": ...}}. See
        :meth:`prompt` for the other parameters.
        """
        prompt = self.make_prompt(
            messages, tools, format=format, tool_choice=tool_choice, parallel_tool_calls=parallel_tool_calls
        )
        chosen = self.sampling(**sampling)
        generation = self.engine.submit(
            prompt.tokens,
            chosen,
            continues=prompt.continues,
            is_visible=prompt.is_visible,
            parser=prompt.parser(),
            constraint=prompt.constraint(chosen.max_tokens),
        )
        return (event for output in generation for event in output.events)

    def complete(self, prompt: str, *, format: Format | None = None, **sampling: Any) -> Iterator[str]:
        """What follows ``prompt``, in the ``format``, if there is one, without a chat template, piece by piece."""
        tokens = self.tokenizer.encode(prompt, add_special=True, max_tokens=self.max_context)
        constraint = self.make_constraint(format)() if format else None
        generation = self.engine.submit(tokens, self.sampling(**sampling), continues=True, constraint=constraint)
        return (output.text for output in generation if output.text)

    def embed(self, texts: Sequence[str], *, pooling: Pooling = "mean") -> npt.NDArray[np.float32]:
        """What the model makes of each text, [len(texts), hidden]: the mean over its tokens, or the last one's state.

        Vectors have length 1, so that products of two are cosines.
        """
        only = Sampling(max_tokens=1)
        prompts = [self.tokenizer.encode(text, add_special=True, max_tokens=self.max_context) for text in texts]
        generations = self.engine.submit_all([Job(prompt, only, pooling=pooling) for prompt in prompts])
        outputs = [output for generation in generations for output in generation]
        return np.stack([output.embedding for output in outputs if output.embedding is not None])

    def sampling(self, **given: Any) -> Sampling:
        """The ``given`` fields over the recommended ones. UserError for values that no sampler can honour."""
        return Sampling(**{**self.recommended, **given})

    def make_prompt(
        self,
        messages: Messages,
        tools: Tools = (),
        *,
        format: Format | None = None,
        tool_choice: ToolChoice = "auto",
        parallel_tool_calls: bool = True,
        thinking: bool | None = None,
        effort: str | None = None,
        thinking_budget: int | None = None,
        continues: bool = False,
        **variables: Any,
    ) -> Prompt:
        """What asks for the next message or, with ``continues``, for the rest of the last one; and how to read it.

        The text of the answer has the ``format``, if there is one, unless tools are called. ``tool_choice`` is auto,
        none (the model does not learn of the tools), required, or a :class:`freedive.text.tools.Function`; without
        ``parallel_tool_calls`` there is but one call. Where a constraint enforces calls, as for any of this and for
        a tool that is "strict", their arguments have the form that "parameters" say.

        ``thinking`` turns thoughts on or off, ``effort`` is one of :data:`freedive.text.thinking.EFFORTS`; None leaves
        it to the model. After ``thinking_budget`` tokens a thought is ended; 0 turns thoughts off.
        ``variables`` are the chat template's own switches. UserError for what cannot be.
        """
        tools = () if tool_choice == "none" else tools
        if thinking_budget == 0:
            thinking, effort = False, None
        wanted = is_wanted(thinking, effort)
        self.template.check(tools)
        switches = thinking_variables(thinking, effort, self.template.source, self.dialect)
        variables = {**switches, **variables}
        options = {"tools": tools or None, "continue_final_message": continues}
        prompt = rendered(self.template, messages, **options, **variables)
        dialect = self.dialect if tools else self.dialect.without_calls()
        if switches and not any(switches.values()):
            prompt = without_thoughts(prompt, initial_state(dialect, prompt), dialect)
        tokens, state = self.tokenizer.encode(prompt, max_tokens=self.max_context), initial_state(dialect, prompt)
        thoughts = self._thinks_unasked if wanted is None else wanted
        spec = OutputSpec(format, tools, tool_choice, parallel_tool_calls, thoughts)
        dialect, make_constraint = constrain(spec, self.grammar_compiler, dialect, state)
        limit = 0 if wanted is False else thinking_budget or effort_budget(effort, self.template.source)
        budget = budget_for(self.tokenizer, dialect, state, self.max_context - len(tokens), limit)
        return Prompt(tokens, dialect, state, tools, self.dialect.is_visible, continues, make_constraint, budget)

    @cached_property
    def _thinks_unasked(self) -> bool:
        """Whether the model thinks where nobody says so, as far as its template tells."""
        source = self.template.source
        if self.dialect.messages or not has_switch(source):
            return bool(self.dialect.messages) or any(begin in source for begin in self.dialect.markers(Mark.THINK))
        asked = thinking_variables(True, None, source, self.dialect)
        question = [{"role": "user", "content": "Hello"}]
        try:
            return self.template.render(question) == self.template.render(question, **asked)
        except UserError:  # then it has nothing to say about this
            return True

    def make_constraint(self, format: Format) -> MakeConstraint:
        """A factory of constraints that give texts the ``format``, from the first token on. It is compiled here, once.

        UserError if it cannot be kept to.
        """
        lark = Lark(self.grammar_compiler.tokens)
        return self.grammar_compiler.compile(lark.rules(lark.part(format.grammar)), lark.parts)

    def infill(self, prefix: str, suffix: str) -> Prompt:
        """What asks for the text between the two. UserError where the model was not trained for that."""
        begin, between, end = map(self.tokenizer.encode, infill_marks(self.tokenizer.added_tokens.values()))
        encode = partial(self.tokenizer.encode, parse_special=False, max_tokens=self.max_context)
        before, after = map(encode, (prefix, suffix))
        return Prompt([*begin, *before, *between, *after, *end], continues=True)

    def close(self) -> None:
        """End what is under way and free the threads."""
        self.engine.close()

    def __enter__(self) -> LanguageModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _packed(path: Path, threads: int) -> OpenedStore:
    """The model at ``path`` from its packed store, which is made first where there is none or it is damaged."""
    store = packed_path(path, LAYOUT)
    description, code = store.with_suffix(".json"), code_fingerprint(DESCRIBING)
    try:
        return open_described(description, store, by=code)
    except (UserError, DamagedStore, FileNotFoundError):
        model, checkpoint, weights = _pack(path, store, threads)
    with suppress(Unavailable):  # then the next start is as long as this one
        write_description(description, store, model, checkpoint, by=code)
    return model, checkpoint, weights


def _pack(path: Path, store: Path, threads: int) -> OpenedStore:
    """The model at ``path`` from its own files, with its weights packed in ``store``, perhaps earlier by this code."""
    from freedive.checkpoint.open import open_checkpoint  # imported here: a warm start does without all of these
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
    """What turns messages into tokens, of the model at ``path``, which ``checkpoint`` is opened from."""
    if checkpoint.kind == "gguf":
        tokenizer = Tokenizer.from_gguf(checkpoint.config)
        return tokenizer, ChatTemplate.from_gguf(checkpoint.config, tokenizer)
    folder = path if path.is_dir() else path.parent
    tokenizer = Tokenizer.from_folder(folder)
    return tokenizer, ChatTemplate.from_folder(folder, tokenizer)


def recommended(name: str, path: Path) -> Mapping[str, Any]:
    """Sampling that the maker advises: the catalogue's, else what generation_config.json has of possible values.

    Others stand there for nothing at all, such as a top_k of -1.
    """
    if entry := entry_for(name):
        return entry.sampling
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    values = read_json(file) if file.exists() else {}
    numbers = {name: values[name] for name in RECOMMENDABLE if type(values.get(name)) in (int, float)}
    return {name: value for name, value in numbers.items() if RANGES[name][0] <= value <= RANGES[name][1]}


def _page_stores(path: Path, model: spec.ModelSpec, runner: NativeRunner, config: EngineConfig) -> list[PageStore]:
    """Where pages and states computed by ``runner`` are kept: all that their bits depend on has a folder of its own."""
    if not config.prefix_cache or not config.disk_cache_gb:
        return []
    kinds = LAYOUT, config.cache_format, config.precision, runner.isa
    memories = [memory for memory in (runner.pages, runner.states) if memory.shape[1]]
    return [
        PageStore(
            pages_folder(path, repr((*kinds, memory.shape[1], place, model, code_fingerprint(COMPUTING)))),
            memory,
            int(config.disk_cache_gb * 1e9),
        )
        for place, memory in enumerate(memories)
    ]


def _num_pages(model: spec.ModelSpec, config: EngineConfig) -> int:
    """Pages of the key-value cache: as asked, else what full contexts can use."""
    if config.cache_tokens:
        return pages_for(config.cache_tokens)
    return pages_for(config.max_context or model.max_context) * config.max_batch
