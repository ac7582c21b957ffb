"""Models are loaded on demand, and unloaded to free memory or when they are idle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from echo_model import EchoModel, model_entry
from fastapi.testclient import TestClient
from pace import seconds_on_an_idle_core
from patience import wait_for

from freedive.engine.sampling import Sampling
from freedive.engine.submission import Job
from freedive.errors import NotFound, Overloaded, Unavailable, UserError
from freedive.server import models as models_module
from freedive.server.app import create_app
from freedive.server.models import FOREVER, ModelEntry, Models
from freedive.text.prompt import Prompt


class Loader:
    """Counts how often each model is loaded."""

    def __init__(self) -> None:
        self.made: list[EchoModel] = []

    def load(self, name: str) -> EchoModel:
        self.made.append(EchoModel(name=name, num_bytes=10))
        return self.made[-1]

    def models(self, *names: str, max_bytes: float = FOREVER, keep_alive_s: float = FOREVER) -> Models:
        entries = [ModelEntry(name, partial(self.load, name), 10) for name in names]
        return Models(entries, max_bytes=max_bytes, keep_alive_s=keep_alive_s)


def run(scene: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scene(), 10))


async def used(models: Models, name: str) -> None:
    async with models.use(name):
        pass


def test_a_model_is_loaded_once_by_the_first_request() -> None:
    shelf = Loader()

    async def scene() -> None:
        models = shelf.models("a", "b")
        await asyncio.gather(*(used(models, name) for name in "aabba"))
        assert sorted(model.name for model in shelf.made) == ["a", "b"]

    run(scene)


def test_the_error_for_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(NotFound, match=r"'c' is not served here\. Served models: a, b"):
        Loader().models("a", "b").slot("c")


def test_the_least_recently_used_model_is_unloaded() -> None:
    shelf = Loader()

    async def scene() -> None:
        models = shelf.models("a", "b", "c", max_bytes=20)
        for name in "abac":
            await used(models, name)
        assert [model.name for model in models.loaded] == ["a", "c"]
        assert [model.closed for model in shelf.made] == [False, True, False]

    run(scene)


def test_a_request_waits_until_a_busy_model_makes_room() -> None:
    async def scene() -> None:
        models = Loader().models("a", "b", max_bytes=10)
        async with models.use("a"):
            waiting = asyncio.create_task(used(models, "b"))
            await asyncio.sleep(0.1)
            assert not waiting.done()
        await waiting
        assert [model.name for model in models.loaded] == ["b"]

    run(scene)


def test_a_model_can_be_unloaded_while_a_request_waits_for_it_to_have_stayed() -> None:
    async def scene() -> None:
        models = Loader().models("a", "b", max_bytes=10)
        await used(models, "a")
        models.slot("a").stays_until = FOREVER
        waiting = asyncio.create_task(used(models, "b"))
        await asyncio.sleep(0.05)
        await asyncio.wait_for(models.release("a"), 1)
        await asyncio.wait_for(waiting, 1)

    run(scene)


def test_no_model_is_unloaded_for_one_that_does_not_fit_beside_those_that_stay() -> None:
    """The operator's model is never unloaded for a fetched one, so that waiting for others is in vain."""

    async def scene() -> None:
        operators, fetched = EchoModel(name="a", num_bytes=10), EchoModel(name="c", num_bytes=15)
        other = EchoModel(name="b", num_bytes=10)
        entries = [model_entry(operators), model_entry(other)]
        models = Models(entries, [operators], max_bytes=20)
        models.add(model_entry(fetched))
        await used(models, "b")
        async with models.use("b"):
            with pytest.raises(Overloaded, match="'c' does not fit into memory with a, b"):
                await asyncio.wait_for(used(models, "c"), 1)
        with pytest.raises(Overloaded):
            await asyncio.wait_for(used(models, "c"), 1)
        assert not other.closed

    run(scene)


def test_other_models_expire_while_a_failed_one_finds_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "TICK_S", 0.01)

    async def scene() -> None:
        failing, busy, idle = (
            EchoModel(name=name, num_bytes=size) for name, size in zip("abc", (10, 5, 0), strict=True)
        )
        models = Models([model_entry(each) for each in (failing, busy, idle)], [failing], max_bytes=15)
        async with models.use("b"):
            async with models.use("c", keep_alive_s=0.3):
                busy.num_bytes = 6  # so that the failed model does not fit any more
            models.slot("c").stays_until = FOREVER
            broken(failing)
            async with models.living():
                await asyncio.wait_for(wait_for(lambda: idle not in models.loaded), 3)
                assert models.loaded == [busy]

    run(scene)


