"""axe-core finds no serious problem of accessibility in any state of the chat page."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from browser import Page
from page_states import LOOKS, STATES, looking, staged
from selenium import webdriver

from freedive.server import keys
from freedive.server.finetunes import routes
from freedive.server.library import routes as library_routes

AXE = Path(sys.prefix) / "clients" / "node_modules" / "axe-core" / "axe.min.js"
FIND = """
const done = arguments[0];
document.getAnimations().forEach((animation) => animation.finish?.());
axe.run(document, { resultTypes: ["violations"] }).then(({ violations }) => done(violations.flatMap(
  ({ impact, id, help, nodes }) => nodes.map(({ html, any, all, none }) =>
    [impact, id, help, html.slice(0, 200), [...any, ...all, ...none].map(({ message }) => message).join("; ")]))
), (error) => done([["critical", "axe", String(error), "", ""]]));
"""
SERIOUS = ("serious", "critical")
EXAMINED = {"en": LOOKS, "zh": LOOKS[:1]}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    for module in (routes, library_routes):
        monkeypatch.setattr(module, "TICK_S", 0.02)


def problems(page: Page) -> list[list[Any]]:
    """Returns impact, rule, what it says, node and reason of all that axe-core finds."""
    found: list[list[Any]] = page.browser.execute_async_script(FIND)
    return found


@pytest.mark.parametrize(("state", "language"), [*product(STATES, EXAMINED)])
def test_axe_finds_no_serious_problem(browser: webdriver.Chrome, state: str, language: str) -> None:
    assert AXE.exists(), "axe-core is not installed: run `make test-all`"
    locked = state == "gate"
    if locked:
        keys.create("ann")
    serious = []
    with staged(browser, language, keys.Keys() if locked else None) as stage:
        STATES[state](stage)
        browser.execute_script(AXE.read_text("utf-8"))
        for scheme, device in EXAMINED[language]:
            with looking(stage.page, scheme, device):
                found = problems(stage.page)
                serious += [(scheme, device, *each) for each in found if each[0] in SERIOUS]
        stage.page.errors()
    assert serious == [], f"{state} in {language}"
