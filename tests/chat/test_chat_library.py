"""Models in the chat page: the dialog, the card, downloads, and two models side by side."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from browser import Page
from echo_library import GB, EchoLibrary, listed
from echo_model import EchoModel, serving
from selenium import webdriver
from selenium.webdriver.support.ui import Select

from freedive.server.library import routes

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture
def library() -> EchoLibrary:
    known = [
        listed("small", bytes_here=GB, removable=True),
        listed("new"),
        listed("half", partial_bytes=GB // 2),
        listed("sparse", fits=False, paged=True),
        listed("huge", fits=False),
        listed(EVIL, about=EVIL),
    ]
    return EchoLibrary({each["name"]: each for each in known})


@pytest.fixture
def models(
    browser: webdriver.Chrome, library: EchoLibrary, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Page, EchoModel, EchoModel]]:
    """The page of a server with two models."""
    monkeypatch.setattr(routes, "TICK_S", 0.02)
    small, large = EchoModel("small", delay_s=0), EchoModel("large", delay_s=0)
    with serving(small, large, library=library, fetch=library.fetch) as url:
        browser.get(f"{url}/health")
        browser.delete_all_cookies()
        browser.execute_script("localStorage.clear(); sessionStorage.clear()")
        page = Page(browser, url)
        yield page, small, large
        assert [complaint for complaint in page.errors() if "status of 4" not in complaint] == []
        browser.get("about:blank")


def row(name: str) -> str:
    return f'.model[aria-label="{name}"]'


def buttons(page: Page, name: str) -> list[str]:
    return page.texts(f"{row(name)} .buttons button")


def press(page: Page, name: str, button: str) -> None:
    """Clicks a button of a model, which may come a moment later."""

    def clicked() -> bool:
        for each in page.browser.find_elements("css selector", f"{row(name)} .buttons button"):
            if each.text == button and each.is_enabled():
                each.click()
                return True
        return False

    page.until(clicked)


def open_models(page: Page) -> None:
    page.find("#library-open").click()
    page.wait("#library[open] .model")


def test_models_stand_in_groups_with_what_can_be_done(models: tuple[Page, EchoModel, EchoModel]) -> None:
    page, *_ = models
    open_models(page)
    assert page.texts("#library-list > *:is(h3)") == [
        *["Ready to answer", "Being downloaded", "Fit into memory", "Leave experts on disk", "Need more memory"]
    ]
    assert buttons(page, "small") == ["Unload", "Quantise …"]
    assert buttons(page, "large") == ["Use", "Unload", "Quantise …"]
    assert buttons(page, "new") == ["Download"]
    assert buttons(page, "half") == ["Continue the download", "Discard"]
    assert EVIL in page.texts(".model strong")
    page.find("#library-search").send_keys("spar")
    page.until(lambda: page.texts(".model strong") == ["sparse"])
    page.find("#library-search").send_keys("nothing")
    page.until(lambda: page.find("#library-nothing").is_displayed())


def test_the_card_says_whether_a_model_fits_and_how_fast_it_is(models: tuple[Page, EchoModel, EchoModel]) -> None:
    page, *_ = models
    open_models(page)
    page.find(f"{row('new')} summary").click()
    page.wait(f"{row('new')} .verdict")
    text = page.find(f"{row('new')} .card-body").text
    for part in ("Runs with some experts on disk", "6.5–12 tokens/s", "1.5 s after 512 tokens", "50% in memory"):
        assert part in text
    for part in ("2.0 GB of 4.0 GB", "dense weights 1.0 GB", "20.0 MB", "Apache-2.0"):
        assert part.replace(".0 ", " ") in text


def test_a_download_shows_its_progress_is_paused_continued_and_used(
    models: tuple[Page, EchoModel, EchoModel], library: EchoLibrary
) -> None:
    page, *_ = models
    open_models(page)
    press(page, "new", "Download")
    page.until(lambda: "1 GB of 2 GB" in page.find(f"{row('new')} .work").text)
    assert page.find(f"{row('new')} progress").get_attribute("value") == str(GB)
    press(page, "new", "Pause")
    page.until(lambda: "Paused" in page.find(f"{row('new')} .work").text)
    page.reload()
    open_models(page)
    press(page, "new", "Continue the download")
    library.go.set()
    press(page, "new", "Use")
    page.until(lambda: not page.find("#library").is_displayed())
    assert page.find("#model").get_attribute("value") == "new"
    assert page.find("#library-open").get_attribute("data-state") == "asleep"
    assert page.ask_and_wait("hello") == "user: hello"
    page.until(lambda: page.find("#library-open").get_attribute("data-state") == "loaded")


def test_a_download_that_fails_says_why(models: tuple[Page, EchoModel, EchoModel], library: EchoLibrary) -> None:
    page, *_ = models
    library.fails = "The disk is full"
    library.go.set()
    open_models(page)
    press(page, "new", "Download")
    page.until(lambda: page.find(f"{row('new')} .wrong").text == "The disk is full. Check the network")
    page.until(lambda: "Continue the download" in buttons(page, "new"))


def test_a_model_is_unloaded_removed_and_quantised(
    models: tuple[Page, EchoModel, EchoModel], library: EchoLibrary
) -> None:
    page, *_ = models
    library.go.set()
    open_models(page)
    press(page, "small", "Quantise …")
    page.until(lambda: page.find("#menu").is_displayed())
    page.find("#menu .entry:last-child").click()
    page.wait(row("quantized:small-i8"))
    press(page, "small", "Unload")
    press(page, "small", "Remove")
    page.until(lambda: page.find("#confirm").is_displayed())
    assert "small is deleted" in page.find("#confirm-text").text
    page.find("#confirm [type=submit]").click()
    press(page, "small", "Download")
    page.wait(f"{row('small')} [data-state=asleep]")


def test_two_models_answer_side_by_side_and_one_goes_on(models: tuple[Page, EchoModel, EchoModel]) -> None:
    page, small, large = models
    small.script["hello"], large.script["hello"] = "from the small one", "from the large one"
    page.find("#beside").click()
    assert page.find("#model-beside").get_attribute("value") == "large"
    page.ask("hello")
    page.until(lambda: page.texts(".column .answer") == ["from the small one", "from the large one"])
    page.until(lambda: page.count(".column .meter") == 2)
    assert page.texts(".column h3") == ["small", "large"]
    page.reload()
    page.until(lambda: page.texts(".column .answer") == ["from the small one", "from the large one"])
    page.click(".column:first-child > button")
    page.until(lambda: page.texts(".answer") == ["from the small one"])
    assert page.texts(".branches span") == ["1/2"]
    page.find("#beside").click()
    assert page.ask_and_wait("and then?") != ""
    roles = [message["content"] for message in small.asked[-1]["messages"]]
    assert roles == ["hello", "from the small one", "and then?"]
    assert len(large.asked) == 1


def test_the_keyboard_and_a_phone_open_the_models(models: tuple[Page, EchoModel, EchoModel]) -> None:
    page, *_ = models
    page.press("\ue009", ".")
    page.wait("#library[open] .model")
    page.press("\ue00c")
    page.until(lambda: not page.find("#library").is_displayed())
    with page.phone():
        open_models(page)
        width = page.browser.execute_script("return document.querySelector('#library-list').scrollWidth")
        assert width <= 360
        page.press("\ue00c")
        Select(page.find("#model")).select_by_visible_text("large")
        assert page.browser.execute_script("return document.documentElement.scrollWidth") <= 360
