"""Fixtures shared by all rooms."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from freedive.hub.sources import resolve

# A runner may have been started with Ctrl-C ignored, as background jobs are; the processes that tests start and
# interrupt would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def pages_folder() -> Iterator[None]:
    """What tests ask stays out of the user's cache."""
    with TemporaryDirectory(prefix="freedive-pages-", ignore_cleanup_errors=True) as folder:
        os.environ["FREEDIVE_PAGES"] = folder
        yield


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real default model, fetched once into the user's cache: SmolLM2-135M-Instruct as GGUF Q4_1."""
    return resolve("smollm2")
