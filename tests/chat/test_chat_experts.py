"""The expert map of the chat page: it lives while an answer grows, costs nothing while it is closed, and shows text."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from browser import Page
from echo_model import EchoModel, serving
from patience import wait_until
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys

import freedive
from freedive.engine.watch import Watches

ATTACK = "<img src=x onerror=window.owned=1>\n"
LIT = """
const map = document.getElementById("expert-map");
const [layers, experts] = arguments;
const copy = Object.assign(document.createElement("canvas"), { width: map.width, height: map.height });
const pixels = copy.getContext("2d", { willReadFrequently: true });
pixels.drawImage(map, 0, 0);
const lit = [];
for (let layer = 0; layer < layers; layer++) for (let expert = 0; expert < experts; expert++) {
  const x = (expert + 0.5) * map.width / experts, y = (layer + 0.5) * map.height / layers;
  const [red, green, blue, alpha] = pixels.getImageData(x, y, 1, 1).data;
  if (alpha === 255) lit.push([layer, expert, red > blue]);
}
return lit;
"""


@pytest.fixture
def slow(page: Page, fake_model: EchoModel) -> Iterator[Page]:
    """A page whose answer grows until it is stopped."""
    fake_model.delay_s = 0.02
    fake_model.script["whale"] = ATTACK * 200
    yield page
    if page.find("#stop").is_displayed():
        page.find("#stop").click()
        page.wait_for_end()


def is_watched(model: EchoModel) -> bool:
    return bool(model.engine.generations[-1].watches)


def end(page: Page) -> None:
    """Waits until the answer has ended and the map shows all of it."""
    page.wait_for_end()
    page.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")


def hover(page: Page, number: int) -> None:
    ActionChains(page.browser).move_to_element(page.find(f".token:nth-child({number})")).perform()


def test_the_map_is_asked_for_only_while_it_is_open(slow: Page, fake_model: EchoModel) -> None:
    slow.ask("whale")
    slow.wait(".of-answer button.experts[aria-pressed=false]")
    slow.until(lambda: slow.find(".answer").text)
    assert not slow.find("#experts").is_displayed()
    assert not is_watched(fake_model)
    slow.find(".of-answer button.experts").click()
    slow.wait("#experts.begun .token:nth-child(5)")
    assert is_watched(fake_model)
    assert slow.find("button.experts").get_attribute("aria-pressed") == "true"
    slow.press(Keys.CONTROL, "e")
    slow.until(lambda: not is_watched(fake_model))
    assert not slow.find("#experts").is_displayed()
    seen = slow.count(".token")
    slow.press(Keys.CONTROL, "e")
    slow.until(lambda: slow.count(".token") > seen)
    slow.reload()
    assert slow.find("#experts").is_displayed(), "it is remembered"
    slow.wait("#experts.begun .token")
    slow.find("#stop").click()
    slow.until(lambda: not is_watched(fake_model))


def test_a_token_shows_its_experts_and_what_else_was_likely_as_text(slow: Page) -> None:
    slow.press(Keys.CONTROL, "e")
    assert "which experts" in slow.find("#experts-hint").text
    slow.ask("whale")
    slow.wait(".token:nth-child(40)")
    slow.find("#stop").click()
    end(slow)
    assert slow.find("#experts-figures").text.startswith("2 layers of 4 experts · the busiest has ")
    assert "read from disk" in slow.find("#experts-figures").text
    assert slow.find("#expert-map").get_attribute("aria-label") == slow.find("#experts-figures").text
    woken = set()
    for number in range(10, 14):
        hover(slow, number)
        lit = slow.browser.execute_script(LIT, 2, 4)
        first_layer = [(expert, from_disk) for layer, expert, from_disk in lit if layer == 0]
        assert (3, True) in first_layer, "the one from disk has the other colour"
        assert [place for place in lit if place[0] == 1] == [[1, 0, False], [1, 1, False]]
        woken |= {expert for expert, _ in first_layer}
        shown = slow.find(f".token:nth-child({number})").text
        assert slow.texts("#runners li span") == [shown, "<"]
        assert [text.split()[-2] for text in slow.texts("#runners li")] == ["78", "22"]
    assert woken == {0, 1, 2, 3}
    text = "".join(slow.texts(".token"))
    assert "<img" in text
    assert "↵" in text
    assert slow.count("#experts img") == 0
    assert slow.browser.execute_script("return window.owned ?? null") is None


def test_the_arrow_keys_move_between_tokens(slow: Page) -> None:
    slow.press(Keys.CONTROL, "e")
    slow.ask("whale")
    slow.wait(".token:nth-child(10)")
    slow.find("#stop").click()
    end(slow)
    assert slow.count(".token[tabindex='0']") == 1
    newest = slow.find(".token:last-child")
    slow.browser.execute_script("arguments[0].focus()", newest)
    slow.press(Keys.ARROW_LEFT)
    slow.press(Keys.ARROW_LEFT)
    assert slow.count(".token[aria-selected=true]") == 1
    assert slow.find(".token[aria-selected=true]").id == slow.find(".token:nth-last-child(3)").id
    slow.press(Keys.HOME)
    assert slow.find(".token:first-child").get_attribute("aria-selected") == "true"
    assert slow.find(".token:first-child").get_attribute("aria-label").endswith(" 78 %")
    slow.find("#message").click()
    assert slow.count(".token[aria-selected=true]") == 0


def test_a_new_answer_begins_anew_and_the_layers_are_a_table(slow: Page, fake_model: EchoModel) -> None:
    slow.press(Keys.CONTROL, "e")
    fake_model.script["short"] = "0123456789" * 3
    for _ in range(2):
        slow.ask("short")
        end(slow)
        slow.until(lambda: 0 < slow.count(".token") <= 30)
    slow.find("#experts summary").click()
    slow.until(lambda: slow.texts("#layers tr:last-child td") == ["2", "2 ×", "50 %", "0"])
    assert slow.count("#layers tr") == 2


def test_the_map_fits_a_phone_and_leaves_the_end_of_the_answer_in_view(slow: Page) -> None:
    with slow.phone():
        slow.ask("whale")
        slow.until(lambda: len(slow.find(".answer").text) > 100)
        slow.find("#message").click()
        slow.press(Keys.CONTROL, "e")
        slow.wait(".token:nth-child(20)")
        script = "return [document.documentElement.scrollWidth, experts.scrollWidth <= experts.clientWidth]"
        assert slow.browser.execute_script(script) == [360, True]
        gap = "return scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight"
        slow.until(lambda: slow.browser.execute_script(gap) < 80)


@pytest.fixture
def patient_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine waits after the first token of an answer until somebody watches it: nano is too fast otherwise."""
    is_watched, begun = Watches.__bool__, set[Watches]()

    def waits_first(watches: Watches) -> bool:
        if watches not in begun:
            begun.add(watches)
            wait_until(lambda: is_watched(watches))
        return is_watched(watches)

    monkeypatch.setattr(Watches, "__bool__", waits_first)


@pytest.mark.usefixtures("patient_engine")
def test_a_real_mixture_lights_its_experts_while_the_answer_streams(browser: webdriver.Chrome) -> None:
    with (
        freedive.load("nano", cache_tokens=4096) as model,
        serving(model) as url,
        httpx.Client(base_url=url) as http,
    ):
        settings = {"sampling": {"max_tokens": 40, "ignore_eos": True}}
        id = http.post("/app/conversations", json={"settings": settings}).json()["id"]
        browser.get(f"{url}/health")
        browser.delete_all_cookies()
        browser.add_cookie({"name": "experts", "value": "open"})
        page = Page(browser, f"{url}/#{id}")
        page.ask("Hello")
        end(page)
        assert page.find("#experts-figures").text.startswith("3 layers of 16 experts")
        assert "disk" not in page.find("#experts-figures").text
        hover(page, 1)
        lit = page.browser.execute_script(LIT, 3, 16)
        assert [sum(place[0] == layer for place in lit) for layer in range(3)] == [4, 4, 4]
        assert page.count("#runners li") == 5
        page.errors()
