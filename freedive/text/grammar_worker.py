"""Compiles grammars with llguidance. Run as a program, this file is the worker that tests untrusted grammars.

The file imports nothing of freedive, so that a worker starts within milliseconds. A grammar that passed the trial is
compiled again in the server, by the same function and on a larger stack.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

TRIAL_STACK = 16 << 20
"""Bytes of stack for a trial: llguidance recurses over chains of references."""

SERVER_STACK = 2 * TRIAL_STACK
"""Bytes of stack in the server, where a grammar that passed the trial must not overflow the stack."""

MAX_MEMORY = 1 << 30
"""The limit of a worker's address space in bytes."""

NUM_WALKS, WALK_LENGTH = 2, 8
"""The number of random answers of a trial, and their tokens: some faults appear only after the first token."""

MAX_LEXER_STATES = 50_000
"""The most lexer states of one grammar; each takes 1 to 2 kB."""

_LENGTH = 4  # bytes that hold the length of a message


class Vocabulary:
    """The tokens of a model as bytes, with the interface that llguidance needs."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int], stops: Sequence[int], bos: int | None) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.stops = stops
        self.eos_token_id = min(stops, default=None)
        self.bos_token_id = bos

    def __call__(self, text: str) -> list[int]:
        """Returns no tokens: llguidance tokenizes texts only for forced tokens, which are turned off."""
        return []

    def native(self, llguidance: Any) -> Any:
        """Returns llguidance's tokenizer of these tokens."""
        return llguidance.LLTokenizer(self, eos_token=sorted(self.stops) or None)

    def to_bytes(self) -> bytes:
        """Returns the vocabulary as bytes, for a worker."""
        lengths = [len(token) for token in self.tokens]
        head = json.dumps([lengths, [*self.special_token_ids], [*self.stops], self.bos_token_id]).encode()
        return len(head).to_bytes(_LENGTH, "big") + head + b"".join(self.tokens)

    @classmethod
    def from_bytes(cls, data: bytes) -> Vocabulary:
        """Returns the vocabulary that :meth:`to_bytes` has written."""
        start = _LENGTH + int.from_bytes(data[:_LENGTH], "big")
        lengths, special, stops, bos = json.loads(data[_LENGTH:start])
        tokens = []
        for length in lengths:
            tokens.append(data[start : start + length])
            start += length
        return cls(tokens, special, stops, bos)


def compile_grammar(llguidance: Any, tokenizer: Any, grammar: str) -> Any:
    """Returns the matcher of ``grammar``, which is in an error state if the grammar has a fault."""
    limits = llguidance.LLParserLimits(verbose_errors=False, max_lexer_states=MAX_LEXER_STATES)
    return llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def fault_of(matcher: Any) -> str:
    """Returns what is wrong with the grammar of ``matcher``, "" if a few random answers show no fault."""
    fault: str = matcher.get_error()
    state = 1
    for _ in range(0 if fault else NUM_WALKS):
        copy = matcher.deep_copy()
        for _ in range(WALK_LENGTH):
            bits = copy.compute_bitmask()
            if copy.is_error() or copy.is_stopped():
                break
            state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
            copy.consume_token(_some_token(bits, state >> 33))
        fault = fault or copy.get_error()
    return fault


def _some_token(bits: bytes, number: int) -> int:
    """Returns a token in the bitmask ``bits``, selected by ``number``; the mask must not be empty."""
    start = number % len(bits)
    place = next(index % len(bits) for index in range(start, start + len(bits)) if bits[index % len(bits)])
    return place * 8 + (bits[place] & -bits[place]).bit_length() - 1


def on_stack(size: int, function: Callable[[], T]) -> T:
    """Calls ``function`` in a thread with ``size`` bytes of stack; returns its result, or raises its error."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # raised again below
            errors.append(error)

    with _stack_size:
        usual = threading.stack_size(size)
        try:
            thread = threading.Thread(target=run, name="grammar", daemon=True)
            thread.start()
        finally:
            threading.stack_size(usual)
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


_stack_size = threading.Lock()
"""Guards the stack size of new threads, which is a setting of the whole process."""


def send(channel: socket.socket, message: bytes) -> None:
    """Sends ``message`` after its length."""
    channel.sendall(len(message).to_bytes(_LENGTH, "big") + message)


def receive(channel: socket.socket) -> bytes | None:
    """Returns the next message, None if the other side has closed the channel."""
    head = _read(channel, _LENGTH)
    return None if head is None else _read(channel, int.from_bytes(head, "big"))


def _read(channel: socket.socket, length: int) -> bytes | None:
    data = bytearray()
    while len(data) < length:
        part = channel.recv(min(length - len(data), 1 << 20))
        if not part:
            return None
        data += part
    return bytes(data)


def _answer_trials(llguidance: Any, channel: socket.socket) -> None:
    """Answers each trial with the fault of its grammar, until the server closes the channel.

    A message is ["vocabulary", key, evicted keys], followed by the vocabulary, or ["grammar", key, seconds, grammar].
    """
    tokenizers: dict[str, Any] = {}
    while (message := receive(channel)) is not None:
        kind, key, *rest = json.loads(message)
        if kind == "vocabulary":
            for old in rest[0]:
                del tokenizers[old]
            if (data := receive(channel)) is not None:
                tokenizers[key] = Vocabulary.from_bytes(data).native(llguidance)
            continue
        seconds, grammar = rest
        signal.setitimer(signal.ITIMER_PROF, seconds)  # CPU time; after it SIGPROF ends this process
        fault = fault_of(compile_grammar(llguidance, tokenizers[key], grammar))
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(channel, fault.encode())


def main() -> None:
    """Runs a worker: argv[1] is the folder of llguidance, and file descriptor 0 the channel to the server."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    sys.path.insert(0, sys.argv[1])
    import _lib as llguidance  # type: ignore[import-not-found]  # importing the whole package takes 30 times as long

    channel = socket.socket(fileno=0)
    on_stack(TRIAL_STACK, lambda: _answer_trials(llguidance, channel))


if __name__ == "__main__":
    main()
