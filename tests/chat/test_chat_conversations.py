"""Conversations in the side bar of the chat page: found, ordered, deleted and brought back, exported, imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from browser import Page
from echo_model import HELD, EchoModel
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

ROOT = "/app/conversations"
DAY_MS = 86_400_000


@pytest.fixture(autouse=True)
def empty(http: httpx.Client) -> None:
    """The list of conversations is empty before each test."""
    for each in http.get(ROOT, params={"limit": 200}).json()["conversations"]:
        http.delete(f"{ROOT}/{each['id']}", params={"forever": True})


def titles(page: Page, selector: str = "#list a") -> list[str]:
    return page.texts(selector)


def act(page: Page, title: str, picture: str) -> None:
    """Chooses an entry of the menu of a conversation by its picture."""
    item = page.browser.find_element(By.XPATH, f"//nav[@id='list']//li[a[text()='{title}']]")
    page.browser.execute_script("arguments[0].querySelector('.more').click()", item)
    entry = page.find(f"#menu .entry:has([href='#icon-{picture}'])")
    page.until(entry.is_displayed)
    entry.click()


def imported(http: httpx.Client, *conversations: dict[str, Any]) -> None:
    response = http.post(f"{ROOT}/import", json={"text": json.dumps(conversations)})
    assert response.status_code == 200, response.text


def conversation(http: httpx.Client, title: str, *texts: str, folder: str = "") -> str:
    """Stores a conversation of questions and answers in turns, and returns its id."""
    id: str = http.post(ROOT, json={"title": title, "folder": folder}).json()["id"]
    parent = None
    for index, text in enumerate(texts):
        body = {"parent": parent, "role": ("user", "assistant")[index % 2], "content": text}
        parent = http.post(f"{ROOT}/{id}/messages", json=body).json()["id"]
    return id


def test_a_conversation_is_named_by_its_first_question_and_found_in_the_side_bar(page: Page) -> None:
    assert page.find("#list-empty").is_displayed()
    page.ask_and_wait("Where do whales sleep?")
    page.until(lambda: titles(page) == ["Where do whales sleep?"])
    assert page.texts("#list h2") == ["Today"]
    page.until(lambda: page.browser.title == "Where do whales sleep? · freedive")
    page.find("#new").click()
    page.until(lambda: page.find("#welcome").is_displayed())
    assert page.count(".message") == 0
    page.find("#list a").click()
    page.until(lambda: page.texts(".question") == ["Where do whales sleep?"])
    assert page.texts(".answer") == ["user: Where do whales sleep?"]


def test_reload_and_the_back_button_show_the_same(page: Page) -> None:
    page.ask_and_wait("one")
    first = page.browser.current_url
    page.reload()
    assert page.texts(".question") == ["one"]
    page.find("#new").click()
    page.until(lambda: page.find("#welcome").is_displayed())
    page.ask_and_wait("two")
    page.browser.back()
    page.until(lambda: page.find("#welcome").is_displayed())
    page.browser.back()
    page.until(lambda: page.texts(".question") == ["one"])
    assert page.browser.current_url == first
    page.browser.forward()
    page.browser.forward()
    page.until(lambda: page.texts(".question") == ["two"])


def test_a_reload_in_the_middle_of_an_answer_goes_on_showing_it(page: Page, fake_model: EchoModel) -> None:
    half = "deep **blue** water " * 10
    fake_model.script["ocean"] = f"<think>\nHow deep?\n</think>\n\n{half}{HELD}{half}"
    page.ask("ocean")
    page.until(lambda: len(page.texts(".answer")[0]) > 30)
    page.reload()
    page.wait(".answer .tail")
    assert page.count(".of-answer[aria-busy]") == 1
    fake_model.released.set()
    page.wait_for_end()
    assert page.texts(".answer") == [("deep blue water " * 20).strip()]
    assert page.count(".thoughts") == 1
    assert len(fake_model.engine.generations) == 1


def test_another_device_shows_the_running_answer(page: Page, live_server: str, fake_model: EchoModel) -> None:
    fake_model.script["sea"] = "word " * 50 + HELD + "word " * 50
    page.ask("sea")
    page.until(lambda: "#" in page.browser.current_url)
    address, first = page.browser.current_url, page.browser.current_window_handle
    page.browser.switch_to.new_window("window")
    other = Page(page.browser, address)
    other.until(lambda: other.texts(".answer") == [("word " * 50).strip()])
    assert other.count("[aria-busy]") == 1
    fake_model.released.set()
    other.wait_for_end()
    assert other.texts(".answer") == [("word " * 100).strip()]
    page.browser.close()
    page.browser.switch_to.window(first)
    page.wait_for_end()
    assert page.texts(".answer") == [("word " * 100).strip()]


def test_search_marks_what_it_found_and_opens_the_message(page: Page, http: httpx.Client) -> None:
    filler = [text for index in range(20) for text in (f"question {index}", "line\n\n" * 20)]
    conversation(http, "Of fish", "Do <b>herrings</b> sing?", "They do.", *filler)
    conversation(http, "鲸鱼", "鲸鱼在哪里睡觉？", "在海里。")
    page.press(Keys.CONTROL, "k")
    page.until(lambda: page.find("#search-text").is_displayed())
    page.type("herrings")
    page.until(lambda: page.texts("#search-results mark") == ["herrings"])
    assert page.texts("#search-results strong") == ["Of fish"]
    assert "Do <b>herrings</b> sing?" in page.find("#search-results span").text
    assert page.count("#search-results b") == 0
    page.type(Keys.ENTER)
    page.until(lambda: page.texts(".question")[:1] == ["Do <b>herrings</b> sing?"])
    script = "const {top, bottom} = arguments[0].getBoundingClientRect(); return top >= 0 && bottom <= innerHeight"
    page.until(lambda: page.browser.execute_script(script, page.find(".question")))
    page.press(Keys.CONTROL, "k")
    page.type("睡觉")
    page.until(lambda: page.texts("#search-results strong") == ["鲸鱼"])
    page.press(Keys.ESCAPE)
    page.until(lambda: not page.find("#search").is_displayed())
    page.press(Keys.CONTROL, "k")
    page.type("nowhere to be found")
    page.until(lambda: page.texts("#search-nothing") == ["Nothing found"])


def test_rename_pin_and_folders(page: Page, http: httpx.Client) -> None:
    for title in ("alpha", "beta", "gamma"):
        conversation(http, title, "hi")
    page.reload()
    assert titles(page) == ["gamma", "beta", "alpha"]
    act(page, "alpha", "edit")
    page.type("omega" + Keys.ENTER)
    page.until(lambda: titles(page) == ["gamma", "beta", "omega"])
    act(page, "omega", "pin")
    page.until(lambda: titles(page) == ["omega", "gamma", "beta"])
    assert page.texts("#list h2") == ["Pinned", "Today"]
    act(page, "beta", "folder")
    page.type("Work" + Keys.ENTER)
    page.until(lambda: page.texts(".folder summary") == ["Work"])
    page.until(lambda: page.texts(".folder a") == ["beta"])
    page.reload()
    assert page.texts(".folder summary") == ["Work"]
    assert page.texts(".folder a") == []
    page.find(".folder summary").click()
    page.until(lambda: page.texts(".folder a") == ["beta"])
    act(page, "omega", "pin")
    page.until(lambda: page.texts("#list h2") == ["Today"])


def test_a_deleted_conversation_comes_back_by_undo(page: Page) -> None:
    page.ask_and_wait("keep me")
    page.until(lambda: titles(page) == ["keep me"])
    act(page, "keep me", "trash")
    page.until(lambda: page.texts(".toast span") == ["Deleted: keep me"])
    page.until(lambda: titles(page) == [])
    page.until(lambda: page.find("#welcome").is_displayed())
    page.find(".toast button").click()
    page.until(lambda: titles(page) == ["keep me"])


def test_a_long_list_is_loaded_as_it_is_scrolled(page: Page, http: httpx.Client) -> None:
    for index in range(120):
        conversation(http, f"talk {index}")
    page.reload()
    assert page.count("#list a") < 120
    script = "const list = document.querySelector('.bar-list'); list.scrollTop = list.scrollHeight"

    def all_there() -> bool:
        page.browser.execute_script(script)
        return page.count("#list a") == 120

    page.until(all_there)
    assert titles(page) == [f"talk {index}" for index in reversed(range(120))]


def test_conversations_stand_under_their_days(page: Page, http: httpx.Client) -> None:
    now = page.browser.execute_script("return new Date().setHours(0, 0, 0, 0)")
    id = conversation(http, "model", "hi", "ho")
    draft = http.get(f"{ROOT}/{id}/export").json()[0]
    http.delete(f"{ROOT}/{id}", params={"forever": True})
    ages = {"now": 0, "late": 0.5, "week": 4, "old": 40}
    imported(http, *({**draft, "title": title, "updated": int(now - days * DAY_MS)} for title, days in ages.items()))
    page.reload()
    assert page.texts("#list h2") == ["Today", "Yesterday", "Last 7 days", "Earlier"]
    assert titles(page) == list(ages)


def test_a_temporary_chat_stands_in_no_list(page: Page, http: httpx.Client) -> None:
    page.find("#temporary").click()
    assert "in no list" in page.find("#promise").text
    page.ask_and_wait("secret")
    assert page.find("#temporary").get_attribute("aria-pressed") == "true"
    assert titles(page) == []
    assert http.get(ROOT).json()["conversations"] == []
    page.reload()
    assert page.texts(".question") == ["secret"]


def test_a_chat_with_a_file_but_no_message_is_not_kept(page: Page, http: httpx.Client) -> None:
    page.drop("notes.txt", "nothing much")
    page.wait("#attached .chip .icon-button")
    assert len(http.get(ROOT).json()["conversations"]) == 1
    page.find("#new").click()
    page.until(lambda: http.get(ROOT).json()["conversations"] == [])


def test_export_and_import_bring_everything_back(page: Page, http: httpx.Client, tmp_path: Path) -> None:
    page.browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path), "eventsEnabled": False}
    )
    page.ask_and_wait("remember the whale")
    page.until(lambda: titles(page) == ["remember the whale"])
    page.find("#archive").click()
    page.until(lambda: page.find("#menu").is_displayed())
    page.find("#menu [href$='format=json']").click()
    page.until(lambda: list(tmp_path.glob("*.json")))
    [file] = tmp_path.glob("*.json")
    page.until(lambda: file.stat().st_size > 0)
    act(page, "remember the whale", "trash")
    page.until(lambda: titles(page) == [])
    page.find("#import").send_keys(str(file))
    page.until(lambda: titles(page) == ["remember the whale"])
    page.find("#list a").click()
    page.until(lambda: page.texts(".answer") == ["user: remember the whale"])


def test_a_file_that_is_no_export_is_refused_with_the_reason(page: Page, tmp_path: Path) -> None:
    (tmp_path / "noise.json").write_text("{not json")
    page.find("#import").send_keys(str(tmp_path / "noise.json"))
    page.until(lambda: page.count(".toast") == 1)
    assert page.texts(".toast span")[0]
    assert titles(page) == []


def test_an_address_that_names_nothing_leads_to_a_new_chat(page: Page, live_server: str) -> None:
    page.browser.get("about:blank")
    page.browser.get(f"{live_server}/#conv_none")
    page.wait_until_ready()
    page.until(lambda: page.count(".toast") == 1)
    assert page.find("#welcome").is_displayed()
    assert page.ask_and_wait("hi") == "user: hi"
