"""The page of statistics: charts and tables of the last minutes, for those who may manage the server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
from browser import Page
from echo_history import busy
from echo_model import EchoModel, serving
from selenium import webdriver
from selenium.webdriver.common.keys import Keys as Keyboard

from freedive.server import history, keys
from freedive.server.history import History
from freedive.server.keys import Keys

MAX_BYTES = 60_000
COUNT_REQUESTS = """
window.asked = 0;
const send = window.fetch;
window.fetch = (...all) => { window.asked += 1; return send(...all); };
"""
HIDE = """
Object.defineProperty(document, "hidden", { value: arguments[0], configurable: true });
document.dispatchEvent(new Event("visibilitychange"));
"""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "EVERY_S", 0.05)


@pytest.fixture
def stats(page: Page, live_server: str) -> Page:
    """The page of statistics of the chat page's server."""
    page.wait("#stats-open:not([hidden])")
    page.click("#stats-open")
    page.until(lambda: page.browser.current_url == f"{live_server}/stats")
    page.wait("#charts figure")
    return page


@contextmanager
def opened(browser: webdriver.Chrome, model: EchoModel) -> Iterator[Page]:
    """The page of statistics of a new server, without errors in the console."""
    with serving(model) as url:
        browser.get(f"{url}/docs")
        browser.delete_all_cookies()
        browser.get_log("browser")
        page = Page(browser, f"{url}/stats")
        yield page
        errors = page.errors()
        browser.get("about:blank")
    assert errors == []


def asked(page: Page) -> int:
    return int(page.browser.execute_script("return window.asked"))


def has_asked_more(page: Page, before: int) -> bool:
    return asked(page) > before


def value(page: Page, chart: str) -> str:
    """Returns the figures of the chart with this title."""
    script = """
    return [...document.querySelectorAll("#charts figure")]
      .find((figure) => figure.querySelector("h2").textContent === arguments[0])?.querySelector(".values").innerText
    """
    return str(page.browser.execute_script(script, chart))


def test_the_menu_of_the_chat_leads_to_the_statistics_and_back(stats: Page, live_server: str) -> None:
    assert stats.find("h1").text == "Statistics"
    assert stats.count("#charts figure") == 8
    stats.until(lambda: value(stats, "Requests").split() == ["0", "running", "0", "waiting"])
    assert stats.texts("#of-models tbody th") == ["echo"]
    stats.find("#chat").click()
    stats.until(lambda: stats.browser.current_url == f"{live_server}/")
    stats.wait("html.ready")


def test_an_answer_shows_in_charts_and_tables_also_after_a_reload(browser: webdriver.Chrome, quick: None) -> None:
    model = EchoModel(delay_s=0.001, script={"boom": "a\N{COLLISION SYMBOL}"})
    with opened(browser, model) as page:
        address = browser.current_url.replace("/stats", "/v1/completions")
        for prompt in ("word " * 40, "boom"):
            httpx.post(address, json={"model": "echo", "prompt": prompt})
        page.until(lambda: value(page, "Errors").split() == ["1", "failed", "0", "refused"])
        page.reload()
        page.until(lambda: value(page, "Errors").split() == ["1", "failed", "0", "refused"])
        labels = browser.execute_script(
            "return [...document.querySelectorAll('#charts svg')].map((one) => one.ariaLabel)"
        )
        assert len(labels) == 8
        assert labels[0].startswith("Tokens written: ")
        assert "at most 0/s" not in labels[0], "the text tells what the line shows"
        assert labels[3].startswith("Time to the first token: ")
        page.until(lambda: page.texts("#callers tbody td")[:1] == ["2"])
        assert page.texts("#callers tbody th") == ["without a key"]
        page.until(lambda: "ms" in page.texts("#latencies tbody tr:nth-child(2) td")[0])
        page.find("summary").click()
        page.until(lambda: page.texts("#minutes tbody tr:first-child td")[-2:] == ["1", "0"])
        assert page.count("#minutes tbody tr:first-child td") == page.count("#minutes thead th") - 1 == 11


def test_it_asks_only_while_it_is_in_view_and_not_paused(browser: webdriver.Chrome, quick: None) -> None:
    with opened(browser, EchoModel()) as page:
        browser.execute_script(COUNT_REQUESTS)
        page.until(lambda: asked(page) > 2)
        for stop, go_on in (
            (lambda: browser.execute_script(HIDE, True), lambda: browser.execute_script(HIDE, False)),
            (page.find("#pause").click, page.find("#pause").click),
        ):
            stop()
            browser.execute_async_script("setTimeout(arguments[0], 200)")
            before = asked(page)
            browser.execute_async_script("setTimeout(arguments[0], 400)")
            assert asked(page) == before
            go_on()
            page.until(partial(has_asked_more, page, before))


