"""Every route behaves as the OpenAPI description says, for valid and invalid requests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
import schemathesis
from echo_model import EchoModel, served
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from freedive.server.app import create_app

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]

DESCRIPTION = schemathesis.openapi.from_dict(create_app(served(EchoModel())).openapi())
OPERATIONS = [operation.ok() for operation in DESCRIPTION.get_all_operations()]
CASES = [
    pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
    for operation in OPERATIONS
    for mode in GenerationMode
    if mode.is_positive or operation.body or operation.query  # otherwise nothing can be invalid
]


MESSAGES = [{"role": "user", "content": "hi"}]
WORKING: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/chat/completions/render": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/responses/input_tokens": {"input": "hi"},
    "/v1/embeddings": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 9},
    "/v1/messages/count_tokens": {"messages": MESSAGES},
    "/api/chat": {"messages": MESSAGES},
    "/api/embed": {"input": "hi"},
    "/api/generate": {"prompt": "hi"},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [104, 105]},
}
"""Valid bodies without the model; no schema can express which fields depend on others."""


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture
def response_id(live_server: str, fake_model: EchoModel, session: requests.Session) -> str:
    """Returns the id of a stored response."""
    fake_model.delay_s = 0
    response = session.post(f"{live_server}/v1/responses", json={"model": "echo", "input": "hi"})
    return response.json()["id"]


def aim(case: Case[Any], mode: GenerationMode, response_id: str, choice: int) -> None:
    """Sets the names of an existing model and response, which are never generated; keeps an eighth of a valid body."""
    working = WORKING.get(case.operation.path)
    if working and mode.is_positive and isinstance(case.body, dict):
        kept = sorted(case.body.keys() - working.keys())[choice::8]
        case.body = working | {name: case.body[name] for name in kept} | {"model": "echo"}
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "echo"
    for name, value in (("name", "echo"), ("response_id", response_id)):
        if name in case.path_parameters:
            case.path_parameters[name] = value


Send = Callable[[Case[Any], int], None]


@pytest.fixture
def send(mode: GenerationMode, live_server: str, session: requests.Session, response_id: str) -> Send:
    def send(case: Case[Any], choice: int) -> None:
        if choice < 8:
            aim(case, mode, response_id, choice)
        if case.method == "POST" and not case.operation.body:
            case.headers["Content-Type"] = "application/json"  # pages of other origins cannot post this type
        case.call_and_validate(base_url=live_server, session=session, checks=CHECKS)

    return send


def probe(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, send: Send, num_examples: int) -> None:
    limits = settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    limits(given(operation.as_strategy(mode), st.integers(0, 9))(send))()


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_a_route_is_as_described(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, send: Send) -> None:
    probe(operation, mode, send, num_examples=6)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_a_route_is_as_described_with_many_examples(
    operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode, send: Send
) -> None:
    probe(operation, mode, send, num_examples=200)
