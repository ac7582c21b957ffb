"""All conversations of a server: those in the file, and temporary ones."""

from __future__ import annotations

import sys
from pathlib import Path

from freedive.errors import UserError
from freedive.server.conversations.room import MAX_OWNED
from freedive.server.conversations.store import ConversationStore

TEMPORARY = "temp"
"""How the ids of temporary conversations begin."""

MAX_TEMPORARY_BYTES = 64 << 20


class Chats:
    """The ``saved`` conversations in the file ``path``, and ``temporary`` ones, which end with the process.

    Temporary ones are neither listed nor searched: only who has the id reads them. If the file cannot be used, prints
    why and keeps all in memory; so it does if ``path`` is None, without a word. ``max_owned`` bounds the bytes of the
    saved ones of each owner.
    """

    def __init__(self, path: Path | None, max_owned: int = MAX_OWNED) -> None:
        try:
            self.saved = ConversationStore(path, max_owned=max_owned)
        except UserError as error:
            print(f"freedive keeps conversations in memory only: {error}", file=sys.stderr, flush=True)
            self.saved = ConversationStore(max_owned=max_owned)
        self.temporary = ConversationStore(prefix=TEMPORARY, max_bytes=MAX_TEMPORARY_BYTES)

    def holding(self, id: str) -> ConversationStore:
        """Returns the store to which a conversation with this id belongs, whether it exists or not."""
        return self.temporary if id.startswith(f"{TEMPORARY}_") else self.saved

    def close(self) -> None:
        """Closes both stores; what is in the file stays."""
        self.saved.close()
        self.temporary.close()