def test_what_stays_as_it_was_is_not_made_again(browser: webdriver.Chrome, quick: None) -> None:
    with opened(browser, EchoModel()) as page:
        browser.execute_script("document.querySelector('#of-models tbody tr').marked = true")
        browser.execute_script(COUNT_REQUESTS)
        page.until(lambda: asked(page) > 12)
        assert browser.execute_script("return document.querySelector('#of-models tbody tr').marked")


def test_it_goes_on_when_the_server_is_back(browser: webdriver.Chrome, quick: None) -> None:
    with opened(browser, EchoModel()) as page:
        lost = "window.online = window.fetch; window.fetch = () => Promise.reject(new TypeError('lost'))"
        browser.execute_script(lost)
        page.until(lambda: page.find("#away").is_displayed())
        browser.execute_script("window.fetch = window.online")
        page.until(lambda: not page.find("#away").is_displayed())
        browser.execute_script(COUNT_REQUESTS)
        page.until(lambda: asked(page) > 2)


def test_counters_that_begin_again_make_no_negative_speed(
    browser: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reloaded(self: History, number: int) -> dict[str, object]:
        whole = busy(self, 0)
        for sample in whole["samples"][150:]:
            for counters in sample["models"].values():
                counters["num_generated"] //= 1000
        return whole

    monkeypatch.setattr(History, "after", reloaded)
    with opened(browser, EchoModel("small")) as page:
        path = page.find("#charts .line-0").get_attribute("d") or ""
        heights = [float(place.split(",")[1]) for place in path[1:].split("L")]
        assert len(heights) == 299
        assert max(heights) <= 72


def test_when_the_server_begins_again_its_numbers_do_too(
    browser: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = [1.0]

    def begun(self: History, number: int) -> dict[str, object]:
        samples = busy(self, 0)["samples"][: 100 if starts[0] == 1.0 else 10]
        later = [sample for sample in samples if sample["number"] > number]
        return busy(self, 1000) | {"started_at": starts[0], "every_s": 0.05, "samples": later}

    monkeypatch.setattr(History, "after", begun)
    with opened(browser, EchoModel("small")) as page:

        def points() -> int:
            return len((page.find("#charts .line-0").get_attribute("d") or "").split("L"))

        page.until(lambda: points() == 99)
        starts[0] = 2.0
        page.until(lambda: points() == 9)


def test_a_key_without_the_right_to_manage_is_told_so_and_offered_no_link(
    browser: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    ann, boss = keys.create("ann"), keys.create("boss", may=["manage"])
    with serving(EchoModel(delay_s=0.0), keys=Keys()) as url:
        browser.get(f"{url}/health")
        for secret, sees in ((ann, False), (boss, True)):
            browser.delete_all_cookies()
            page = Page(browser, f"{url}/stats")
            page.wait("#gate[open]")
            page.find("#key").send_keys(secret, Keyboard.ENTER)
            page.wait("html.ready")
            assert page.find("#refused").is_displayed() is not sees
            assert page.find("#figures").is_displayed() is sees
            browser.get(url)
            page.wait("html.ready")
            assert page.find("#stats-open").is_displayed() is sees
        page.errors()


def test_it_fits_a_phone(stats: Page) -> None:
    with stats.phone():
        assert stats.browser.execute_script("return document.documentElement.scrollWidth") == 360
        buttons = [stats.find(f"#{id}").rect["y"] for id in ("chat", "pause", "language", "theme")]
        assert max(buttons) - min(buttons) < 2, "they stand in one line"


def test_language_and_colours_are_those_of_the_chat(stats: Page) -> None:
    stats.find("#language").click()
    stats.until(lambda: stats.find("h1").text == "统计")
    stats.find("#theme").click()
    assert stats.browser.execute_script("return document.documentElement.dataset.theme") == "light"
    stats.find("#chat").click()
    stats.wait("html[lang=zh][data-theme=light].ready #new")
    assert "统计" in (stats.find("#stats-open").get_attribute("aria-label") or "")


def test_it_is_small_and_comes_from_its_server_alone(stats: Page, live_server: str) -> None:
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    loaded = set(stats.browser.execute_script(script))
    assert all(url.startswith(live_server) for url in loaded)
    parts = {url for url in loaded if "/static/" in url} | {f"{live_server}/stats"}
    assert len(parts) > 10
    assert sum(len(httpx.get(url).content) for url in parts) < MAX_BYTES


def test_offline_the_page_says_that_the_server_is_away(browser: webdriver.Chrome) -> None:
    with serving(EchoModel()) as url:
        page = Page(browser, url)
        browser.execute_async_script("navigator.serviceWorker.ready.then(arguments[0])")
        page = Page(browser, f"{url}/stats")
        assert page.texts("h1") == ["Statistics"]
        page.find("#pause").click()
    browser.refresh()
    page.until(lambda: page.texts("h1")[:1] == ["The server is away"])
    browser.get("about:blank")
    page.errors()
