"""The chat page in a real headless browser."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page
from echo_model import EchoModel, serving
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys as Keyboard
from selenium.webdriver.support.ui import WebDriverWait

from freedive.config import ServerConfig
from freedive.server import keys
from freedive.server.keys import POLL_S, Keys

MARKDOWN = """A **bold** word.

```python
def answer():
    return 42
```

| a | b |
|--|--:|
| 1 | 2 |
"""
ATTACK = "<script>document.title='owned'</script> <img src=x onerror=\"document.title='owned'\"> `<b>`"


@pytest.fixture
def page(browser: webdriver.Chrome, live_server: str, fake_model: EchoModel) -> Iterator[Page]:
    fake_model.delay_s = 0.0
    fake_model.script.clear()
    fake_model.engine.generations.clear()
    browser.delete_all_cookies()
    page = Page(browser, live_server)
    yield page
    assert [complaint for complaint in page.errors() if "status of 4" not in complaint] == []


def test_an_answer_is_streamed(page: Page, fake_model: EchoModel) -> None:
    fake_model.delay_s = 0.02
    fake_model.script["ocean"] = "The ocean is deep and blue, and this answer takes its time."
    page.ask("Tell me of the ocean")
    page.wait(".answer .tail p")
    lengths: list[int] = []
    while not page.texts(".meter .copy"):
        lengths.append(len(page.find(".answer").text))
    assert len(set(lengths)) >= 4
    assert lengths == sorted(lengths)
    assert page.texts(".question") == ["Tell me of the ocean"]
    assert page.texts(".answer") == [fake_model.script["ocean"]]
    assert "tokens/s" in page.find(".meter").text
    assert "first token after 0.0" in page.find(".meter").text


def test_thoughts_are_folded_above_the_answer(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["two"] = "<think>\n1 < 2, so\nthree.\n</think>\n\nIt is **three**."
    page.ask("two and one")
    page.wait_for_end()
    assert page.texts(".thoughts summary") == ["Thoughts"]
    assert page.find(".answer").text == "Thoughts\nIt is three."
    page.find(".thoughts summary").click()
    assert page.texts(".thoughts div") == ["1 < 2, so\nthree."]


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_second_answer_on_the_server_too(page: Page, fake_model: EchoModel, how: str) -> None:
    page.ask("first")
    page.wait_for_end()
    fake_model.delay_s = 0.01
    fake_model.script["second"] = "word " * 2000
    page.ask("second")
    WebDriverWait(page.browser, 10, 0.02).until(lambda _: page.texts(".answer")[1].startswith("word word"))
    if how == "button":
        page.find("#stop").click()
    else:
        page.find("#message").send_keys(Keyboard.ESCAPE)
    assert fake_model.engine.generations[1].cancelled.wait(5)
    page.wait(".turn:nth-child(2) .notice")
    assert page.texts(".notice") == ["Stopped"]
    assert page.find("#send").is_displayed()
    stopped = page.texts(".answer")[1]
    assert stopped.startswith("word word")
    fake_model.script.clear()
    page.ask("third")
    page.wait(".turn:nth-child(3) .meter .copy")
    assert f"assistant: {stopped}"[:30] in page.texts(".answer")[2]


def test_the_model_gets_the_whole_conversation_until_a_new_chat(page: Page) -> None:
    page.ask("one")
    page.wait_for_end()
    page.ask("two")
    page.wait(".turn:nth-child(2) .meter .copy")
    assert page.texts(".answer")[1].replace("\n", " ") == "user: one assistant: user: one user: two"
    page.find("#new").click()
    assert page.texts(".turn") == []
    assert page.find("#welcome").is_displayed()
    page.ask("three")
    page.wait_for_end()
    assert page.texts(".answer") == ["user: three"]


def test_markdown_and_code_are_rendered_and_highlighted(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["show"] = MARKDOWN
    page.ask("show")
    page.wait_for_end()
    assert page.texts(".answer strong") == ["bold"]
    keyword, name = page.find(".code .k"), page.find(".code .nf")
    assert (keyword.text, name.text) == ("def", "answer")
    assert keyword.value_of_css_property("color") != name.value_of_css_property("color")
    assert page.find("td.right").value_of_css_property("text-align") == "right"
    page.find(".code .copy").click()
    WebDriverWait(page.browser, 5).until(lambda _: page.find(".code .copy").text == "Copied")


def test_html_from_the_model_and_the_reader_is_text(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["attack"] = ATTACK
    page.ask(f"attack {ATTACK}")
    page.wait_for_end()
    assert "<script>" in page.find(".question").text
    assert "<img src=x onerror=" in page.find(".answer").text
    assert not page.browser.find_elements(By.CSS_SELECTOR, "#conversation :is(script, img, b)")
    assert page.browser.title == "freedive"


def test_shift_enter_breaks_the_line_and_enter_sends(page: Page) -> None:
    page.find("#message").send_keys("a", Keyboard.SHIFT + Keyboard.ENTER, Keyboard.NULL, "b", Keyboard.ENTER)
    page.wait_for_end()
    assert page.texts(".question") == ["a\nb"]


def test_an_error_is_shown_in_the_conversation_but_not_sent_again(page: Page) -> None:
    page.ask("overload")
    assert page.wait(".notice.error").text == "The engine has 9 requests already. Try again later"
    page.ask("again")
    page.wait_for_end()
    assert page.texts(".answer")[-1] == "user: again"


def test_the_language_is_switched_and_remembered(page: Page) -> None:
    page.ask("hi")
    page.wait_for_end()
    page.find("#language").click()
    assert page.find("#new").text == "新对话"
    assert page.find(".meter .copy").text == "复制"
    assert page.texts(".question") == ["hi"]
    page.browser.refresh()
    page.wait("#message:focus")
    assert page.find("h1").text == "想聊些什么？"
    assert page.find("#message").get_attribute("placeholder") == "输入问题"


def test_the_page_fits_a_phone(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["wide"] = f"{MARKDOWN}\n```\n{'x' * 300}\n```\n{'y' * 300}\n\n|{'head|' * 40}\n|{'--|' * 40}\n"
    size = {"width": 360, "height": 640, "deviceScaleFactor": 1, "mobile": True}
    page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.ask("wide")
        page.wait_for_end()
        script = "return [document.documentElement.scrollWidth, scroller.scrollWidth, scroller.clientWidth]"
        width, inner, visible = page.browser.execute_script(script)
        assert width == 360
        assert inner == visible
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_where_keys_are_needed_the_page_asks_for_one_and_keeps_it(
    browser: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    secret = keys.create("ann")
    with serving(EchoModel(delay_s=0.0), keys=Keys()) as url:
        page = Page(browser, url)
        assert page.find("#gate").is_displayed()
        assert page.texts("#model option") == [], "what is served is for those who have a key"
        page.find("#key").send_keys("fd-wrong", Keyboard.ENTER)
        assert not page.find("#gate").is_displayed()
        page.ask("hi")
        WebDriverWait(browser, 10, 0.02).until(lambda _: page.find("#wrong").is_displayed())
        page.find("#key").send_keys(secret, Keyboard.ENTER)
        page.wait_for_end()
        assert page.texts(".answer") == ["user: hi"]
        assert page.texts("#model option") == ["echo"]
        browser.refresh()
        page.wait("#message:focus")
        assert not page.find("#gate").is_displayed()
        page.wait("#model option")
        page.ask("again")
        page.wait_for_end()
        keys.revoke("ann")
        time.sleep(POLL_S)
        page.ask("once more")
        WebDriverWait(browser, 10, 0.02).until(lambda _: page.find("#gate").is_displayed())
        page.find("#stop").click()
        assert page.wait(".turn:nth-child(2) .notice").text == "Stopped"
        assert not page.find("#gate").is_displayed()
        page.errors()


ASK = """
const [url, key, done] = arguments;
const headers = { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
const body = JSON.stringify({ model: "echo", prompt: "hi" });
fetch(`${url}/v1/completions`, { method: "POST", headers, body })
  .then(async (answer) => done([answer.status, answer.headers.get("x-request-id"), await answer.text()]))
  .catch((error) => done([0, "", String(error)]));
"""


@pytest.mark.parametrize("locked", [False, True])
def test_a_page_from_elsewhere_asks_and_reads_where_its_origin_is_allowed(
    browser: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, locked: bool
) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    secret = keys.create("ann") if locked else ""
    with serving(EchoModel(delay_s=0.0)) as page:
        elsewhere = page.replace("127.0.0.1", "localhost")
        for origins, status in ((elsewhere,), 200), ((), 0):
            with serving(EchoModel(), config=ServerConfig(origins=origins), keys=Keys() if locked else None) as url:
                browser.get(f"{elsewhere}/docs")
                browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": True})
                browser.get(f"{elsewhere}/docs")
                got, request_id, text = browser.execute_async_script(ASK, url, secret)
                assert got == status, text
                assert bool(request_id) == bool(status)
                if locked and status:
                    assert browser.execute_async_script(ASK, url, "")[0] == 401
    browser.execute_cdp_cmd("Page.setBypassCSP", {"enabled": False})
