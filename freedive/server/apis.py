"""The APIs of the server, and the path prefixes of each."""

from __future__ import annotations

from typing import NamedTuple

from fastapi import APIRouter

from freedive.server import tokens
from freedive.server.anthropic import messages as anthropic_messages
from freedive.server.anthropic import models as anthropic_models
from freedive.server.library.pulls import Pulls
from freedive.server.ollama import chat as ollama_answer
from freedive.server.ollama import embed as ollama_embed
from freedive.server.ollama import library as ollama_library
from freedive.server.ollama import pull as ollama_pull
from freedive.server.openai import chat, completions, embeddings
from freedive.server.openai import models as openai_models
from freedive.server.openai.responses import routes as responses
from freedive.server.openai.responses.store import Store
from freedive.server.service import Service


class Api(NamedTuple):
    """One API: its routers are mounted under every prefix; only routes under the first are in the OpenAPI schema."""

    name: str
    prefixes: tuple[str, ...]
    routers: tuple[APIRouter, ...]


def apis(service: Service, store: Store, pulls: Pulls) -> tuple[Api, ...]:
    """Returns all APIs of ``service``; ``store`` keeps responses, and ``pulls`` downloads models."""
    models = service.models
    return (
        Api(
            "OpenAI",
            ("/v1", "", "/beta", "/beta/v1"),  # DeepSeek's clients use /beta without /v1
            (
                chat.router(service),
                completions.router(service),
                embeddings.router(service),
                responses.router(service, store),
                openai_models.router(models),
            ),
        ),
        Api("Anthropic", ("/v1", "/anthropic/v1"), (anthropic_messages.router(service),)),
        Api("Anthropic", (anthropic_models.PREFIX,), (anthropic_models.router(models),)),
        Api(
            "Ollama",
            ("/api",),
            (
                ollama_answer.router(service),
                ollama_embed.router(service),
                ollama_library.router(models),
                ollama_pull.router(models, pulls),
            ),
        ),
        Api("tokens", ("",), (tokens.router(service),)),
    )
