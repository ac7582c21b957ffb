"""Writes the table of all request fields into a page: python -m freedive.server.field_table docs/api.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from freedive.server.anthropic.fields import Conversation, MessagesRequest
from freedive.server.ollama.fields import ChatRequest as OllamaChat
from freedive.server.ollama.fields import EmbedRequest, GenerateRequest, PullRequest, ShowRequest
from freedive.server.ollama.options import Options
from freedive.server.openai.embeddings import EmbeddingRequest
from freedive.server.openai.fields import ChatRequest, CompletionRequest
from freedive.server.openai.responses.fields import CountRequest, ResponseRequest
from freedive.server.request_body import RequestBody
from freedive.server.tokens import DetokenizeRequest, TokenizeRequest

CLASSES: Mapping[str, type[RequestBody]] = {
    "`/v1/chat/completions`": ChatRequest,
    "`/v1/completions`": CompletionRequest,
    "`/v1/embeddings`": EmbeddingRequest,
    "`/v1/responses`": ResponseRequest,
    "`/v1/responses/input_tokens`": CountRequest,
    "`/v1/messages`": MessagesRequest,
    "`/v1/messages/count_tokens`": Conversation,
    "`/api/chat`": OllamaChat,
    "`/api/generate`": GenerateRequest,
    "`options` of Ollama": Options,
    "`/api/embed`": EmbedRequest,
    "`/api/show`": ShowRequest,
    "`/api/pull`": PullRequest,
    "`/tokenize`": TokenizeRequest,
    "`/detokenize`": DetokenizeRequest,
}
"""The class of request bodies by route."""

START, END = "<!-- fields: made by python -m freedive.server.field_table -->", "<!-- end of fields -->"


def table() -> str:
    """Returns the table of all request fields in Markdown."""
    rows = [cells for where, body in CLASSES.items() for cells in _rows(where, body)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEAD, ["---"] * len(HEAD), *rows))


HEAD = ["where", "result", "fields"]


def _rows(where: str, body: type[RequestBody]) -> Iterator[list[str]]:
    honoured = [field.alias or name for name, field in body.model_fields.items()]
    synonyms = [f"`{theirs}` as `{ours}`" for theirs, ours in body.synonyms.items()]
    yield [where, "honoured", ", ".join([*(f"`{name}`" for name in sorted(honoured)), *sorted(synonyms)])]
    if body.ignored:
        yield ["", "ignored, and reported", ", ".join(f"`{name}`" for name in sorted(body.ignored))]
    if neutral := {name: values for name, values in body.unsupported.items() if values}:
        yield ["", "refused, except for values without effect", ", ".join(_neutral(neutral))]
    if refused := sorted(name for name, values in body.unsupported.items() if not values):
        yield ["", "refused", ", ".join(f"`{name}`" for name in refused)]


def _neutral(fields: Mapping[str, tuple[object, ...]]) -> Iterator[str]:
    for name, values in sorted(fields.items()):
        yield f"`{name}` ({', '.join(f'`{json.dumps(value)}`' for value in values)})"


def written(page: str) -> str:
    """Returns the Markdown text ``page`` with the current table between its markers."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    path.write_text(written(path.read_text("utf-8")), "utf-8")
