"""POST /v1/responses, and the routes of stored responses."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated

from fastapi import Query, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import Response

from freedive.engine.submission import Scope
from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.api_errors import prompt_named
from freedive.server.openai.responses.fields import (
    CountRequest,
    ListQuery,
    PromptRequest,
    ResponseRequest,
    RetrieveQuery,
)
from freedive.server.openai.responses.reply import Reply
from freedive.server.openai.responses.store import Store
from freedive.server.request_record import RequestRecord
from freedive.server.routing import APIRouter
from freedive.server.service import Service
from freedive.server.stream import EventStream, with_error_event


def router(service: Service, store: Store) -> APIRouter:
    """Returns the routes of OpenAI's Responses API."""
    routes = APIRouter(prefix="/responses")

    @routes.post("", summary="Create a response, and store its conversation", response_model=None)
    async def create(body: ResponseRequest, request: Request) -> Response | Json:
        owner = _caller(request)
        conversation = await run_in_threadpool(_conversation, body, store, owner)
        user = body.safety_identifier or body.user or ""
        describe = partial(
            body.generation_request, body.model, conversation, sampling=body.sampling(), scope=Scope(user=user)
        )
        with prompt_named("input"):
            completions = await service.generate(describe, request)
        body.report_unheeded(completions.model)
        reply = Reply(body, completions, conversation, store, owner)
        if body.stream:
            return EventStream(with_error_event(reply.stream(), reply.failed, reply.head["id"]), reply.in_progress)
        return await reply.whole(request)

    @routes.post("/input_tokens", summary="Count the input tokens of a response")
    async def count(body: CountRequest, request: Request) -> Json:
        conversation = await run_in_threadpool(_conversation, body, store, _caller(request))
        describe = partial(body.generation_request, service.models.named(body.model), conversation)
        model, (prompt,) = await service.prompts(describe, request)
        body.report_unheeded(model)
        return {"object": "response.input_tokens", "input_tokens": len(prompt.tokens)}

    @routes.get("/{response_id}", summary="Return a stored response")
    async def retrieve(response_id: str, query: Annotated[RetrieveQuery, Query()], request: Request) -> Json:
        return await run_in_threadpool(store.response, response_id, _caller(request))

    @routes.delete("/{response_id}", summary="Delete a stored response")
    async def delete(response_id: str, request: Request) -> Json:
        await run_in_threadpool(store.delete, response_id, _caller(request))
        return {"id": response_id, "object": "response", "deleted": True}

    @routes.get("/{response_id}/input_items", summary="List the input items of a stored response")
    async def input_items(response_id: str, query: Annotated[ListQuery, Query()], request: Request) -> Json:
        owner = _caller(request)
        response = await run_in_threadpool(store.response, response_id, owner)
        conversation = await run_in_threadpool(store.conversation, response_id, owner)
        return _page(conversation[: len(conversation) - len(response["output"])], query)

    @routes.post("/{response_id}/cancel", summary="Refused: there are no background responses")
    async def cancel(response_id: str, request: Request) -> Json:
        await run_in_threadpool(store.response, response_id, _caller(request))
        what = "Only background responses can be cancelled"
        raise UserError(what, "Close the connection to cancel a running response", param="response_id")

    return routes


def _caller(request: Request) -> str:
    """Returns the tenant of a request, "" if requests need no key."""
    record: RequestRecord = request.state.record
    return record.key.id


def _conversation(body: PromptRequest, store: Store, owner: str) -> list[Json]:
    """Returns the stored and new items of the conversation. Raises NotFound for items that are not stored."""
    previous = body.previous_response_id
    earlier = store.conversation(previous, owner, "previous_response_id") if previous else []
    return [*earlier, *body.items(partial(store.item, owner=owner))]


def _page(items: Sequence[Json], query: ListQuery) -> Json:
    """Returns the page of ``items`` that ``query`` selects. Raises UserError for an unknown item."""
    ordered = items if query.order == "asc" else items[::-1]
    names = [item["id"] for item in ordered]
    if query.after is not None and query.after not in names:
        raise UserError(f"'after' is '{query.after}', which is not an item of this response", param="after")
    start = names.index(query.after) + 1 if query.after is not None else 0
    data = ordered[start : start + query.limit]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": start + query.limit < len(items), **ends}
