"""Properties of every class of request fields, in all APIs."""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any

import httpx
import pytest
from echo_model import EchoModel, serving
from pydantic import AfterValidator

import freedive.server.app  # noqa: F401 - it imports every class there is
from freedive.server.field_table import CLASSES, written
from freedive.server.request_body import JsonObject, RequestBody, Text

ROOT = Path(__file__).parents[2]


def all_classes(of: type[RequestBody] = RequestBody) -> Iterator[type[RequestBody]]:
    for each in of.__subclasses__():
        yield each
        yield from all_classes(each)


def validators(annotation: Any) -> set[Any]:
    return {each.func for each in typing.get_args(annotation)[1:] if isinstance(each, AfterValidator)}


CHECKED = validators(Text) | validators(JsonObject)


def unchecked(annotation: Any, metadata: tuple[Any, ...] = ()) -> bool:
    """Returns whether ``annotation`` can contain a string that is not validated."""
    if any(isinstance(each, AfterValidator) and each.func in CHECKED for each in metadata):
        return False
    if annotation in (str, Any, object, dict, list):
        return True
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return unchecked(inner[0], inner[1:])
    if origin is typing.Literal:
        return False
    if origin in (typing.Union, UnionType, list, tuple, dict):
        return any(unchecked(each) for each in inner)
    return False


def test_every_string_of_a_client_is_validated() -> None:
    bare = [
        f"{body.__name__}.{name}"
        for body in set(all_classes())
        for name, annotation in typing.get_type_hints(body, include_extras=True).items()
        if name in body.model_fields and unchecked(annotation)
    ]
    assert bare == []


def test_the_check_finds_strings_that_are_not_validated() -> None:
    found = [str, list[str], dict[str, Any], str | None, typing.Annotated[list[str], 1], dict[str, list[str]]]
    assert all(map(unchecked, found))
    assert not any(
        map(unchecked, [Text, list[Text], JsonObject, Text | None, typing.Literal["a"], int, dict[Text, int]])
    )


def test_no_field_has_two_treatments() -> None:
    for body in all_classes():
        fields = {field.alias or name for name, field in body.model_fields.items()}
        kinds = [fields, body.ignored, body.unsupported.keys(), body.synonyms.keys()]
        names = [name for kind in kinds for name in kind]
        twice = {name for name in names if names.count(name) > 1}
        assert not twice, (body, twice)
        assert set(body.synonyms.values()) <= fields


def test_the_documentation_has_the_treatment_of_every_field() -> None:
    page = (ROOT / "docs" / "api.md").read_text("utf-8")
    assert page == written(page), "run: python -m freedive.server.field_table docs/api.md"
    listed = set(CLASSES.values())
    assert {body for body in all_classes() if body.__doc__ and re.match(r"POST /(v1|api)/", body.__doc__)} <= listed | {
        body for body in all_classes() if "older form" in (body.__doc__ or "")
    }


INTERNAL = re.compile(
    r"function-|literal\[|Value error|\[(str|int|list|dict)|pydantic|Input |_unicode|NoExtension|valid dictionary|"
    r"extract fields|Errno|0x[0-9a-f]|Traceback|<class|object at|\btag\b|discriminator"
)
WRONG: list[Any] = [
    -7,
    "x\ud800",
    [],
    {},
    True,
    [1, "a"],
    {"type": "x"},
    [{"type": None}],
    [[]],
    {"a": {"a": "\ud800"}},
]


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    with serving(EchoModel(delay_s=0)) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


CHAT = {"model": "echo", "messages": [{"role": "user", "content": "hi"}]}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "echo", "prompt": "hi"},
    "/v1/embeddings": {"model": "echo", "input": "hi"},
    "/v1/responses": {"model": "echo", "input": "hi", "store": False},
    "/v1/responses/input_tokens": {"model": "echo", "input": "hi"},
    "/v1/messages": CHAT | {"max_tokens": 9},
    "/v1/messages/count_tokens": CHAT,
    "/api/chat": CHAT | {"stream": False},
    "/api/generate": {"model": "echo", "prompt": "hi", "stream": False},
    "/api/embed": {"model": "echo", "input": "hi"},
    "/api/show": {"model": "echo"},
    "/tokenize": {"model": "echo", "prompt": "hi"},
    "/detokenize": {"model": "echo", "tokens": [104]},
}


@pytest.mark.parametrize("route", BODIES)
def test_an_error_names_the_request_and_not_the_code(http: httpx.Client, route: str) -> None:
    kind = CLASSES[f"`{route}`"]
    fields = [field.alias or name for name, field in kind.model_fields.items()]
    assert len(fields) > 1
    for field in fields:
        for value in WRONG:
            body = BODIES[route] | {field: value}
            content = json.dumps(body)
            response = http.post(route, content=content, headers={"content-type": "application/json"})
            assert response.status_code in (200, 400, 404), (body, response.text)
            if response.status_code == 400:
                assert not INTERNAL.search(response.text), (body, response.text)
