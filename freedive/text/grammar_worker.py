"""Compiles grammars with llguidance. Run as a program, this file is the worker that tries untrusted grammars.

It imports nothing of freedive, so that a worker starts within milliseconds. A grammar that passed the trial is
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
"""Bytes of stack for a trial: llguidance recurses along chains of references."""

SERVER_STACK = 2 * TRIAL_STACK
"""Bytes of stack in the server, where what passed the trial must not run out of it."""

MAX_MEMORY = 1 << 30
"""Bytes of address space of a worker."""

NUM_WALKS, WALK_LENGTH = 2, 8
"""Random answers of a trial, and the tokens of each: some faults show only behind the first token."""

MAX_LEXER_STATES = 50_000
"""States of the regular expressions of one grammar. One takes 1 to 2 kB."""

_LENGTH = 4  # bytes that hold the length of a message


class Vocabulary:
    """The tokens of a model, as llguidance asks for them: every token by its bytes."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: Sequence[bytes], special: Sequence[int], stops: Sequence[int], bos: int | None) -> None:
        self.tokens = tokens
        self.special_token_ids = special
        self.stops = stops
        self.eos_token_id = min(stops, default=None)
        self.bos_token_id = bos

    def __call__(self, text: str) -> list[int]:
        """Nothing asks for tokens of a text: grammars are compiled without forced tokens."""
        return []

    def native(self, llguidance: Any) -> Any:
        """The tokenizer of llguidance for these tokens."""
        return llguidance.LLTokenizer(self, eos_token=sorted(self.stops) or None)

    def to_bytes(self) -> bytes:
        """All of it, for a worker."""
        lengths = [len(token) for token in self.tokens]
        head = json.dumps([lengths, [*self.special_token_ids], [*self.stops], self.bos_token_id]).encode()
        return len(head).to_bytes(_LENGTH, "big") + head + b"".join(self.tokens)

    @classmethod
    def from_bytes(cls, data: bytes) -> Vocabulary:
        """The reverse of :meth:`to_bytes`."""
        start = _LENGTH + int.from_bytes(data[:_LENGTH], "big")
        lengths, special, stops, bos = json.loads(data[_LENGTH:start])
        tokens = []
        for length in lengths:
            tokens.append(data[start : start + length])
            start += length
        return cls(tokens, special, stops, bos)


def compile_grammar(llguidance: Any, tokenizer: Any, grammar: str) -> Any:
    """The matcher of ``grammar``. It is in an error state if the grammar has a fault."""
    limits = llguidance.LLParserLimits(verbose_errors=False, max_lexer_states=MAX_LEXER_STATES)
    return llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)


def fault_of(matcher: Any) -> str:
    """What is wrong with the grammar of ``matcher`` as far as a few random answers show; "" if nothing is."""
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
    """One of the tokens in the bitmask ``bits``, which has at least one."""
    start = number % len(bits)
    place = next(index % len(bits) for index in range(start, start + len(bits)) if bits[index % len(bits)])
    return place * 8 + (bits[place] & -bits[place]).bit_length() - 1


def on_stack(size: int, function: Callable[[], T]) -> T:
    """What ``function`` returns or raises, called in a thread with ``size`` bytes of stack."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # it is raised again below
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
"""Held while the stack size of new threads, which is the whole process's, is another."""


def send(channel: socket.socket, message: bytes) -> None:
    """Send ``message`` with its length in front."""
    channel.sendall(len(message).to_bytes(_LENGTH, "big") + message)


def receive(channel: socket.socket) -> bytes | None:
    """The next message; None if the other side has gone."""
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
    """Answer every trial with the fault that it found, until the server closes the channel.

    A message is ["vocabulary", key, forgotten keys], followed by the vocabulary, or ["grammar", key, seconds, grammar].
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
        signal.setitimer(signal.ITIMER_PROF, seconds)  # of processor time; then SIGPROF ends this process
        fault = fault_of(compile_grammar(llguidance, tokenizers[key], grammar))
        signal.setitimer(signal.ITIMER_PROF, 0)
        send(channel, fault.encode())


def main() -> None:
    """Be a worker: argv[1] is the folder of llguidance, and file descriptor 0 the channel to the server."""
    resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(5)
    sys.path.insert(0, sys.argv[1])
    import _lib as llguidance  # type: ignore[import-not-found]  # the package around it takes 30 times as long

    channel = socket.socket(fileno=0)
    on_stack(TRIAL_STACK, lambda: _answer_trials(llguidance, channel))


if __name__ == "__main__":
    main()
