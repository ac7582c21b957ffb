"""Fine-tuning in the chat page: a dropped file, what it takes, the curve, the sample, trying, keeping and undoing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page
from echo_finetuning import EchoFinetuning
from echo_library import GB, EchoLibrary, listed
from echo_model import EchoModel, serving
from patience import PATIENCE_S
from selenium import webdriver

from freedive.commands.finetuning import LocalFinetuning
from freedive.commands.library import LocalLibrary
from freedive.server.finetunes import routes
from freedive.server.library import routes as library_routes

EVIL = "<img src=x onerror=alert(1)>"
LINES = "".join(json.dumps({"prompt": f"Say {n}", "completion": f"{n} fish"}) + "\n" for n in range(20))


@pytest.fixture(autouse=True)
def fast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    for module in (routes, library_routes):
        monkeypatch.setattr(module, "TICK_S", 0.02)


@pytest.fixture
def tuning() -> EchoFinetuning:
    return EchoFinetuning()


@pytest.fixture
def page(browser: webdriver.Chrome, tuning: EchoFinetuning) -> Iterator[Page]:
    """The page of a server whose fine-tuning is made up."""
    known = {name: listed(name, bytes_here=GB, removable=True) for name in ("small", "tuned:chats")}
    known["small"]["removable"] = False
    with serving(EchoModel("small", delay_s=0), library=EchoLibrary(known), finetuning=tuning) as url:
        yield from opened(browser, url)


def opened(browser: webdriver.Chrome, url: str) -> Iterator[Page]:
    browser.get(f"{url}/health")
    browser.delete_all_cookies()
    browser.execute_script("localStorage.clear(); sessionStorage.clear()")
    page = Page(browser, url)
    yield page
    assert [complaint for complaint in page.errors() if "status of 4" not in complaint] == []
    browser.get("about:blank")


def press(page: Page, place: str, text: str) -> None:
    """Clicks a button of this text, which may come a moment later."""

    def clicked() -> bool:
        for each in page.browser.find_elements("css selector", f"{place} button"):
            if each.text == text and each.is_displayed() and each.is_enabled():
                each.click()
                return True
        return False

    page.until(clicked)


def open_dialog(page: Page, name: str) -> None:
    page.find("#library-open").click()
    press(page, f'.model[aria-label="{name}"]', "Fine-tune …")
    page.wait("#finetune[open]")


def drop(page: Page, name: str, text: str) -> None:
    page.drop(name, text, "", "finetune-drop")


def shows(page: Page, selector: str, text: str, seconds: float = PATIENCE_S) -> None:
    page.until(lambda: text in page.find(selector).text, seconds)


@pytest.mark.browser
def test_a_file_is_dropped_learned_tried_and_undone(page: Page, tuning: EchoFinetuning) -> None:
    open_dialog(page, "small")
    assert not page.find("#finetune-form [type=submit]").is_enabled()
    drop(page, "chats.jsonl", LINES)
    shows(page, "#finetune-plan", "20, 3 of them only for measuring")
    assert "1 examples are cut" in page.find("#finetune-plan").text
    assert page.find("#finetune-name").get_attribute("value") == "chats"
    press(page, "#finetune-form", "Start")
    shows(page, "#finetune-work", "step 2 of 4")
    page.wait("#finetune-curve polyline.trained")
    shows(page, "#finetune-sample", "A model.")
    assert page.find("#finetune-curve svg").get_attribute("aria-label").startswith("Loss 2.5 → 2")
    page.reload()  # the run belongs to the server
    page.find("#library-open").click()
    shows(page, '.model[aria-label="small"] .work', "step 2 of 4")
    press(page, '.model[aria-label="small"]', "Show")
    shows(page, "#finetune-what", "tuned:chats: small with chats.jsonl")
    tuning.go.set()
    shows(page, "#finetune-sample", "A diver, of course.")
    press(page, "#finetune-buttons", "Try it")
    page.until(lambda: not page.find("#library").is_displayed())
    assert page.find("#model").get_attribute("value") == "tuned:chats"
    assert page.ask_and_wait("hello") == "user: hello"
    page.find("#library-open").click()
    shows(page, '.model[aria-label="tuned:chats"]', "small with chats.jsonl, ")
    press(page, '.model[aria-label="tuned:chats"]', "What it learned")
    press(page, "#finetune-buttons", "Undo")
    page.wait("#finetune-form:not([hidden])")
    page.until(
        lambda: [option.text for option in page.browser.find_elements("css selector", "#model option")] == ["small"]
    )


@pytest.mark.browser
def test_a_file_that_cannot_be_used_says_why(page: Page) -> None:
    open_dialog(page, "small")
    drop(page, "a.jsonl", "wrong")
    shows(page, "#finetune-wrong", "a.jsonl, line 7 is not JSON")
    assert not page.find("#finetune-form [type=submit]").is_enabled()
    drop(page, f"{EVIL}.jsonl", LINES)
    shows(page, "#finetune-plan", "440")
    assert page.find("#finetune-wrong").text == ""
    assert page.find("#finetune-chosen").text == f"{EVIL}.jsonl"
    assert page.count("#attached .chip") == 0  # it is not for the conversation


@pytest.mark.browser
def test_a_run_is_cancelled_and_a_failure_is_said(page: Page, tuning: EchoFinetuning) -> None:
    open_dialog(page, "small")
    drop(page, "a.jsonl", LINES)
    press(page, "#finetune-form", "Start")
    press(page, "#finetune-buttons", "Cancel")
    page.wait("#finetune-form:not([hidden])")
    tuning.fails = "The memory is too small"
    tuning.go.set()
    press(page, "#finetune-form", "Start")
    shows(page, "#finetune-failed", "The memory is too small. Choose a smaller model")
    press(page, "#finetune-buttons", "Back")
    page.wait("#finetune-form:not([hidden])")


@pytest.mark.browser
def test_without_torch_the_dialog_says_what_to_install(page: Page, tuning: EchoFinetuning) -> None:
    tuning.lacks = "Fine-tuning needs torch. Install it: pip install 'freedive[train]'"
    open_dialog(page, "small")
    shows(page, "#finetune-wrong", "pip install 'freedive[train]'")


@pytest.mark.browser
def test_the_dialog_fits_a_phone_and_is_closed_by_the_keyboard(page: Page) -> None:
    with page.phone():
        open_dialog(page, "small")
        drop(page, "a.jsonl", LINES)
        shows(page, "#finetune-plan", "440")
        width = page.browser.execute_script("return document.querySelector('#finetune .dialog-body').scrollWidth")
        assert width <= 360
        page.press("\ue00c")
        page.until(lambda: not page.find("#finetune").is_displayed())
        assert page.find("#library").is_displayed()


@pytest.mark.browser
@pytest.mark.training
def test_nano_learns_a_file_and_serves_what_it_learned(browser: webdriver.Chrome) -> None:
    """The whole way, with a real process; what the model then says does not matter."""
    library, tuning = LocalLibrary({}, 0), LocalFinetuning({}, 0)
    with serving(EchoModel("nano", delay_s=0), library=library, finetuning=tuning) as url:
        for page in opened(browser, url):
            open_dialog(page, "nano")
            page.find("#finetune summary").click()
            page.find("#finetune-epochs").send_keys("0.3")
            drop(page, "fish.jsonl", LINES)
            shows(page, "#finetune-plan", "about ")
            press(page, "#finetune-form", "Start")
            shows(page, "#finetune-sample", "After", seconds=10 * PATIENCE_S)
            press(page, "#finetune-buttons", "Try it")
            page.ask_and_wait("Say 7")
            assert page.find("#model").get_attribute("value") == "tuned:fish"
            page.find("#library-open").click()
            press(page, '.model[aria-label="tuned:fish"]', "What it learned")
            press(page, "#finetune-buttons", "Undo")
            page.wait("#finetune-form:not([hidden])")
    assert tuning.tuned() == []
