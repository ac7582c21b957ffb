"""How the chat page comes: languages, colours, phone, keyboard, screen reader, size, and the server away."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import httpx
import pytest
from browser import Page
from echo_model import EchoModel, serving
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

import freedive.server.page
from freedive.checkpoint.quantize import FORMATS
from freedive.server.conversations.records import Status
from freedive.server.models import State

FOLDER = Path(freedive.server.page.__file__).parent
MAX_BYTES = 200_000
WIDE = f"""| a | b |
|--|--:|
| 1 | 2 |

```
{"x" * 300}
```
{"y" * 300}

|{"head|" * 40}
|{"--|" * 40}
"""
UNNAMED = """
const controls = "button, input:not([type=file], [hidden]), select, textarea, a, dialog, summary";
return [...document.querySelectorAll(controls)].filter(
  (node) => !(node.textContent.trim() && node.tagName !== "TEXTAREA" && node.tagName !== "SELECT") &&
    !node.getAttribute("aria-label") && !node.getAttribute("aria-labelledby") && !node.labels?.length
).map((node) => node.outerHTML.slice(0, 100))
"""


def test_the_language_is_switched_and_remembered(page: Page) -> None:
    page.ask_and_wait("hi")
    page.find("#message").send_keys("unsent")
    page.find("#language").click()
    page.until(lambda: page.find("#new").text == "新对话")
    page.wait_until_ready()
    assert page.texts(".question") == ["hi"]
    assert page.find("#message").get_attribute("value") == "unsent"
    assert page.find(".of-answer .copy").get_attribute("title") == "复制"
    assert page.find("#message").get_attribute("placeholder") == "输入问题"
    page.reload()
    assert page.find("#new").text == "新对话"
    page.find("#language").click()
    page.until(lambda: page.find("#new").text == "New chat")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_everything_is_said_in_the_readers_language(page: Page, language: str) -> None:
    page.browser.add_cookie({"name": "lang", "value": language})
    page.reload()
    page.ask_and_wait("hi")
    page.find("#settings-open").click()
    texts = json.loads((FOLDER / "translations.json").read_text("utf-8"))
    assert page.find("#settings h2").text == texts[language]["settings"]
    assert page.texts(".parameter label")[0] == texts[language]["reasoning_effort"]
    assert texts[language]["speed"].partition("}")[2] in page.find(".meter").text
    if language == "zh":
        shown = page.browser.execute_script("return document.body.innerText")
        english = [text for text in texts["en"].values() if len(text) > 12 and text in shown]
        assert english == []


def test_both_languages_have_the_same_texts_with_the_same_values() -> None:
    texts = json.loads((FOLDER / "translations.json").read_text("utf-8"))
    english, chinese = texts["en"], texts["zh"]
    assert list(english) == list(chinese)
    for key in english:
        assert sorted(re.findall(r"{\w+}", english[key])) == sorted(re.findall(r"{\w+}", chinese[key])), key


def test_every_text_that_scripts_and_pages_use_exists_and_every_text_is_used() -> None:
    texts = json.loads((FOLDER / "translations.json").read_text("utf-8"))["en"]
    sources = [path.read_text("utf-8") for path in [*FOLDER.glob("*.html"), *FOLDER.glob("static/*.js")]]
    source = "\n".join(sources) + (FOLDER / "rendering.py").read_text("utf-8")
    asked = re.findall(r"""\bword\(\s*"(\w+)\"""", source) + re.findall(r"\bword\.(\w+)", source)
    assert set(asked) <= set(texts)
    source += " language ".join((*get_args(Status), *get_args(State), *FORMATS))
    chosen = (
        r"^(effort|state|part|format|download|quantize|finetune|sample)_|_does$"  # what stands before or after a name
    )
    names = {key: re.sub(chosen, "", key) for key in texts}
    assert [key for key, name in names.items() if not re.search(rf"\b{name}\b", source)] == []


