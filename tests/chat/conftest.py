"""Fixtures of the chat page's tests: a browser, the echo model, and the page on a live server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Page, browser
from echo_model import EchoModel, fake_model, http, live_server
from selenium import webdriver

__all__ = ["browser", "fake_model", "http", "live_server"]


@pytest.fixture
def page(browser: webdriver.Chrome, live_server: str, fake_model: EchoModel) -> Iterator[Page]:
    """A new chat; at the end, no error may stand in the console but the refusals that a test caused."""
    fake_model.delay_s = 0.0
    fake_model.script.clear()
    fake_model.released.clear()
    fake_model.engine.generations.clear()
    browser.get(f"{live_server}/health")
    browser.delete_all_cookies()
    browser.execute_script("localStorage.clear(); sessionStorage.clear()")
    page = Page(browser, live_server)
    yield page
    assert [complaint for complaint in page.errors() if "status of 4" not in complaint] == []
