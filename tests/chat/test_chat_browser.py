"""Answers in the chat page, in a real headless browser; who may use it; and pages of other origins."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from browser import Page
from echo_model import HELD, EchoModel, serving
from patience import PATIENCE_S
from selenium import webdriver
from selenium.webdriver.common.keys import Keys as Keyboard

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


def test_an_answer_is_streamed(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["ocean"] = f"The ocean is deep{HELD} and blue, and this answer takes its time."
    begun = time.monotonic()
    page.ask("Tell me of the ocean")
    page.until(lambda: page.texts(".answer") == ["The ocean is deep"])
    seconds = time.monotonic() - begun
    assert page.count(".answer .tail p") == page.count("[aria-busy]") == 1
    fake_model.released.set()
    page.wait_for_end()
    assert page.texts(".question") == ["Tell me of the ocean"]
    assert page.texts(".answer") == ["The ocean is deep and blue, and this answer takes its time."]
    meter = page.find(".meter").text
    assert "tokens/s" in meter
    assert float(re.search(r"first token after ([\d.]+) s", meter)[1]) < seconds
    assert "of 4,096 tokens of context" in meter
    page.reload()
    assert page.find(".meter").text == meter, "the figures are kept with the answer"


def test_thoughts_are_folded_above_the_answer(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["two"] = "<think>\n1 < 2, so\nthree.\n</think>\n\nIt is **three**."
    page.ask("two and one")
    page.wait_for_end()
    assert page.texts(".thoughts summary") == ["Thoughts"]
    assert page.find(".answer").text == "It is three."
    page.find(".thoughts summary").click()
    assert page.texts(".thoughts div") == ["1 < 2, so\nthree."]
    page.reload()
    page.find(".thoughts summary").click()
    assert page.texts(".thoughts div") == ["1 < 2, so\nthree."]


def test_while_it_thinks_a_timer_runs_and_the_answer_can_be_asked_for(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["puzzle"] = f"<think>\nhm, {HELD}so\n</think>\n\nDone."
    page.ask("puzzle")
    page.until(lambda: re.fullmatch(r"Thinking for \d+ s", page.texts(".thoughts summary")[0]))
    page.find(".hurry").click()
    page.until(lambda: fake_model.engine.generations[-1].is_hurried)
    assert not page.find(".hurry").is_enabled()
    page.find("#stop").click()
    page.wait_for_end()


@pytest.mark.parametrize("how", ["button", "escape"])
def test_stop_ends_the_second_answer_on_the_server_too(page: Page, fake_model: EchoModel, how: str) -> None:
    page.ask_and_wait("first")
    fake_model.delay_s = 0.01
    fake_model.script["second"] = "word " * 2000
    page.ask("second")
    page.until(lambda: page.texts(".answer")[1].startswith("word word"))
    if how == "button":
        page.find("#stop").click()
    else:
        page.find("#message").send_keys(Keyboard.ESCAPE)
    assert fake_model.engine.generations[1].cancelled.wait(PATIENCE_S)
    page.until(lambda: page.texts(".notice") == ["Stopped"])
    assert page.find("#send").is_displayed()
    stopped = page.texts(".answer")[1]
    fake_model.script.clear()
    fake_model.delay_s = 0.0
    assert f"assistant: {stopped}"[:30] in page.ask_and_wait("third")


def test_the_model_gets_the_whole_conversation_until_a_new_chat(page: Page) -> None:
    page.ask_and_wait("one")
    assert page.ask_and_wait("two").replace("\n", " ") == "user: one assistant: user: one user: two"
    page.find("#new").click()
    page.until(lambda: page.count(".message") == 0)
    assert page.find("#welcome").is_displayed()
    assert page.ask_and_wait("three") == "user: three"


def test_markdown_and_code_are_rendered_and_highlighted(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["show"] = MARKDOWN
    page.ask_and_wait("show")
    for _ in range(2):
        assert page.texts(".answer strong") == ["bold"]
        keyword, name = page.find(".code .k"), page.find(".code .nf")
        assert (keyword.text, name.text) == ("def", "answer")
        assert keyword.value_of_css_property("color") != name.value_of_css_property("color")
        assert page.find("td.right").value_of_css_property("text-align") == "right"
        page.reload()
    page.find(".code .copy").click()
    page.until(lambda: page.find(".code .copy").text == "Copied")
    page.click(".of-answer .actions .copy")
    page.until(lambda: "done" in (page.find(".of-answer .actions .copy").get_attribute("class") or ""))


def test_html_from_the_model_and_the_reader_is_text(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["attack"] = ATTACK
    page.ask_and_wait(f"attack {ATTACK}")
    assert "<script>" in page.find(".question").text
    assert "<img src=x onerror=" in page.find(".answer").text
    assert page.count("#thread :is(script, img, b)") == 0
    page.until(lambda: page.browser.title.startswith("attack <script>"))


def test_shift_enter_breaks_the_line_and_enter_sends(page: Page) -> None:
    page.find("#message").send_keys("a", Keyboard.SHIFT + Keyboard.ENTER, Keyboard.NULL, "b", Keyboard.ENTER)
    page.wait_for_end()
    assert page.texts(".question") == ["a\nb"]


def test_an_error_is_shown_in_the_conversation_and_the_question_can_be_asked_again(page: Page) -> None:
    page.ask("overload")
    page.until(lambda: page.texts(".notice.error") == ["The engine has 9 requests already. Try again later"])
    assert page.find("#send").is_displayed()
    assert page.ask_and_wait("again") == "user: again"


def test_a_fault_in_the_middle_keeps_what_had_arrived(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["boom"] = "All is well\N{COLLISION SYMBOL}"
    page.ask("boom")
    page.wait(".notice.error")
    page.until(lambda: page.texts(".answer") == ["All is well"])
    page.reload()
    assert page.texts(".answer") == ["All is well"]
    assert page.count(".notice.error") == 1


def test_a_reader_who_scrolled_up_is_left_alone(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["long"] = "line\n\n" * 75 + HELD + "line\n\n" * 75
    page.ask("long")
    page.until(lambda: page.count(".answer p") == 75)
    script = "return [scroller.scrollTop, scroller.scrollHeight - scroller.clientHeight]"
    top, most = page.browser.execute_script(script)
    assert top > most - 100 > 200, "the end is followed"
    page.browser.execute_script("scroller.scrollTop = 10")
    fake_model.released.set()
    page.wait_for_end()
    assert page.browser.execute_script(script)[0] == 10


def test_a_long_answer_never_blocks_the_page(page: Page, fake_model: EchoModel) -> None:
    fake_model.max_context = 1 << 16
    fake_model.script["long"] = "A **word** and `code`.\n\n" * 800
    watch = (
        "window.added = 0; new MutationObserver((list) => { for (const { addedNodes } of list)"
        " for (const node of addedNodes) added += 1 + (node.querySelectorAll?.('*').length ?? 0); })"
        ".observe(document.getElementById('thread'), { childList: true, subtree: true })"
    )
    page.browser.execute_script(watch)
    page.ask("long")
    page.wait_for_end()
    fake_model.max_context = 4096
    assert len(page.texts(".answer p")) == 800
    added = page.browser.execute_script("return added")
    all = page.browser.execute_script("return document.querySelectorAll('.answer *').length")
    assert all < added < 20 * all, "settled blocks are not made again"


def test_where_keys_are_needed_the_page_asks_for_one_and_scripts_cannot_read_it(
    browser: webdriver.Chrome, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    secret = keys.create("ann")
    with serving(EchoModel(delay_s=0.0), keys=Keys()) as url:
        browser.get(f"{url}/health")
        browser.delete_all_cookies()
        page = Page(browser, url)
        assert page.wait("#gate[open]").is_displayed()
        assert page.texts("#model option") == [], "what is served is for those who have a key"
        page.find("#key").send_keys("fd-wrong", Keyboard.ENTER)
        page.until(lambda: page.find("#wrong").is_displayed())
        page.find("#key").clear()
        page.find("#key").send_keys(secret, Keyboard.ENTER)
        page.wait("html.ready")
        assert not page.find("#gate").is_displayed()
        assert page.ask_and_wait("hi") == "user: hi"
        assert page.texts("#model option") == ["echo"]
        kept = browser.execute_script("return document.cookie + JSON.stringify({ ...localStorage, ...sessionStorage })")
        assert secret not in kept
        page.reload()
        assert not page.find("#gate").is_displayed()
        page.ask_and_wait("again")
        keys.revoke("ann")
        time.sleep(POLL_S)
        page.ask("once more")
        page.until(lambda: page.find("#gate").is_displayed())
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