def test_colours_follow_the_system_until_the_reader_chooses(page: Page) -> None:
    def background() -> str:
        return page.find("body").value_of_css_property("background-color")

    def system(scheme: str) -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    system("light")
    light = background()
    system("dark")
    dark = background()
    assert light != dark
    page.find("#theme").click()
    assert background() == light
    page.reload()
    assert background() == light
    page.find("#theme").click()
    system("light")
    assert background() == dark
    page.find("#theme").click()
    assert background() == light
    page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_page_fits_a_phone(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["wide"] = WIDE
    with page.phone():
        page.ask_and_wait("wide")
        script = "return [document.documentElement.scrollWidth, scroller.scrollWidth, scroller.clientWidth]"
        width, inner, visible = page.browser.execute_script(script)
        assert width == 360
        assert inner == visible
        assert not page.find("#sidebar").is_displayed()


def test_on_a_phone_the_side_bar_lies_over_the_page_and_closes_with_a_choice(page: Page) -> None:
    with page.phone():
        page.ask_and_wait("first")
        page.until(lambda: page.count("#list a") > 0)
        page.find("header .sidebar-toggle").click()
        page.until(lambda: page.find("#sidebar").is_displayed())
        page.until(lambda: page.browser.execute_script("return sidebar.getBoundingClientRect().left") == 0)
        page.find("#new").click()
        page.until(lambda: not page.find("#sidebar").is_displayed())
        assert page.find("#welcome").is_displayed()
        page.find("#settings-open").click()
        width = page.browser.execute_script("return [settings.scrollWidth, settings.clientWidth]")
        assert width[0] == width[1] <= 360


def test_the_keyboard_reaches_everything(page: Page) -> None:
    page.ask_and_wait("hi")
    page.press(Keys.CONTROL, "b")
    page.until(lambda: not page.find("#sidebar").is_displayed())
    page.reload()
    assert not page.find("#sidebar").is_displayed(), "it is remembered"
    page.press(Keys.CONTROL, "b")
    page.until(lambda: page.find("#sidebar").is_displayed())
    page.press(Keys.CONTROL, ",")
    page.until(lambda: page.find("#settings").is_displayed())
    page.press(Keys.ESCAPE)
    page.press(Keys.CONTROL, Keys.SHIFT, "o")
    page.until(lambda: page.find("#welcome").is_displayed())
    page.find("#message").send_keys("?")
    assert not page.find("#help").is_displayed(), "in a message it is a letter"
    page.browser.execute_script("document.activeElement.blur()")
    page.press("?")
    page.until(lambda: page.find("#help").is_displayed())
    assert page.count("#help-keys dt") >= 9
    assert "Search" in page.texts("#help-keys dd")


def test_every_control_has_a_name(page: Page) -> None:
    page.ask_and_wait("hi")
    page.drop("a.txt", "a")
    page.wait("#attached .close")
    page.wait("#list a")
    assert page.browser.execute_script(UNNAMED) == []
    assert page.texts("#status") or page.browser.execute_script("return status.textContent")


def test_the_end_of_an_answer_is_told_to_screen_readers(page: Page) -> None:
    page.ask_and_wait("hi")
    said = "return document.getElementById('status').textContent"
    assert page.browser.execute_script(said) == "The answer is complete"
    assert page.find("#thread").get_attribute("role") == "log"


def test_the_whole_page_is_below_200_kb(page: Page, live_server: str) -> None:
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    loaded = {url for url in page.browser.execute_script(script) if "/static/" in url} | {live_server}
    assert len(loaded) > 20
    assert sum(len(httpx.get(url).content) for url in loaded) < MAX_BYTES


def test_nothing_comes_from_elsewhere(page: Page, live_server: str) -> None:
    script = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert all(url.startswith(live_server) for url in page.browser.execute_script(script))
    policy = httpx.get(live_server).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_it_can_be_installed(page: Page, live_server: str) -> None:
    manifest = page.browser.execute_cdp_cmd("Page.getAppManifest", {})
    assert manifest["errors"] == []
    assert json.loads(manifest["data"])["start_url"] == "/"


def test_offline_it_says_that_the_server_is_away(browser: webdriver.Chrome) -> None:
    with serving(EchoModel(delay_s=0)) as url:
        page = Page(browser, url)
        browser.execute_async_script("navigator.serviceWorker.ready.then(arguments[0])")
        page.ask_and_wait("hi")
    page.find("#message").send_keys("more" + Keys.ENTER)
    page.until(lambda: page.find("#away").is_displayed())
    assert page.texts(".question") == ["hi"]
    assert page.find("#message").get_attribute("value") == "more", "what was not sent is not lost"
    browser.refresh()
    page.until(lambda: page.texts("h1")[:1] == ["The server is away"])
    kept = browser.execute_async_script(
        "caches.keys().then(async (names) => { const all = []; for (const name of names)"
        " for (const request of await (await caches.open(name)).keys()) all.push(new URL(request.url).pathname);"
        " arguments[0](all); })"
    )
    assert kept
    assert all(path.startswith("/static/") for path in kept)
    page.errors()
