"""Hostile texts in the chat page: whatever comes from models, readers, files and imports is shown as text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
from browser import Page
from echo_model import EchoModel
from selenium.webdriver.common.keys import Keys

ROOT = "/app/conversations"
DO = "window.owned=1"
PAYLOADS = [
    f"<script>{DO}</script>",
    f"<img src=x onerror={DO}>",
    f"<svg onload={DO}>",
    f"<svg><script>{DO}</script></svg>",
    f"<body onload={DO}>",
    "<iframe srcdoc='<script>parent.owned=1</script>'></iframe>",
    "<iframe src=javascript:parent.owned=1></iframe>",
    f"<a href=javascript:{DO}>click</a>",
    f"[click](javascript:{DO})",
    f"[click](JaVaScRiPt:{DO})",
    f"[click](java\tscript:{DO})",
    f"[click](&#106;avascript:{DO})",
    f"[click](data:text/html,<script>{DO}</script>)",
    f"[click](vbscript:{DO})",
    f"<javascript:{DO}>",
    f"![x](javascript:{DO})",
    f'![x" onerror="{DO}](x)',
    f'[x](/ "a" onmouseover="{DO}")',
    f"<details open ontoggle={DO}>",
    f"<input autofocus onfocus={DO}>",
    f"<video><source onerror={DO}></video>",
    f"<math><mtext><img src=x onerror={DO}></mtext></math>",
    f"<style>@import 'javascript:{DO}';</style>",
    f"<link rel=stylesheet href=javascript:{DO}>",
    f"<meta http-equiv=refresh content='0;url=javascript:{DO}'>",
    "<base href=//evil.example/>",
    f"<form action=javascript:{DO}><button>go</button></form>",
    f"<object data=javascript:{DO}></object>",
    f"<embed src=javascript:{DO}>",
    f"<template><script>{DO}</script></template>",
    f"<textarea></textarea><script>{DO}</script>",
    f"</textarea><img src=x onerror={DO}>",
    f"</title><script>{DO}</script>",
    f"</script><script>{DO}</script>",
    f"<!--><img src=x onerror={DO}>-->",
    f'"><img src=x onerror={DO}>',
    f"' onmouseover='{DO}",
    f"```html\n<script>{DO}</script>\n```",
    f'```"><img src=x onerror={DO}>\ncode\n```',
    f"`<img src=x onerror={DO}>`",
    f"| <img src=x onerror={DO}> |\n|--|\n| <script>{DO}</script> |",
    f"&lt;img src=x onerror={DO}&gt;",
    f"${{{DO}}} {{{{{DO}}}}}",
    f"$\\href{{javascript:{DO}}}{{x}}$",
    f"<p style='position:fixed;inset:0' onclick={DO}>",
    "\u202e<txt.exe> \u0000\u2028\u2029",
]
HOSTILE = """
const nodes = [...document.querySelectorAll("*")];
return [window.owned ?? null, document.querySelectorAll(
  `:is(#thread, #list, #toasts, #search, #file, #title, #attached, #settings) :is(script, img, iframe, style, link,
   object, embed, form:not(#settings-form), video, template, base, meta)`).length,
  [...document.querySelectorAll("a")].filter((a) => !/^(https?|mailto|blob):/.test(a.href)).map((a) => a.href),
  nodes.filter((node) => node.getAttributeNames().some((name) => /^on/.test(name))).length]
