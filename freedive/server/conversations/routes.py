"""Routes of the page's conversations, below /app/conversations: a private API that may change with the page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Annotated, Any, Literal
from urllib.parse import quote

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse

from freedive.errors import NotFound, UserError
from freedive.json_object import Json
from freedive.server.conversations.archive import to_json, to_markdown
from freedive.server.conversations.chats import Chats
from freedive.server.conversations.fields import (
    ChangeRequest,
    CreateRequest,
    FileRequest,
    ImportRequest,
    MessageRequest,
)
from freedive.server.conversations.imports.reader import read_import
from freedive.server.conversations.records import Conversation, ConversationDraft, FileDraft, MessageDraft, Tree
from freedive.server.conversations.search import Hit
from freedive.server.page.rendered import Rendered
from freedive.server.request_record import RequestRecord
from freedive.server.routing import APIRouter

PREFIX = "/app/conversations"

Format = Literal["json", "markdown"]
Limit = Annotated[int, Query(ge=1, le=200)]
Word = Annotated[str, Query(max_length=1000)]

Count = Callable[[Request, str, str], Awaitable[int | None]]
"""Returns the tokens of a text for a model ("": the first), None if they are not known."""

MEDIA_TYPES = {"json": "application/json", "markdown": "text/markdown; charset=utf-8"}
ENDINGS = {"json": "json", "markdown": "md"}
HIDDEN = ("settings", "deleted", "leaf", "allowed")
"""What lists do not show of a conversation."""


def router(chats: Chats, rendered: Rendered, count: Count) -> APIRouter:
    """Returns the routes of ``chats``; ``rendered`` keeps the HTML of their messages, ``count`` counts tokens."""
    routes = APIRouter(prefix=PREFIX, include_in_schema=False)
    _add_lists(routes, chats)
    _add_files_of_many(routes, chats)
    _add_conversations(routes, chats, rendered)
    _add_parts(routes, chats, count)
    return routes


def _add_lists(routes: APIRouter, chats: Chats) -> None:
    @routes.get("")
    async def conversations(
        request: Request, folder: Word | None = None, after: Word | None = None, limit: Limit = 50
    ) -> Json:
        owner = _owner(request)
        page = await run_in_threadpool(chats.saved.page, owner, folder=folder, after=after, limit=limit)
        return {"conversations": [_summary(each) for each in page.conversations], "next": page.next}

    @routes.get("/search")
    async def search(request: Request, q: Annotated[str, Query(max_length=1000)], limit: Limit = 20) -> Json:
        hits = await run_in_threadpool(chats.saved.search, _owner(request), q, limit)
        return {"hits": [_hit(hit) for hit in hits]}

    @routes.get("/folders")
    async def folders(request: Request) -> Json:
        counts = await run_in_threadpool(chats.saved.folders, _owner(request))
        return {"folders": [{"name": name, "conversations": number} for name, number in counts.items()]}


def _add_files_of_many(routes: APIRouter, chats: Chats) -> None:
    importing = CapacityLimiter(1)  # a file may take hundreds of megabytes while it is read

    @routes.get("/export", response_model=None)
    async def export_all(request: Request, format: Format = "json") -> Response:
        owner = _owner(request)
        ids = await run_in_threadpool(chats.saved.ids, owner)
        content = _exported(chats, owner, ids, format)
        return StreamingResponse(content, headers=_download("conversations", format), media_type=MEDIA_TYPES[format])

    @routes.post("/import")
    async def import_file(body: ImportRequest, request: Request) -> Json:
        def run() -> list[Conversation]:
            return chats.saved.create_all(_owner(request), read_import(body.data()))

        return {"conversations": [_summary(each) for each in await run_sync(run, limiter=importing)]}


def _add_conversations(routes: APIRouter, chats: Chats, rendered: Rendered) -> None:
    @routes.post("")
    async def create(body: CreateRequest, request: Request) -> Json:
        store = chats.temporary if body.temporary else chats.saved
        draft = ConversationDraft(
            title=body.title,
            named=bool(body.title),
            folder=body.folder,
            settings=body.settings.model_dump(exclude_none=True),
        )
        return vars(await run_in_threadpool(store.create, _owner(request), draft))

    @routes.get("/{id}")
    async def read(id: str, request: Request, html: bool = False) -> Json:
        tree = await run_in_threadpool(chats.holding(id).read, _owner(request), id)
        return _whole(tree, [await rendered.html(message) for message in tree.messages] if html else None)

    @routes.patch("/{id}")
    async def change(id: str, body: ChangeRequest, request: Request) -> Json:
        return vars(await run_in_threadpool(_change, chats, _owner(request), id, body))

    @routes.delete("/{id}")
    async def delete(id: str, request: Request, forever: bool = False, if_empty: bool = False) -> Json:
        delete = partial(chats.holding(id).delete, _owner(request), id, forever=forever, if_empty=if_empty)
        return {"id": id, "deleted": await run_in_threadpool(delete)}

    @routes.get("/{id}/export", response_model=None)
    async def export(id: str, request: Request, format: Format = "json") -> Response:
        draft = await run_in_threadpool(chats.holding(id).draft, _owner(request), id)
        content = to_markdown(draft) if format == "markdown" else f"[{to_json(draft)}]\n"
        headers = _download(draft.title or "conversation", format)
        return Response(content.encode(), headers=headers, media_type=MEDIA_TYPES[format])


def _add_parts(routes: APIRouter, chats: Chats, count: Count) -> None:
    reading = CapacityLimiter(2)  # a PDF file takes a process

    @routes.post("/{id}/messages")
    async def add_message(id: str, body: MessageRequest, request: Request) -> Json:
        draft = MessageDraft(role=body.role, content=body.content, reasoning=body.reasoning, model=body.model)
        add = chats.holding(id).messages.add
        return vars(await run_in_threadpool(add, _owner(request), id, draft, parent=body.parent, files=body.files))

    @routes.post("/{id}/files")
    async def add_file(id: str, body: FileRequest, request: Request) -> Json:
        owner, store = _owner(request), chats.holding(id)
        settings = await run_in_threadpool(store.settings, owner, id)  # before the work for a file that has no place
        text = await run_sync(body.read, limiter=reading)
        draft = FileDraft(name=body.name, media_type=body.media_type, text=text)
        draft.num_tokens = await count(request, settings.get("model", ""), text)
        return vars(await run_in_threadpool(store.files.add, owner, id, draft))

    @routes.get("/{id}/files/{file}")
    async def read_file(id: str, file: str, request: Request) -> Json:
        return {"text": await run_in_threadpool(chats.holding(id).files.text, _owner(request), id, file)}

    @routes.delete("/{id}/files/{file}")
    async def remove_file(id: str, file: str, request: Request) -> Json:
        await run_in_threadpool(chats.holding(id).files.remove, _owner(request), id, file)
        return {"id": file, "deleted": True}


def _owner(request: Request) -> str:
    """Returns the tenant of a request, "" if requests need no key."""
    record: RequestRecord = request.state.record
    return record.key.id


def _change(chats: Chats, owner: str, id: str, body: ChangeRequest) -> Conversation:
    if body.deleted:
        raise UserError("A conversation is deleted by DELETE", "Send 'deleted' as false to undo it", param="deleted")
    store = chats.holding(id)
    if body.deleted is False:
        store.restore(owner, id)
    changes: dict[str, Any] = body.model_dump(exclude_none=True, exclude={"deleted"})
    return store.update(owner, id, **changes, **({"named": True} if body.title is not None else {}))


def _summary(conversation: Conversation) -> Json:
    """Returns a conversation as it stands in lists."""
    return {name: value for name, value in vars(conversation).items() if name not in HIDDEN}


def _whole(tree: Tree, htmls: Sequence[str] | None) -> Json:
    messages = [vars(message) for message in tree.messages]
    if htmls is not None:
        messages = [{**message, "html": html} for message, html in zip(messages, htmls, strict=True)]
    return {**vars(tree.conversation), "messages": messages, "files": [vars(file) for file in tree.files]}


def _hit(hit: Hit) -> Json:
    return {**_summary(hit.conversation), "snippet": vars(hit.snippet)}


def _exported(chats: Chats, owner: str, ids: list[str], format: Format) -> Iterator[bytes]:
    """Yields all conversations as one file; one that is deleted meanwhile is left out."""
    before, between, after = ("[", ",\n", "]\n") if format == "json" else ("", "\n---\n\n", "")
    yield before.encode()
    is_first = True
    for id in ids:
        with suppress(NotFound):
            draft = chats.saved.draft(owner, id)
            text = to_json(draft) if format == "json" else to_markdown(draft)
            yield ("" if is_first else between).encode() + text.encode()
            is_first = False
    yield after.encode()


def _download(name: str, format: Format) -> dict[str, str]:
    """Returns the header with which a browser saves an answer under ``name`` (RFC 6266)."""
    file = quote(f"{name[:100]}.{ENDINGS[format]}", safe="")
    return {"Content-Disposition": f"attachment; filename=\"conversation.{ENDINGS[format]}\"; filename*=UTF-8''{file}"}
