"""The HTML of whole messages, rendered in threads and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict

from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from freedive.server.conversations.records import Message
from freedive.server.page.rendering import to_html

MAX_CHARS = 16 << 20
"""Characters of HTML that are kept."""


class Rendered:
    """The HTML of messages that do not run; those that were read longest ago are dropped first."""

    def __init__(self, max_chars: int = MAX_CHARS) -> None:
        self._max_chars = max_chars
        self._num_chars = 0
        self._threads = CapacityLimiter(2)  # a long text takes seconds, for which nothing else should wait
        self._html: OrderedDict[tuple[str, int], str] = OrderedDict()

    async def html(self, message: Message) -> str:
        """Returns the HTML of an answer; "" for a message of the user, which is shown as it is."""
        if message.role == "user":
            return ""
        key = (message.id, len(message.content))  # a message only grows, when it is continued
        if (known := self._html.get(key)) is not None:
            self._html.move_to_end(key)
            return known
        html = await run_sync(to_html, message.content, limiter=self._threads)
        if message.status != "running":
            self._keep(key, html)
        return html

    def _keep(self, key: tuple[str, int], html: str) -> None:
        if key not in self._html:
            self._html[key] = html
            self._num_chars += len(html)
        while self._num_chars > self._max_chars:
            self._num_chars -= len(self._html.popitem(last=False)[1])