"""


@pytest.fixture(autouse=True)
def unharmed(page: Page) -> Iterator[None]:
    yield
    check(page)


def check(page: Page) -> None:
    """Nothing hostile runs or stands in the page."""
    assert page.browser.execute_script(HOSTILE) == [None, 0, [], 0]
    assert not [line for line in page.errors() if "Content Security Policy" in line], "it got as far as the policy"


def text_of(page: Page, selector: str) -> list[str]:
    script = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
    texts: list[str] = page.browser.execute_script(script, selector)
    return texts


def is_shown(page: Page, id: str, question: str) -> bool:
    """Whether the conversation is open and its question and answer stand there."""
    there = text_of(page, ".question") == [question] and text_of(page, ".of-answer") != []
    return there and id in page.browser.current_url


def test_there_are_payloads_enough() -> None:
    assert len(set(PAYLOADS)) >= 45


def test_in_titles_questions_answers_thoughts_and_file_names(page: Page, http: httpx.Client) -> None:
    conversations = [
        {
            "freedive": 1,
            "title": payload[:300],
            "folder": payload[:300] if index % 5 == 0 else "",
            "files": [{"name": payload[:300], "text": payload}],
            "messages": [
                {"role": "user", "content": payload, "files": [0]},
                {"role": "assistant", "content": payload, "reasoning": payload, "parent": 0, "model": payload},
            ],
            "leaf": 1,
        }
        for index, payload in enumerate(PAYLOADS)
    ]
    response = http.post(f"{ROOT}/import", json={"text": json.dumps(conversations)})
    assert response.status_code == 200, response.text
    page.reload()
    for each, payload in zip(response.json()["conversations"], PAYLOADS, strict=True):
        page.browser.execute_script("location.hash = arguments[0]", each["id"])
        page.until(partial(is_shown, page, each["id"], payload))
        assert text_of(page, ".of-question .chip .name") == [payload]
        assert text_of(page, ".thoughts div") == [payload]
        assert text_of(page, "#title") == [payload]
        check(page)
    links = page.browser.find_elements("css selector", ".answer a")
    assert all("javascript:" not in (link.get_attribute("href") or "").lower() for link in links)


def test_in_answers_as_they_stream(page: Page, fake_model: EchoModel) -> None:
    fake_model.max_context = 1 << 20
    fake_model.script["go"] = "\n\n".join(PAYLOADS).replace("\0", "")
    page.ask_and_wait("go")
    check(page)
    fake_model.max_context = 4096


def test_in_an_edited_question_and_an_edited_answer(page: Page) -> None:
    page.ask_and_wait("hi")
    for selector in (".of-question", ".of-answer"):
        page.click(f"{selector} .edit")
        page.find(".editor textarea").clear()
        page.find(".editor textarea").send_keys(PAYLOADS[1])
        page.find(".editor .primary").click()
        page.until(lambda: page.count(".editor") == 0)
        page.wait_for_end()
        check(page)
    page.reload()
    assert PAYLOADS[1] in page.texts(".answer")


def test_in_searches_and_their_snippets(page: Page, http: httpx.Client) -> None:
    id = http.post(ROOT, json={"title": f"needle {PAYLOADS[1]}"}).json()["id"]
    text = "".join(f"needle {payload} " for payload in PAYLOADS[:3])
    http.post(f"{ROOT}/{id}/messages", json={"parent": None, "content": text})
    page.press(Keys.CONTROL, "k")
    page.type("needle")
    page.until(lambda: page.texts("#search-results mark")[:1] == ["needle"])
    assert "<script>" in page.find("#search-results span").text
    check(page)
    page.find("#search-text").clear()
    page.type(PAYLOADS[2])
    page.until(lambda: page.count("#search-results a") > 0 or page.find("#search-nothing").is_displayed())


def test_in_names_of_dropped_files_and_refusals(page: Page, tmp_path: Path) -> None:
    for payload in PAYLOADS[:10]:
        page.drop(payload, "text")
    page.until(lambda: page.count("#attached .size") == 10)
    check(page)
    page.drop(PAYLOADS[1], "x", "image/png")
    page.until(lambda: page.count(".toast") == 1)
    assert PAYLOADS[1] in page.texts(".toast span")[0]


def test_in_folders_and_new_names(page: Page) -> None:
    page.ask_and_wait("hi")
    page.wait("#list a")
    for picture in ("edit", "folder"):
        page.browser.execute_script("document.querySelector('#list .more').click()")
        entry = page.find(f"#menu .entry:has([href='#icon-{picture}'])")
        page.until(entry.is_displayed)
        entry.click()
        page.type(PAYLOADS[1] + Keys.ENTER)
        page.until(lambda: not page.find("#prompt").is_displayed())
    page.until(lambda: PAYLOADS[1] in page.texts(".folder summary"))


ADDRESSES = [f"#<img src=x onerror={DO}>", f"#conv/{DO}", "#%3Cscript%3E", "#../../health", "#%"]


@pytest.mark.parametrize("address", ADDRESSES)
def test_in_the_address(page: Page, live_server: str, address: str) -> None:
    page.browser.get("about:blank")
    page.browser.get(f"{live_server}/{address}")
    page.wait_until_ready()
    page.until(lambda: page.find("#welcome").is_displayed())
