"""The tables of conversations. A step that was released is never changed: a change is a further step."""

from __future__ import annotations

DOCUMENT_BITS = 20
"""A document of the full-text index has the row id ``conversation.number << DOCUMENT_BITS | document``.

Document 0 is the title; messages and files count from 1. So the index, whose results come in the order of row ids,
yields the documents of a conversation together, and no other table is read to find out whose they are.
"""

EACH = 1000
"""What each conversation, message and file is counted as, in bytes, in addition to its texts."""

_NUM_BYTES = f"""
ALTER TABLE conversation ADD COLUMN num_bytes INTEGER NOT NULL DEFAULT 0;
CREATE INDEX conversation_size ON conversation (owner, num_bytes);
UPDATE conversation SET num_bytes = {EACH}
    + coalesce((SELECT sum({EACH} + length(CAST(content || reasoning AS BLOB))) FROM message
        WHERE conversation = number), 0)
    + coalesce((SELECT sum({EACH} + num_bytes) FROM file WHERE conversation = conversation.number), 0);
"""
"""The bytes that :func:`grow` counts. No trigger counts them: each would make the full-text index write a segment."""

STEPS = (
    """
CREATE TABLE conversation (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    owner TEXT NOT NULL,
    title TEXT NOT NULL,
    named INTEGER NOT NULL,
    folder TEXT NOT NULL,
    pinned INTEGER NOT NULL,
    created INTEGER NOT NULL,
    updated INTEGER NOT NULL,
    deleted INTEGER,
    settings TEXT NOT NULL,
    leaf TEXT,
    num_documents INTEGER NOT NULL
);
CREATE INDEX conversation_in_order ON conversation (owner, pinned, updated, number) WHERE deleted IS NULL;
CREATE INDEX conversation_in_folder ON conversation (owner, folder, pinned, updated, number) WHERE deleted IS NULL;
CREATE TABLE message (
    conversation INTEGER NOT NULL REFERENCES conversation ON DELETE CASCADE,
    document INTEGER NOT NULL,
    id TEXT NOT NULL UNIQUE,
    parent TEXT,
    role TEXT NOT NULL,
    content TEXT NOT NULL,
    reasoning TEXT NOT NULL,
    files TEXT NOT NULL,
    model TEXT NOT NULL,
    status TEXT NOT NULL,
    error TEXT NOT NULL,
    usage TEXT NOT NULL,
    timings TEXT NOT NULL,
    created INTEGER NOT NULL,
    PRIMARY KEY (conversation, document)
);
CREATE INDEX running ON message (conversation) WHERE status = 'running';
CREATE TABLE piece (
    number INTEGER PRIMARY KEY,
    message TEXT NOT NULL REFERENCES message (id) ON DELETE CASCADE,
    content TEXT NOT NULL,
    reasoning TEXT NOT NULL
);
CREATE INDEX piece_of_message ON piece (message, number);
CREATE TABLE file (
    conversation INTEGER NOT NULL REFERENCES conversation ON DELETE CASCADE,
    document INTEGER NOT NULL,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    media_type TEXT NOT NULL,
    num_bytes INTEGER NOT NULL,
    num_tokens INTEGER,
    created INTEGER NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (conversation, document)
);
CREATE VIRTUAL TABLE word USING fts5 (
    text, content = '', columnsize = 0, prefix = '1 2 3', tokenize = 'unicode61 remove_diacritics 2'
);
""",
    "ALTER TABLE message ADD COLUMN finish TEXT NOT NULL DEFAULT '';\n",
    _NUM_BYTES,
    """
ALTER TABLE message ADD COLUMN calls TEXT NOT NULL DEFAULT '[]';
ALTER TABLE conversation ADD COLUMN allowed TEXT NOT NULL DEFAULT '[]';
""",
)
"""A piece is what a running message received since its row was written: appending must not rewrite a long answer.

The full-text index has no content of its own: an entry is removed by naming the text that it was made of, and what a
search shows is cut from the messages themselves.
"""
