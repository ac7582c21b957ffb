"""A fake model that answers from a script, one character per token, with a delay: all that a server test needs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import httpx
import numpy as np
import pytest
from patience import PATIENCE_S

from freedive.config import ServerConfig
from freedive.engine.generation import EngineError, Timings, TokenLogprobs, TokenOutput
from freedive.engine.sampling import Sampling
from freedive.engine.submission import Job
from freedive.engine.watch import WatchedToken, Watches
from freedive.errors import Overloaded, UserError
from freedive.ops.paging import ExpertCacheStats, ExpertTraffic
from freedive.server.app import DEFAULTS, create_app, listen, server
from freedive.server.model_info import ModelInfo
from freedive.server.models import ModelEntry, Models
from freedive.text.dialects.codecs import json_calls
from freedive.text.dialects.dialect import Dialect, Mark
from freedive.text.prompt import Prompt
from freedive.text.request import Input, TextInput

SPEAKING = Dialect(
    {
        "<think>": Mark.THINK,
        "</think>": Mark.END_THINK,
        "<tool_call>": Mark.CALL,
        "</tool_call>": Mark.END_CALL,
    },
    (json_calls,),
)


HELD = "\N{HOURGLASS}"
"""A place in a script where the answer waits until the test sets ``EchoModel.released``. It is no token."""


class CharTokenizer:
    """One token per character; its id is the code point, which is below the surrogates."""

    vocab_size = 0xD800
    roles: ClassVar = {"eos_token": "\N{END OF TRANSMISSION}"}

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = True, max_tokens: int | None = None
    ) -> list[int]:
        return [ord(char) for char in text]

    def decode(self, ids: Sequence[int], *, skip_special: bool = True) -> str:
        return "".join(map(chr, ids))

    def token_text(self, token_id: int) -> str:
        return chr(token_id)

    def token_bytes(self, token_id: int) -> bytes:
        return chr(token_id).encode()


class EchoGeneration:
    """Generates ``answer``; ``sampling`` and ``cancelled`` are for the test to check."""

    def __init__(self, answer: str, num_prompt_tokens: int, sampling: Sampling, model: EchoModel, room: int) -> None:
        self.answer = answer
        self.num_prompt_tokens = num_prompt_tokens
        self.limit = room if sampling.max_tokens is None else min(sampling.max_tokens, room)
        self.reader: Any = None
        self.num_cached_tokens = self.num_prefilled_tokens = 0
        self.seed = sampling.seed or 0
        self.sampling = sampling
        self.delay_s, self.released = model.delay_s, model.released
        self.timings = Timings(now := time.perf_counter(), started_at=now)
        self.cancelled = threading.Event()
        self.watches = Watches()
        self.submitted: dict[str, Any] = {}
        self.ended = self.is_hurried = False

    def cancel(self) -> None:
        if not self.ended:
            self.cancelled.set()

    def end_thoughts(self) -> None:
        self.is_hurried = True

    async def __aiter__(self) -> AsyncIterator[TokenOutput]:
        stops = [(self.answer.find(stop), stop) for stop in self.sampling.stop if stop in self.answer]
        end, stop_string = min(stops, default=(None, None))
        answer = self.answer[:end]
        for char in answer[: self.limit]:
            if char == HELD:
                while not (self.released.is_set() or self.cancelled.is_set()):
                    await asyncio.sleep(0.001)
                continue
            await asyncio.sleep(self.delay_s)
            if char == "\N{COLLISION SYMBOL}":
                raise EngineError("the echo exploded")
            self.timings.first_token_at = self.timings.first_token_at or time.perf_counter()
            self.timings.num_generated += 1
            if self.watches:
                self.watches.add(self._watched(ord(char)))
            yield self._piece(char, (ord(char),), logprobs=self._logprobs(ord(char)))
        self.ended = True
        if len(answer) > self.limit:
            yield self._piece("", (), "length")
        else:
            yield self._piece("", (), "stop", stop_string=stop_string)

    def _piece(self, text: str, token_ids: tuple[int, ...], reason: Any = None, **more: Any) -> TokenOutput:
        events = self.reader.read(text, ends=reason is not None)
        return TokenOutput(events, token_ids, reason, is_thinking=self.reader.is_thinking, **more)

    def _watched(self, token_id: int) -> WatchedToken:
        """Two layers of four experts, two of which compute a token; the first layer reads its second one from disk."""
        index, top = self.timings.num_generated - 1, ((token_id, -0.25), (ord("<"), -1.5))
        return WatchedToken(index, token_id, -0.25, top, np.array([[index % 4, 3], [0, 1]], np.int32), [[3], []])

    def _logprobs(self, token_id: int) -> tuple[TokenLogprobs, ...] | None:
        if self.sampling.logprobs is None:
            return None
        top = [(token_id, -0.25), (ord("?"), -1.5)]
        return (TokenLogprobs(token_id, -0.25, tuple(top[: self.sampling.logprobs])),)


class EchoEmbedding(EchoGeneration):
    """An embedding of two numbers: the lengths of the prompt and of the prompt without vowels."""

    async def __aiter__(self) -> AsyncIterator[TokenOutput]:
        self.ended = True
        vector = np.array([self.num_prompt_tokens, sum(char not in "aeiou" for char in self.answer)], np.float32)
        yield TokenOutput((), (), "stop", embedding=vector)


@dataclass(frozen=True)
class EchoStats:
    """A cache of 64 pages, of which each running request has one."""

    running: int
    waiting: int
    num_read: int
    num_generated: int
    free_pages: int
    num_pages: int = 64
    known_pages: int = 0
    num_cached: int = 0
    num_restored: int = 0


class EchoEngine:
    failure = ""
    stalled_s = 0.0

    def __init__(self, model: EchoModel) -> None:
        self.model = model
        self.generations: list[EchoGeneration] = []

    def submit_all(self, jobs: Sequence[Job]) -> list[EchoGeneration]:
        return [self._submit(job) for job in jobs]

    def _submit(self, job: Job) -> EchoGeneration:
        prompt = job.prompt.tokens
        if len(prompt) >= self.model.max_context:
            limit = f"this model's maximum context length is {self.model.max_context}"
            raise UserError(f"The prompt has {len(prompt)} tokens, but {limit}", "Shorten the prompt", param="prompt")
        if not all(0 <= token_id < 0xD800 for token_id in prompt):
            raise UserError("Such a token does not exist", "Use others", param="prompt")
        text = self.model.tokenizer.decode(prompt)
        if "overload" in text:
            raise Overloaded("The engine has 9 requests already", "Try again later")
        answer = next((answer for cue, answer in self.model.script.items() if cue in text), text)
        kind = EchoEmbedding if job.pooling else EchoGeneration
        room = self.model.max_context - len(prompt)
        generation = kind(answer, len(prompt), job.sampling, self.model, room)
        generation.reader = job.prompt.parser()
        generation.submitted = {
            "tenant": job.scope.tenant,
            "cache_salt": job.scope.cache_salt,
            "user": job.scope.user,
            "pooling": job.pooling,
            "constraint": job.prompt.constraint(),
        }
        self.generations.append(generation)
        return generation

    def place(self, generation: EchoGeneration) -> int:
        return 0

    def stats(self) -> EchoStats:
        running = sum(not generation.ended for generation in self.generations)
        read = sum(generation.num_prompt_tokens for generation in self.generations)
        written = sum(generation.timings.num_generated for generation in self.generations)
        return EchoStats(running, waiting=0, num_read=read, num_generated=written, free_pages=64 - running)


@dataclass
class EchoModel:
    """``script`` maps a word in the prompt to the answer; without such a word the answer is the prompt itself."""

    name: str = "echo"
    created: int = 1_700_000_000
    max_context: int = 4096
    num_bytes: int = 1 << 20
    delay_s: float = 0.001
    script: dict[str, str] = field(default_factory=dict)
    about: ModelInfo = field(default_factory=ModelInfo)
    tokenizer: CharTokenizer = field(default_factory=CharTokenizer)
    asked: list[dict[str, Any]] = field(default_factory=list)
    can_think: bool = True
    fingerprint: dict[str, str] = field(default_factory=lambda: {"code": "echo"})
    lossy: dict[str, float] = field(default_factory=dict)
    closed: bool = False
    released: threading.Event = field(default_factory=threading.Event)

    def resident_bytes(self) -> int:
        return self.num_bytes // 2

    def __post_init__(self) -> None:
        self.engine = EchoEngine(self)

    def sampling(self, **given: Any) -> Sampling:
        return Sampling(**given)

    def prepare(self, asked: Input) -> Prompt:
        if isinstance(asked, TextInput):
            return self._text(asked)
        messages, tools = list(asked.messages), list(asked.tools)
        self.asked.append({**vars(asked), "messages": messages, "tools": tools})
        if messages[-1]["content"] == "untemplated":
            raise ZeroDivisionError("a fault of ours")
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in messages)
        tools = [] if asked.tool_choice == "none" else tools
        dialect = SPEAKING if tools else SPEAKING.without_calls()
        callable_ = [*tools, *asked.unlisted_tools]
        continues = asked.continue_final_message
        return Prompt(self.tokenizer.encode(prompt), dialect, tools=callable_, continues=continues)

    def _text(self, asked: TextInput) -> Prompt:
        text = f"{asked.text}[gap]{asked.suffix}" if asked.suffix else asked.text
        tokens = self.tokenizer.encode(text) if isinstance(text, str) else text
        constraint: Any = asked.format
        return Prompt(tokens, continues=True, make_constraint=(lambda: constraint) if constraint else None)

    def expert_load(self) -> list[list[int]]:
        return [[3, 1, 0, 0], [0, 4, 0, 0]]

    def expert_cache(self) -> ExpertCacheStats | None:
        return ExpertCacheStats(4096, 1024, [ExpertTraffic(3, 1, 512, 0.5), ExpertTraffic(2, 2, 1024, 0.25)])

    def close(self) -> None:
        self.closed = True


def served(*models: Any) -> Models:
    """Models that are all loaded."""
    return Models([model_entry(model) for model in models], models)


def model_entry(model: EchoModel) -> ModelEntry:
    """An entry of a model that can be loaded."""
    return ModelEntry(model.name, lambda: model, model.num_bytes, model.created, lambda: model.about)


@contextmanager
def serving(*models: Any, config: ServerConfig = DEFAULTS, **options: Any) -> Iterator[str]:
    """Serves ``models`` over real HTTP in a thread; yields the address. ``options`` go to create_app."""
    listener = listen("127.0.0.1", 0)
    running = server(create_app(served(*models), config, **options), config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        running.should_exit = True
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def fake_model() -> EchoModel:
    return EchoModel()


@pytest.fixture(scope="module")
def live_server(fake_model: EchoModel) -> Iterator[str]:
    with serving(fake_model) as url:
        yield url


@pytest.fixture(scope="module")
def http(live_server: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=live_server, timeout=20) as client:
        yield client
