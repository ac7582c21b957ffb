"""POST /v1/embeddings: what the loaded model makes of a text, as one vector of length 1."""

from __future__ import annotations

from base64 import b64encode
from struct import pack
from typing import Annotated, ClassVar, Literal

from fastapi import Request, Response
from pydantic import BeforeValidator, Field

from freedive.engine.pooling import Pooling
from freedive.server.long_json import long_json
from freedive.server.openai.fields import Prompt, listed_prompts
from freedive.server.openai.foreign_fields import LABELS
from freedive.server.problems import prompt_named
from freedive.server.routing import APIRouter
from freedive.server.service import Ask, Service, to_embed
from freedive.server.wire import Text, Wire

Vector = list[float]


class EmbeddingRequest(Wire):
    """POST /v1/embeddings. ``pooling`` is ours: the mean over all tokens, or the last token's state."""

    ignored = LABELS | {"input_type"}
    unsupported: ClassVar = {"add_special_tokens": (True,), "dimensions": (), "truncate_prompt_tokens": ()}

    model: Text
    input: Annotated[
        list[Prompt],
        BeforeValidator(listed_prompts, json_schema_input_type=Prompt | list[Prompt]),
        Field(min_length=1, max_length=2048),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Pooling = "mean"
    user: Text = ""
    user_id: Text = ""

    def ask(self) -> Ask:
        """In our terms."""
        return to_embed(self.model, self.input, self.pooling, user=self.user_id or self.user, salt=self.user_id)


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/embeddings", summary="Texts as vectors")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        with prompt_named("input"):
            answers = await service.answers(body.ask(), request)
        vectors = await answers.embeddings(request)
        write = _floats if body.encoding_format == "float" else _base64
        data = ({"object": "embedding", "index": i, "embedding": write(vector)} for i, vector in enumerate(vectors))
        usage = {"prompt_tokens": answers.usage.prompt, "total_tokens": answers.usage.prompt}
        return await long_json({"object": "list", "model": answers.model.name, "usage": usage}, "data", data)

    return routes


def _floats(vector: Vector) -> Vector:
    return vector


def _base64(vector: Vector) -> str:
    """Little-endian float32, as OpenAI's own clients ask for it."""
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode()
