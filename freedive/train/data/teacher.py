"""A client for a teacher that is served with OpenAI's chat completions API; it retries."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from freedive.errors import Unavailable, UserError
from freedive.json_object import Json
from freedive.train.data.tasks import END_THINK, THINK
from freedive.train.run.config import Distillation

ATTEMPTS = 5
PAUSE_SECONDS = 1.0
"""Pause before the second attempt; it doubles before each further one. A server may ask for a longer pause."""

LONGEST_PAUSE = 60.0
TIMEOUT = httpx.Timeout(600, connect=10)
"""Seconds: a large model needs minutes for an answer."""

BUSY = (408, 409, 425, 429)
"""Statuses besides 5xx after which a request is tried again."""


@dataclass(frozen=True)
class Reply:
    """A reply of the teacher: ``text`` begins with the thoughts, between their marks; ``whole`` is False
    if it was cut."""

    text: str
    whole: bool


class Failure(Exception):
    """Raised when a prompt gets no reply; its text is the reason."""


class _Transient(Exception):
    """A temporary fault; ``pause`` is the time in seconds that the server asks to wait."""

    def __init__(self, fault: str, pause: float = 0.0) -> None:
        super().__init__(fault)
        self.pause = pause


@dataclass(frozen=True)
class Teacher:
    """A client of the ``model`` on the server that ``http`` is connected to."""

    http: httpx.AsyncClient
    model: str
    settings: Distillation

    async def reply(self, prompt: str) -> Reply:
        """Returns one reply. Raises Failure if the request is refused, or after ATTEMPTS temporary faults."""
        asked = [{"role": "system", "content": self.settings.instruction}] if self.settings.instruction else []
        body = {
            "model": self.model,
            "messages": [*asked, {"role": "user", "content": prompt}],
            "temperature": self.settings.temperature,
            "max_tokens": self.settings.max_tokens,
        }
        for attempt in range(ATTEMPTS):
            try:
                return _reply(await _json(self.http, "POST", "chat/completions", body))
            except _Transient as error:
                fault = error
            if attempt + 1 < ATTEMPTS:
                await asyncio.sleep(min(LONGEST_PAUSE, max(fault.pause, PAUSE_SECONDS * 2**attempt)))
        raise Failure(str(fault))


@asynccontextmanager
async def connected(settings: Distillation) -> AsyncIterator[Teacher]:
    """Connects to the teacher of ``settings``.

    Raises UserError if the address is not valid, or if it has several models and none is named.
    """
    address = settings.teacher
    if not _is_address(address):
        raise UserError(f"distill.teacher is {address!r}", "Name a server, such as http://localhost:8000/v1")
    key = os.environ.get(settings.key)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with httpx.AsyncClient(base_url=f"{address.rstrip('/')}/", headers=headers, timeout=TIMEOUT) as http:
        yield Teacher(http, settings.model or await _only_model(http, address), settings)


def _is_address(text: str) -> bool:
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        return False
    return url.scheme in ("http", "https") and bool(url.host)


async def _only_model(http: httpx.AsyncClient, address: str) -> str:
    try:
        names = [str(model["id"]) for model in (await _json(http, "GET", "models"))["data"]]
    except (Failure, _Transient, LookupError, TypeError) as error:
        raise Unavailable(f"{address} does not say what models it has: {error}", "Name one: distill.model=") from None
    if len(names) != 1:
        raise UserError(f"{address} has {len(names)} models", f"Name one: distill.model={' or '.join(names[:8])}")
    return names[0]


async def _json(http: httpx.AsyncClient, method: str, path: str, body: Json | None = None) -> Any:
    try:
        response = await http.request(method, path, json=body)
    except httpx.TransportError as error:
        raise _Transient(str(error) or type(error).__name__) from None
    if response.is_success:
        try:
            return response.json()
        except ValueError:
            raise _Transient("an answer that is not JSON") from None
    fault = f"{response.status_code} {response.text[:200]}".strip()
    if response.status_code in BUSY or response.status_code >= 500:
        raise _Transient(fault, _seconds(response.headers.get("Retry-After", "")))
    raise Failure(fault)


def _seconds(text: str) -> float:
    """Returns the seconds in a Retry-After header, or 0 if it holds a date."""
    return float(text) if text.isdecimal() else 0.0


def _reply(answer: Any) -> Reply:
    """Returns the reply in a response.

    Thoughts are in a field of their own, by DeepSeek's or another name, or in the text.

    If the chat template opens the thoughts, the text holds only the mark that closes them.
    """
    try:
        choice = answer["choices"][0]
        message = choice["message"]
        text = str(message.get("content") or "").strip()
        thoughts = str(message.get("reasoning_content") or message.get("reasoning") or "").strip()
        whole = choice.get("finish_reason") not in ("length", "content_filter")
    except (LookupError, TypeError, AttributeError):
        raise _Transient("an answer without choices") from None
    if thoughts:
        text = f"{THINK}{thoughts}{END_THINK}{text}"
    elif END_THINK in text and THINK not in text:
        text = THINK + text
    return Reply(text, whole)
