"""Fixtures of all test folders."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from patience import PATIENCE_S

from freedive.hub.sources import resolve

# A test runner in the background ignores Ctrl-C, and the processes that tests start and interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


# A slow machine may take longer than the five seconds that httpx waits by itself.
DEFAULT_TIMEOUT_CONFIG.read = PATIENCE_S

LEFT_OUT = {
    "matrix": [
        "native/test_threads.py::test_threads_find_the_bytes_of_every_expert_in_any_memory",
        "ops/test_dense_as_mixture.py",
        "ops/test_parity.py::test_long_prompts_on_the_reference_equal_transformers",
        "test_bench.py::test_a_random_model_has_the_same_weights_in_every_form_and_none_of_them_leans",
    ],
    "clients": ["server/test_clients.py"],
    "faults": [
        "checkpoint/test_checkpoint_damage.py",
        "engine/test_page_store.py::test_a_writer_that_is_killed_leaves_nothing_damaged",
        "checkpoint/test_quantized.py::test_odd_values_in_a_configuration_are_survived",
        "server/test_answers_killed.py",
        "server/test_budget.py::test_requests_without_a_key_are_refused_before_their_body_is_read",
        "server/test_budget.py::test_no_body_delays_other_requests",
        "server/test_chaos.py",
        "server/test_conversations_killed.py",
        "server/test_faults.py",
        "server/test_mutated_requests.py",
        "server/test_openapi.py",
        "text/test_dialects_robust.py",
        "text/test_text_template.py::test_a_rendering_is_bounded_in_time_and_memory",
        "text/test_text_template.py::test_hostile_templates_end_soon_in_a_user_error",
    ],
    "training": [
        "train/test_distill.py",
        "train/test_experts.py::test_gradients_of_grouped_experts_are_the_slope",
        "train/test_finetune.py",
        "train/test_resume.py",
        "train/test_run.py",
    ],
}
"""Files and tests that `make test` leaves to `make test-all`, by marker.

A fixture marks the tests that use a browser.
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    root = Path(__file__).parent
    markers = {place: marker for marker, places in LEFT_OUT.items() for place in places}
    assert all((root / place.partition("::")[0]).exists() for place in markers)
    for item in items:
        file = item.path.relative_to(root).as_posix()
        for place in (file, f"{file}::{getattr(item, 'originalname', item.name)}"):
            if marker := markers.get(place):
                item.add_marker(marker)
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("browser")


@pytest.fixture(scope="session", autouse=True)
def pages_folder() -> Iterator[None]:
    """Keeps the pages of tests out of the user's cache."""
    with TemporaryDirectory(prefix="freedive-pages-", ignore_cleanup_errors=True) as folder:
        os.environ["FREEDIVE_PAGES"] = folder
        yield


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model, downloaded once into the user's cache: SmolLM2-135M-Instruct as GGUF Q4_1."""
    return resolve("smollm2")
