"""POST /v1/embeddings: what the loaded model makes of a text, as one vector of length 1."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from contextlib import aclosing
from struct import pack
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import BeforeValidator, Field

from freedive.engine.pooling import Pooling
from freedive.server.answers import Answers
from freedive.server.model import Model
from freedive.server.openai.fields import Prompt, listed_prompts
from freedive.server.service import Ask, Service
from freedive.server.stream import interleave, unless_disconnected
from freedive.server.wire import Wire
from freedive.text.question import Question

Json = dict[str, Any]
Vector = list[float]


class EmbeddingRequest(Wire):
    """POST /v1/embeddings. ``pooling`` is ours: the mean over all tokens, or the last token's state."""

    unsupported: ClassVar = {"dimensions": ()}

    model: str
    input: Annotated[
        list[Prompt],
        BeforeValidator(listed_prompts, json_schema_input_type=Prompt | list[Prompt]),
        Field(min_length=1, max_length=2048),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    pooling: Pooling = "mean"
    user: str = ""
    user_id: str = ""

    def ask(self) -> Ask:
        """In our terms."""
        return Ask(self.model, self.questions, {"max_tokens": 1}, user=self.user_id or self.user, pooling=self.pooling)

    def questions(self, model: Model) -> Sequence[Question]:
        """One for each text."""
        encode = model.tokenizer.encode
        return [Question(encode(p, add_special=True) if isinstance(p, str) else p) for p in self.input]


def router(service: Service) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.post("/embeddings", summary="Texts as vectors")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Json:
        answers = await service.answers(body.ask(), request)
        vectors = await unless_disconnected(request, vectors_of(answers))
        write = _floats if body.encoding_format == "float" else _base64
        data = [{"object": "embedding", "index": i, "embedding": write(vector)} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": answers.usage.prompt, "total_tokens": answers.usage.prompt}
        return {"object": "list", "model": answers.model.name, "data": data, "usage": usage}

    return routes


async def vectors_of(answers: Answers) -> list[Vector]:
    """The embedding of each question."""
    vectors: dict[int, Vector] = {}
    async with aclosing(interleave(answers.generations)) as items:
        async for index, piece in items:
            assert piece.embedding is not None
            vectors[index] = piece.embedding.tolist()
    return [vectors[index] for index in range(len(vectors))]


def _floats(vector: Vector) -> Vector:
    return vector


def _base64(vector: Vector) -> str:
    """Little-endian float32, as OpenAI's own clients ask for it."""
    return b64encode(pack(f"<{len(vector)}f", *vector)).decode()
