"""Routes that tokenize and detokenize texts and chats, as in vLLM and llama.cpp."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from pydantic import model_validator

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.server.content_parts import readable
from freedive.server.model import Model, Tokenizer
from freedive.server.openai.fields import ChatRequest
from freedive.server.openai.message_fields import Message, Tools
from freedive.server.request_body import JsonObject, RequestBody, Text, ignore
from freedive.server.routing import APIRouter, off_loop
from freedive.server.service import Service

BYTES_PER_TOKEN = 16
"""Approximate bytes of one token in a response."""

ONLY_OF_CHATS = {"add_generation_prompt", "chat_template_kwargs", "continue_final_message", "tools"}
"""Fields that have no effect on a text."""


class TokenizeRequest(RequestBody):
    """POST /tokenize: ``prompt`` (vLLM), ``content`` (llama.cpp) or the ``messages`` of a chat.

    Special tokens such as BOS are added to ``prompt``, as in vLLM, but not to ``content``, as in llama.cpp. Both read
    the spelling of a special token in the text as that token, and so do we unless ``parse_special`` is false.
    """

    unsupported: ClassVar = {"chat_template": (), "mm_processor_kwargs": ({},)}

    model: Text = ""
    prompt: Text | None = None
    content: Text | None = None
    messages: list[Message] = []
    tools: Tools = []
    chat_template_kwargs: JsonObject = {}
    continue_final_message: bool = False
    add_generation_prompt: bool = True
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool = True
    return_token_strs: bool = False
    with_pieces: bool = False

    @model_validator(mode="before")
    @classmethod
    def _is_readable(cls, data: Any) -> Any:
        return readable(data, ("text",))

    @model_validator(mode="after")
    def _one_thing(self) -> TokenizeRequest:
        if sum([self.prompt is not None, self.content is not None, bool(self.messages)]) != 1:
            what = "A request has exactly one of 'prompt', 'content' and 'messages'"
            raise UserError(what, "Send one of them", param="prompt")
        if self.messages and (self.add_special_tokens or self.add_special):
            name = "add_special_tokens" if self.add_special_tokens else "add_special"
            raise UserError("A chat's template adds the special tokens", f"Leave '{name}' out", param=name)
        if self.messages and not self.parse_special:
            what = "A chat's template spells its special tokens, so 'parse_special' cannot be false with 'messages'"
            raise UserError(what, "Send the text as 'content', or leave it out", param="parse_special")
        for name in () if self.messages else sorted(self.model_fields_set & ONLY_OF_CHATS):
            ignore(name)
        return self

    def chat(self, model: str) -> ChatRequest:
        """Returns the chat request with the fields that both requests have."""
        shared = self.model_fields_set & ChatRequest.model_fields.keys()
        return ChatRequest(**{name: getattr(self, name) for name in shared} | {"model": model})

    def encode(self, tokenizer: Tokenizer) -> list[int]:
        """Returns the tokens of the text, without a limit on its length."""
        given = (self.add_special_tokens, self.add_special)
        special = next((value for value in given if value is not None), self.prompt is not None)
        text = self.content if self.prompt is None else self.prompt
        return tokenizer.encode(text or "", add_special=special, parse_special=self.parse_special)


class DetokenizeRequest(RequestBody):
    """POST /detokenize."""

    model: Text = ""
    tokens: list[int]


def router(service: Service) -> APIRouter:
    """Returns the routes for tokenization."""
    routes = APIRouter()

    @routes.post("/tokenize", summary="Tokenize a text or a conversation")
    async def tokenize(body: TokenizeRequest, request: Request) -> Json:
        name = service.models.named(body.model)
        if body.messages:
            chat = body.chat(name)
            model, (prompt,) = await service.prompts(chat.generation_request, request)
            chat.report_unheeded(model)
            tokens = prompt.tokens
        else:
            model, tokens = await service.run(name, lambda model: body.encode(model.tokenizer), request)
        return await off_loop(BYTES_PER_TOKEN * len(tokens), _described, body, model, tokens)

    @routes.post("/detokenize", summary="Decode tokens to text")
    async def detokenize(body: DetokenizeRequest) -> Json:
        async with service.models.use(service.models.named(body.model)) as model:
            text = await run_in_threadpool(_text, model.tokenizer, body.tokens)
        return {"prompt": text, "content": text}

    @routes.get("/tokenizer_info", summary="The special tokens and the chat template")
    async def tokenizer_info(model: str = "") -> Json:
        name = service.models.named(model)
        slot = service.models.slot(name)
        async with service.models.use(name) as loaded:
            template = (await run_in_threadpool(slot.entry.info)).template
            return {**loaded.tokenizer.roles, "chat_template": template or None}

    @routes.post("/v1/chat/completions/render", summary="Render the prompt of a conversation")
    async def render(body: ChatRequest, request: Request) -> Json:
        model, (rendered,) = await service.prompts(body.generation_request, request)
        body.report_unheeded(model)
        prompt = await run_in_threadpool(_text, model.tokenizer, rendered.tokens)
        return {"prompt": prompt, "tokens": rendered.tokens, "count": len(rendered.tokens)}

    return routes


def _described(body: TokenizeRequest, model: Model, tokens: Sequence[int]) -> Json:
    names = [model.tokenizer.token_text(token) for token in tokens] if body.return_token_strs else None
    pieces = [_piece(model.tokenizer, token) for token in tokens] if body.with_pieces else tokens
    return {"count": len(tokens), "max_model_len": model.max_context, "tokens": pieces, "token_strs": names}


def _text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    for token in tokens:
        if not 0 <= token < tokenizer.vocab_size:
            what = f"{token} is not a token of this model"
            raise UserError(what, f"Send numbers from 0 to {tokenizer.vocab_size - 1}", param="tokens")
    return tokenizer.decode(tokens, skip_special=False)


def _piece(tokenizer: Tokenizer, token: int) -> Json:
    """Returns a token in llama.cpp's format: its text, or its bytes if they are not UTF-8."""
    piece = tokenizer.token_bytes(token)
    try:
        return {"id": token, "piece": piece.decode()}
    except UnicodeDecodeError:
        return {"id": token, "piece": list(piece)}