def test_a_busy_model_is_not_unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "PATIENCE_S", 0.05)

    async def scene() -> None:
        models = Loader().models("a", "b", max_bytes=10)
        async with models.use("a"):
            with pytest.raises(Overloaded, match="'b' does not fit into memory with a"):
                await used(models, "b")
        await used(models, "b")

    run(scene)


def test_an_idle_model_expires_and_a_request_can_say_when(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "TICK_S", 0.01)

    async def scene() -> None:
        models = Loader().models("a", "b", keep_alive_s=0.05)
        async with models.living():
            async with models.use("a"):
                await used(models, "b")
                await wait_for(lambda: [model.name for model in models.loaded] == ["a"])
            await wait_for(lambda: not models.loaded)
            async with models.use("b", keep_alive_s=FOREVER):
                pass
            await asyncio.sleep(0.2)
            assert [model.name for model in models.loaded] == ["b"]

    run(scene)


def test_a_reloaded_model_has_the_default_keep_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "TICK_S", 0.01)

    async def scene() -> None:
        models = Loader().models("a")
        async with models.living():
            async with models.use("a", keep_alive_s=0):
                pass
            await wait_for(lambda: not models.loaded)
            await used(models, "a")
            await asyncio.sleep(0.1)
            assert len(models.loaded) == 1

    run(scene)


def test_a_model_is_released_after_its_running_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "TICK_S", 0.01)

    async def scene() -> None:
        models = Loader().models("a")
        async with models.living():
            async with models.use("a"):
                await models.release("a")
                assert len(models.loaded) == 1
            await wait_for(lambda: not models.loaded)
            await used(models, "a")
            await models.release("a:latest")
            assert models.loaded == []

    run(scene)


def test_a_model_can_be_added_and_a_known_one_stays() -> None:
    shelf = Loader()

    async def scene() -> None:
        models = shelf.models("a")
        await used(models, "a")
        for name in "ab":
            models.add(ModelEntry(name, partial(shelf.load, name)))
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
        models = Models([ModelEntry("a", load)])
        with pytest.raises(NotFound):
            await used(models, "a")
        await used(models, "a")

    run(scene)


ALIASES = {"gpt-x": "a", "claude": "b"}


def test_an_alias_is_listed_and_answers_under_its_own_name() -> None:
    shelf = Loader()
    entries = [ModelEntry(name, partial(shelf.load, name), 10) for name in "ab"]

    async def scene() -> None:
        models = Models(entries, aliases=ALIASES)
        assert list(models.slots) == ["a", "b", "gpt-x", "claude"]
        assert models.slot("gpt-x").entry.name == "gpt-x"
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
        Models([ModelEntry(name, EchoModel) for name in "ab"], aliases=aliases)


def test_a_path_finds_a_model_and_is_never_reported() -> None:
    models = Models([ModelEntry("m.gguf", EchoModel, also=("/some/where/m.gguf", "m.gguf"))])
    assert models.slot("/some/where/m.gguf").entry.name == "m.gguf"
    with pytest.raises(NotFound) as refused:
        models.slot("x")
    assert "/some" not in str(refused.value)


def test_model_names_are_not_case_sensitive() -> None:
    models = Models([ModelEntry("hf:owner/Name", EchoModel)])
    assert models.slot("hf:Owner/name:latest").entry.name == "hf:owner/Name"
    assert "hf:OWNER/NAME" in models
    assert "hf:owner/other" not in models


@pytest.mark.parametrize("route", ["/v1/models", "/anthropic/v1/models", "/api/tags"])
def test_every_api_lists_aliases(route: str) -> None:
    models = Models([ModelEntry("a", lambda: EchoModel(name="a"))], aliases={"gpt-x": "a"})
    with TestClient(create_app(models), base_url="http://localhost") as http:
        table = http.get(route).json()
        assert [each.get("id", each.get("name")) for each in table.get("data", table.get("models"))] == ["a", "gpt-x"]
        assert http.get("/v1/models/gpt-x").json()["id"] == "gpt-x"
        chat = {"model": "gpt-x", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}
        for answering in ("/v1/chat/completions", "/v1/messages"):
            assert http.post(answering, json=chat).json()["model"] == "gpt-x"


