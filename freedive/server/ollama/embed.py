"""POST /api/embed and its older form /api/embeddings."""

from __future__ import annotations

import time

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from freedive.json_object import Json
from freedive.server.long_json import long_json
from freedive.server.ollama.fields import EmbeddingsRequest, EmbedRequest
from freedive.server.ollama.times import nanoseconds
from freedive.server.routing import APIRouter
from freedive.server.service import Service


def router(service: Service) -> APIRouter:
    """Returns the routes of Ollama's embedding APIs."""
    routes = APIRouter()

    @routes.post("/embed", summary="Embed texts")
    async def embed(body: EmbedRequest, request: Request) -> Response:
        started = time.perf_counter()
        if not body.input:
            return JSONResponse({"model": body.model, "embeddings": []})
        completions = await service.generate(body.generation_request, request)
        vectors = await completions.embeddings(request)
        fields = {
            "model": body.model,
            "total_duration": nanoseconds(time.perf_counter() - started),
            "load_duration": nanoseconds(completions.timings.submitted_at - started),
            "prompt_eval_count": completions.usage.prompt_tokens,
        }
        return await long_json(fields, "embeddings", vectors)

    @routes.post("/embeddings", summary="Embed a text")
    async def embeddings(body: EmbeddingsRequest, request: Request) -> Json:
        if not body.prompt:
            return {"embedding": []}
        completions = await service.generate(body.generation_request, request)
        [vector] = await completions.embeddings(request)
        return {"embedding": vector}

    return routes
