"""Every route does what the OpenAPI description says, whatever is sent, be it according to the description or not."""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    if mode.is_positive or operation.body or operation.query  # else there is nothing to get wrong
]


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


@pytest.fixture
def response_id(live_server: str, fake_model: EchoModel, session: requests.Session) -> str:
    """Of a stored response."""
    fake_model.delay_s = 0
    response = session.post(f"{live_server}/v1/responses", json={"model": "echo", "input": "hi"})
    return response.json()["id"]


def aim(case: Case, response_id: str) -> None:
    """At what is there: no generated name ever would."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "echo"
    for name, value in (("name", "echo"), ("response_id", response_id)):
        if name in case.path_parameters:
            case.path_parameters[name] = value


def probe(operation: APIOperation, mode: GenerationMode, send: Callable[[Case, bool], None], num_examples: int) -> None:
    """``send`` is given generated requests, most of which should be aimed."""
    cases = operation.as_strategy(mode)
    checks = list(HealthCheck)
    limits = settings(
        max_examples=num_examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=checks,
    )
    limits(given(cases, st.integers(0, 7).map(bool))(send))()


@pytest.fixture
def send(live_server: str, session: requests.Session, response_id: str) -> Callable[[Case, bool], None]:
    def send(case: Case, aimed: bool) -> None:
        if aimed:
            aim(case, response_id)
        case.call_and_validate(base_url=live_server, session=session, checks=CHECKS)

    return send


@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_a_route_is_as_described(
    operation: APIOperation, mode: GenerationMode, send: Callable[[Case, bool], None]
) -> None:
    probe(operation, mode, send, num_examples=10)


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "mode"), CASES)
def test_a_route_is_as_described_at_length(
    operation: APIOperation, mode: GenerationMode, send: Callable[[Case, bool], None]
) -> None:
    probe(operation, mode, send, num_examples=2000)