# --- preloaded models ---------------------------------------------------------------------------------------------


def test_a_preloaded_model_is_unloaded_last_and_never_for_a_fetched_model() -> None:
    shelf = Loader()
    mine = EchoModel(name="mine", num_bytes=10)

    async def scene() -> None:
        entries = [ModelEntry(name, partial(shelf.load, name), 10) for name in ("mine", "a", "b")]
        models = Models(entries, [mine], max_bytes=20)
        models.add(ModelEntry("pulled", partial(shelf.load, "pulled"), 20))
        await used(models, "a")
        await used(models, "mine")
        await used(models, "b")
        assert [model.name for model in models.loaded] == ["mine", "b"]
        with pytest.raises(Overloaded, match="kept by the operator"):
            await used(models, "pulled")
        assert mine in models.loaded

    run(scene)


def test_two_models_that_do_not_fit_are_loaded_no_more_than_half_of_the_time() -> None:
    shelf = Loader()

    def load(name: str) -> EchoModel:
        time.sleep(0.05)
        return shelf.load(name)

    async def scene() -> None:
        models = Models([ModelEntry(name, partial(load, name), 10) for name in "ab"], max_bytes=10)
        begun = time.monotonic()
        for name in "ababa":
            await used(models, name)
        assert time.monotonic() - begun > 9 * 0.05
        assert len(shelf.made) == 5

    run(scene)


# --- models that fail -----------------------------------------------------------------------------------------------


def broken(model: EchoModel) -> EchoModel:
    """Returns a model whose engine has failed during a request."""
    model.engine.submit_all([Job(Prompt([97]), Sampling())])
    model.engine.failure = "out of tea"
    return model


def test_a_failed_model_is_reloaded_for_the_next_request() -> None:
    shelf = Loader()

    async def scene() -> None:
        models = shelf.models("a", "b", max_bytes=10)
        await used(models, "a")
        broken(shelf.made[0])
        assert "out of tea" in models.troubles["a"]
        async with models.use("a") as model:
            assert model is shelf.made[1]
        assert shelf.made[0].closed
        assert models.troubles == {}
        broken(shelf.made[1])
        await used(models, "b")  # unloads the failed model, though a request was running

    run(scene)


def test_a_preloaded_model_that_fails_is_reloaded_without_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models_module, "TICK_S", 0.01)
    monkeypatch.setattr(models_module, "RETRY_S", 0.05)
    first, loads = EchoModel(name="a"), []

    def load() -> EchoModel:
        loads.append(1)
        if len(loads) == 1:
            raise NotFound("the disk is busy")
        return EchoModel(name="a")

    async def scene() -> None:
        models = Models([ModelEntry("a", load)], [first])
        broken(first)
        async with models.living():
            while len(loads) < 2:
                if len(loads) == 1:
                    assert "loaded again" in models.troubles["a"]
                await asyncio.sleep(0.01)
            await wait_for(lambda: not models.troubles)
            assert len(models.loaded) == 1

    run(scene)


def test_an_error_in_closing_a_model_affects_no_other_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(models_module, "TICK_S", 0.01)
    shelf = Loader()

    def close() -> None:
        raise OSError("it clings")

    async def scene() -> None:
        models = shelf.models("a", "b", keep_alive_s=0.02)
        async with models.living():
            await used(models, "a")
            shelf.made[0].close = close  # type: ignore[method-assign]
            await wait_for(lambda: not models.loaded)
            await used(models, "b")
            await wait_for(lambda: not models.loaded)

    run(scene)


def test_a_stalled_model_is_reported() -> None:
    async def scene() -> None:
        model = EchoModel(name="a")
        models = Models([ModelEntry("a", lambda: model)], [model])
        model.engine.stalled_s = 400.0
        with pytest.raises(Unavailable, match="no progress for 400 s"):
            await used(models, "a")
        with TestClient(create_app(models), base_url="http://localhost") as client:
            health = client.get("/health")
            assert (health.status_code, health.json()["troubles"]) == (503, {"a": "it has made no progress for 400 s"})
            model.engine.stalled_s = 0.0
            assert client.get("/health").json()["status"] == "ok"

    run(scene)


def test_a_long_name_is_not_folded() -> None:
    async def look() -> None:
        models = Loader().models("a")
        long = "É" * 10_000_000
        assert seconds_on_an_idle_core(lambda: long in models, times=10) < 0.05
        assert long not in models
        assert "A" in models

    asyncio.run(look())
