"""Sizes in settings, such as the memory budget."""

from __future__ import annotations

import pytest

from freedive.config import EngineConfig, ServerConfig, load
from freedive.errors import UserError


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("8GiB", 8 << 30),
        ("8G", 8 << 30),
        ("8 gib", 8 << 30),
        ("1.5G", 3 << 29),
        ("8000M", 8000 << 20),
        ("64k", 64 << 10),
        ("500MB", 500_000_000),
        ("2TB", 2 * 10**12),
    ],
)
def test_a_size_is_read_in_the_units_of_its_text(text: str, size: int) -> None:
    assert EngineConfig(memory=text).memory_bytes == size
    assert load(EngineConfig, environ={"FREEDIVE_MEMORY": text}).memory_bytes == size


@pytest.mark.parametrize("text", ["8", "GiB", "-8G", "8 apples", "8e3G", "1..5G", "8GiB\n9", "9" * 99 + "G", ""])
def test_a_text_without_a_size_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"memory is .*Write a size such as 8GiB") as caught:
        EngineConfig(memory=text)
    assert caught.value.param == "memory"


def test_answers_that_depend_on_a_cache_are_not_exact() -> None:
    with pytest.raises(UserError, match="so they are not exact") as caught:
        EngineConfig(precision="exact", prefer_cached_experts=0.5)
    assert caught.value.param == "prefer_cached_experts"
    for value in (-0.1, 1.5):
        with pytest.raises(UserError, match="prefer_cached_experts is"):
            EngineConfig(prefer_cached_experts=value)
    environ = {"FREEDIVE_PREFER_CACHED_EXPERTS": "0.5", "FREEDIVE_EXPERTS_PER_TOKEN": "3"}
    assert load(EngineConfig, environ=environ).lossy == {"experts_per_token": 3, "prefer_cached_experts": 0.5}
    assert EngineConfig().lossy == EngineConfig(precision="exact", prefer_cached_experts=0).lossy == {}


def test_the_budget_of_a_model_is_not_that_of_all() -> None:
    environ = {"FREEDIVE_MEMORY_GB": "3", "FREEDIVE_MEMORY": "2G"}
    assert load(ServerConfig, environ=environ).memory_gb == 3
    assert load(EngineConfig, environ=environ).memory_bytes == 2 << 30
    assert EngineConfig().memory_bytes is None
