"""Invalid values are refused by name, with a remedy."""

from __future__ import annotations

import math

import pytest

from freedive.config import EngineConfig, ServerConfig, load
from freedive.engine.sampling import Sampling
from freedive.errors import UserError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -2),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -2),
        ("top_p", 1.01),
        ("top_p", -0.01),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", math.inf),
        ("frequency_penalty", -101),
        ("seed", 2**64),
        ("logprobs", 21),
        ("logprobs", -1),
        ("logit_bias", {3: 101}),
        ("logit_bias", {3: math.nan}),
        ("stop", ("x" * 1000,) * 9),
        ("stop", ("x" * 1025,)),
        ("stop", ("x",) * 65),
    ],
)
def test_impossible_sampling_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UserError) as caught:
        Sampling(**{name: value})
    assert caught.value.param == name
    assert name in caught.value.what
    assert caught.value.remedy


def test_settings_come_from_arguments_then_the_environment_then_defaults() -> None:
    environ = {"FREEDIVE_MAX_BATCH": "4", "FREEDIVE_THREADS": "3", "FREEDIVE_MAX_QUEUE": "", "FREEDIVE_HOST": "::1"}
    config = load(EngineConfig, {"threads": 2, "max_context": None}, environ)
    assert config == EngineConfig(threads=2, max_batch=4)
    assert load(ServerConfig, environ=environ) == ServerConfig(host="::1")


@pytest.mark.parametrize(
    ("name", "value"), [("max_batch", 0), ("threads", 0), ("max_context", 1), ("cache_tokens", 31)]
)
def test_impossible_settings_are_refused_by_name(name: str, value: int) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}.*at least|{name} is {value}.*from"):
        EngineConfig(**{name: value})
    with pytest.raises(UserError, match="FREEDIVE_PORT is 'eighty'"):
        load(ServerConfig, environ={"FREEDIVE_PORT": "eighty"})


def test_every_setting_is_described() -> None:
    for kind in (EngineConfig, ServerConfig):
        assert all(field.metadata["help"] for field in kind.__dataclass_fields__.values())
