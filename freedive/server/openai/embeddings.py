"""POST /v1/embeddings: one normalized vector for each text."""

from __future__ import annotations

from base64 import b64encode
from struct import pack
from typing import Annotated, ClassVar, Literal

from fastapi import Request, Response
from pydantic import BeforeValidator, Field

from freedive.engine.pooling import Pooling
from freedive.engine.request import GenerationRequest, embedding_request
from freedive.engine.submission import Scope
from freedive.server.api_errors import prompt_named
from freedive.server.long_json import long_json
from freedive.server.openai.fields import PromptInput, listed_prompts
from freedive.server.openai.foreign_fields import LABELS
from freedive.server.request_body import RequestBody, Text
from freedive.server.routing import APIRouter
from freedive.server.service import Service

Vector = list[float]


class EmbeddingRequest(RequestBody):
    """POST /v1/embeddings. ``pooling`` is an extension: the mean over all tokens, or the last token's state."""

    ignored = LABELS | {"input_type"}
    unsupported: ClassVar = {"add_special_tokens": (True,), "dimensions": (), "truncate_prompt_tokens": ()}

    model: Text
    input: Annotated[
        list[PromptInput],
        BeforeValidator(listed_prompts, json_schema_input_type=PromptInput | list[PromptInput]),
        Field(min_length=1, max_length=2048),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Pooling = "mean"
    user: Text = ""
    user_id: Text = ""

    def generation_request(self) -> GenerationRequest:
        """Returns the generation request that this body describes."""
        scope = Scope(user=self.user_id or self.user, cache_salt=self.user_id)
        return embedding_request(self.model, self.input, self.pooling, scope=scope)


def router(service: Service) -> APIRouter:
    """Returns the route of OpenAI's embeddings API."""
    routes = APIRouter()

    @routes.post("/embeddings", summary="Embed texts")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        with prompt_named("input"):
            completions = await service.generate(body.generation_request, request)
        vectors = await completions.embeddings(request)
        write = _floats if body.encoding_format == "float" else _base64
        data = ({"object": "embedding", "index": i, "embedding": write(vector)} for i, vector in enumerate(vectors))
        usage = {"prompt_tokens": completions.usage.prompt_tokens, "total_tokens": completions.usage.prompt_tokens}
        return await long_json({"object": "list", "model": completions.model.name, "usage": usage}, "data", data)

    return routes


def _floats(vector: Vector) -> Vector:
    return vector


def _base64(vector: Vector) -> str:
    """Returns the vector as base64 of little-endian float32, which OpenAI's clients request by default."""
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode()
