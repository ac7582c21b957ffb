"""Answers of the real default model in a requested format."""

from __future__ import annotations

import json
from collections.abc import Iterator

import jsonschema
import pytest

import freedive
from freedive.engine.generation import Generation
from freedive.errors import UserError
from freedive.text.format import Format
from freedive.text.request import ChatInput

ASK = [{"role": "user", "content": "Describe a fictional person as JSON."}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    },
    "required": ["name", "age", "colours"],
    "additionalProperties": False,
}
FORMATS = [
    Format("json_schema", PERSON),
    Format("json_schema", {"type": "array", "items": {"type": "integer"}, "minItems": 3, "maxItems": 3}),
    Format("regex", "[A-Z][a-z]{2,8}, [0-9]{1,2}"),
    Format("choice", ["yes", "no"]),
]


def valid(form: Format, text: str) -> bool:
    match form.kind:
        case "json_schema":
            jsonschema.validate(json.loads(text), form.value)
        case "choice":
            return text in form.value
    return bool(text)


@pytest.fixture(scope="module", params=["auto", "off"])
def model(request: pytest.FixtureRequest) -> Iterator[freedive.LanguageModel]:
    with freedive.load("smollm2", cache_tokens=4096, speculation=request.param) as model:
        yield model


def submit(model: freedive.LanguageModel, form: Format | None, seed: int) -> Generation:
    prompt = model.prepare(ChatInput(ASK, format=form))
    sampling = model.sampling(temperature=1.0, seed=seed, max_tokens=60 if form else 40)
    return model.engine.submit(prompt, sampling)


def read(generation: Generation) -> tuple[str, str | None]:
    outputs = list(generation)
    return "".join(output.text for output in outputs), outputs[-1].finish_reason


ALONE: dict[tuple[int, int], tuple[str, str | None]] = {}
"""The answers of each request alone, with and without speculation."""


def test_answers_match_their_format_alone_and_in_a_batch(model: freedive.LanguageModel) -> None:
    wanted = [(seed, number) for seed in range(2) for number in range(len(FORMATS))]
    for seed, number in wanted:
        said = read(submit(model, FORMATS[number], seed))
        assert said == ALONE.setdefault((seed, number), said)
        assert said[1] == "length" or valid(FORMATS[number], said[0])
    assert sum(reason == "stop" for _, reason in ALONE.values()) >= len(wanted) - 3
    companions = [submit(model, None, seed) for seed in range(3)]
    together = {key: submit(model, FORMATS[key[1]], key[0]) for key in wanted}
    assert {key: read(generation) for key, generation in together.items()} == ALONE
    assert all(map(read, companions))


def test_python_requests_a_format(model: freedive.LanguageModel) -> None:
    text = "".join(model.chat(ASK, format=FORMATS[0], temperature=0, max_tokens=200))
    assert valid(FORMATS[0], text)
    pieces = list(model.complete("Is the sky blue? Answer:", format=Format("choice", [" yes", " no"]), temperature=0))
    assert "".join(pieces) in (" yes", " no")


def test_an_unsupported_format_is_refused_before_anything_is_computed(model: freedive.LanguageModel) -> None:
    before = model.engine.stats().num_requests
    for form, tools in ((Format("json_schema", {"not": {}}), ()), (None, [{"function": {"name": "f"}}])):
        with pytest.raises(UserError):
            model.chat(ASK, tools=tools, format=form)
    assert model.engine.stats().num_requests == before
