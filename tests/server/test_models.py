"""Models come when they are asked for, and go when they must make room or nobody asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from echo_model import EchoModel
from fastapi.testclient import TestClient

from freedive.errors import NotFound, Overloaded, UserError
from freedive.server import models as models_module
from freedive.server.app import create_app
from freedive.server.models import FOREVER, Known, Models


class Shelf:
    """Counts how often each model is loaded."""

    def __init__(self) -> None:
        self.made: list[EchoModel] = []

    def load(self, name: str) -> EchoModel:
        self.made.append(EchoModel(name=name, num_bytes=10))
        return self.made[-1]

    def models(self, *names: str, max_bytes: float = FOREVER, keep_alive_s: float = FOREVER) -> Models:
        known = [Known(name, partial(self.load, name), 10) for name in names]
        return Models(known, max_bytes=max_bytes, keep_alive_s=keep_alive_s)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 10))  # type: ignore[arg-type]


async def used(models: Models, name: str) -> None:
    async with models.use(name):
        pass


def test_a_model_is_loaded_once_by_whoever_asks_first() -> None:
    shelf = Shelf()

    async def scene() -> None:
        models = shelf.models("a", "b")
        await asyncio.gather(*(used(models, name) for name in "aabba"))
        assert sorted(model.name for model in shelf.made) == ["a", "b"]

    run(scene)


def test_an_unknown_model_is_named_with_those_there_are() -> None:
    with pytest.raises(NotFound, match=r"'c' is not served here\. There are: a, b"):
        Shelf().models("a", "b").slot("c")


def test_the_model_that_was_unused_for_longest_makes_room() -> None:
    shelf = Shelf()

    async def scene() -> None:
        models = shelf.models("a", "b", "c", max_bytes=20)
        for name in "abac":
            await used(models, name)
        assert [model.name for model in models.loaded] == ["a", "c"]
        assert [model.closed for model in shelf.made] == [False, True, False]

    run(scene)


def test_a_busy_model_makes_no_room() -> None:
    async def scene() -> None:
        models = Shelf().models("a", "b", max_bytes=10)
        async with models.use("a"):
            with pytest.raises(Overloaded, match="'b' does not fit into memory beside a"):
                await used(models, "b")
        await used(models, "b")

    run(scene)


def test_an_idle_model_expires_and_a_request_can_say_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "TICK_S", 0.01)

    async def scene() -> None:
        models = Shelf().models("a", "b", keep_alive_s=0.05)
        async with models.living():
            async with models.use("a"):
                await used(models, "b")
                await asyncio.sleep(0.2)
                assert [model.name for model in models.loaded] == ["a"]
            await asyncio.sleep(0.2)
            assert models.loaded == []
            async with models.use("b", keep_alive_s=FOREVER):
                pass
            await asyncio.sleep(0.2)
            assert [model.name for model in models.loaded] == ["b"]

    run(scene)


def test_a_model_loaded_again_has_forgotten_what_a_request_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "TICK_S", 0.01)

    async def scene() -> None:
        models = Shelf().models("a")
        async with models.living():
            async with models.use("a", keep_alive_s=0):
                pass
            await asyncio.sleep(0.1)
            assert models.loaded == []
            await used(models, "a")
            await asyncio.sleep(0.1)
            assert len(models.loaded) == 1

    run(scene)


def test_a_model_is_released_when_those_who_ask_it_have_their_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "TICK_S", 0.01)

    async def scene() -> None:
        models = Shelf().models("a")
        async with models.living():
            async with models.use("a"):
                await models.release("a")
                assert len(models.loaded) == 1
            await asyncio.sleep(0.1)
            assert models.loaded == []
            await used(models, "a")
            await models.release("a:latest")
            assert models.loaded == []

    run(scene)


def test_a_model_can_be_added_and_a_known_one_stays() -> None:
    shelf = Shelf()

    async def scene() -> None:
        models = shelf.models("a")
        await used(models, "a")
        for name in "ab":
            models.add(Known(name, partial(shelf.load, name)))
        await used(models, "a")
        await used(models, "b")
        assert [model.name for model in shelf.made] == ["a", "b"]

    run(scene)


def test_a_load_that_fails_is_tried_again() -> None:
    attempts: list[int] = []

    def load() -> EchoModel:
        attempts.append(1)
        if len(attempts) == 1:
            raise NotFound("the file is gone")
        return EchoModel(name="a")

    async def scene() -> None:
        models = Models([Known("a", load)])
        with pytest.raises(NotFound):
            await used(models, "a")
        await used(models, "a")

    run(scene)


ALIASES = {"gpt-x": "a", "claude": "b"}


def test_an_alias_is_listed_and_answers_under_its_own_name() -> None:
    shelf = Shelf()
    known = [Known(name, partial(shelf.load, name), 10) for name in "ab"]

    async def scene() -> None:
        models = Models(known, aliases=ALIASES)
        assert list(models.slots) == ["a", "b", "gpt-x", "claude"]
        assert models.slot("gpt-x").known.name == "gpt-x"
        for name, shown in (("gpt-x", "gpt-x"), ("gpt-x:latest", "gpt-x"), ("a", "a")):
            async with models.use(name) as model:
                assert (model.name, model.max_context) == (shown, 4096)
        assert len(shelf.made) == 1, "it is the same model"
        assert models.slot("gpt-x").model
        await models.release("gpt-x")
        assert models.loaded == []

    run(scene)


@pytest.mark.parametrize(("aliases", "fault"), [({"x": "c"}, "'c' is not served here"), ({"a": "b"}, "has this name")])
def test_an_alias_that_cannot_be_is_refused(aliases: dict[str, str], fault: str) -> None:
    with pytest.raises(UserError, match=fault):
        Models([Known(name, EchoModel) for name in "ab"], aliases=aliases)


def test_a_path_finds_a_model_and_is_told_to_nobody() -> None:
    models = Models([Known("m.gguf", EchoModel, also=("/some/where/m.gguf", "m.gguf"))])
    assert models.slot("/some/where/m.gguf").known.name == "m.gguf"
    with pytest.raises(NotFound) as refused:
        models.slot("x")
    assert "/some" not in str(refused.value)


def test_capitals_make_no_other_model() -> None:
    models = Models([Known("hf:owner/Name", EchoModel)])
    assert models.slot("hf:Owner/name:latest").known.name == "hf:owner/Name"
    assert "hf:OWNER/NAME" in models
    assert "hf:owner/other" not in models


@pytest.mark.parametrize("route", ["/v1/models", "/anthropic/v1/models", "/api/tags"])
def test_every_api_lists_aliases(route: str) -> None:
    models = Models([Known("a", lambda: EchoModel(name="a"))], aliases={"gpt-x": "a"})
    with TestClient(create_app(models), base_url="http://localhost") as http:
        table = http.get(route).json()
        assert [each.get("id", each.get("name")) for each in table.get("data", table.get("models"))] == ["a", "gpt-x"]
        assert http.get("/v1/models/gpt-x").json()["id"] == "gpt-x"
        chat = {"model": "gpt-x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        for answering in ("/v1/chat/completions", "/v1/messages"):
            assert http.post(answering, json=chat).json()["model"] == "gpt-x"
