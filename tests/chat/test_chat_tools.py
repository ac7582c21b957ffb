"""Tools in the chat page: turned on in the settings, asked about before each use, allowed or refused, and kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import LAST_ANSWER, Page, chromium
from echo_model import EchoModel
from selenium.webdriver.common.keys import Keys

from freedive.server.conversations.records import REFUSED

TEXTS = json.loads(
    (Path(__file__).parents[2] / "freedive" / "server" / "page" / "translations.json").read_text("utf-8")
)
CALL = '<tool_call>{"name": "calculator", "arguments": {"expression": "17*3"}}</tool_call>'
READ = '<tool_call>{"name": "files", "arguments": {"name": "whale <b>.txt"}}</tool_call>'
ONCE, ALWAYS, REFUSE = (f".ask button:nth-of-type({place})" for place in (1, 2, 3))


@pytest.fixture(autouse=True)
def script(page: Page, fake_model: EchoModel) -> Iterator[None]:
    told = {"tool: 51": "It is **51**.", REFUSED: "As you wish.", "tool: Part": "It is blue."}
    fake_model.script |= told | {"multiply": f"Let me see. {CALL}", "colour": READ}
    yield
    fake_model.script.clear()


def turn_on(page: Page, *tools: str) -> None:
    page.find("#settings-open").click()
    page.until(lambda: page.find("#settings").is_displayed())
    for tool in tools:
        page.find(f"#tool-{tool}").click()
    page.find("#settings-form [type=submit]").click()
    page.until(lambda: not page.find("#settings").is_displayed())


def ask(page: Page, text: str) -> None:
    page.ask(text)
    page.wait(".ask button")


def ended(page: Page) -> str:
    page.wait_for_end()
    return page.texts(".answer")[-1]


def test_a_call_is_shown_with_its_arguments_and_runs_when_it_is_allowed(page: Page, fake_model: EchoModel) -> None:
    turn_on(page, "calculator")
    ask(page, "multiply")
    assert page.texts(".ask p") == ["The model asks to use: Calculator"]
    assert page.texts(".ask pre") == ["expression: 17*3"]
    assert page.texts(".ask button") == ["Allow once", "Always in this conversation", "Refuse"]
    assert page.find("#stop").is_displayed()
    page.find(ONCE).click()
    assert ended(page) == "Let me see.\nIt is 51."
    assert page.count(".ask") == 0
    page.find(".call summary").click()
    assert page.texts(".call > div") == ["expression: 17*3\n\n51"]
    assert fake_model.asked[-1]["messages"][-1]["content"] == "51"
    page.find(f"{LAST_ANSWER} .again").click()
    page.wait(".ask button")


def test_a_refusal_is_told_to_the_model_and_shown(page: Page, fake_model: EchoModel) -> None:
    turn_on(page, "calculator")
    ask(page, "multiply")
    page.find(REFUSE).click()
    assert ended(page).endswith("As you wish.")
    assert page.texts(".call summary") == ["Calculator · refused"]
    assert fake_model.asked[-1]["messages"][-1]["content"] == REFUSED


def test_always_asks_no_more_in_this_conversation(page: Page) -> None:
    turn_on(page, "calculator")
    ask(page, "multiply")
    page.find(ALWAYS).click()
    assert ended(page).endswith("It is 51.")
    page.find(f"{LAST_ANSWER} .again").click()
    page.wait(".branches")
    assert ended(page).endswith("It is 51.")
    assert (page.count(".ask"), page.texts(".call summary")) == (0, ["Calculator"])
    page.find("#new").click()
    page.until(lambda: page.find("#welcome").is_displayed())
    turn_on(page, "calculator")
    ask(page, "multiply")


def test_a_reload_shows_the_question_again(page: Page) -> None:
    turn_on(page, "calculator")
    ask(page, "multiply")
    page.reload()
    page.wait(".ask button")
    assert page.texts(".answer") == ["Let me see."]
    page.find(ONCE).click()
    assert ended(page) == "Let me see.\nIt is 51."
    page.reload()
    assert ended(page) == "Let me see.\nIt is 51."
    assert page.texts(".call summary") == ["Calculator"]


def test_another_device_asks_too_and_the_first_answer_counts(page: Page, tmp_path: Path) -> None:
    turn_on(page, "calculator")
    ask(page, "multiply")
    with chromium(tmp_path) as other:
        second = Page(other, page.browser.current_url)
        second.wait(".ask button")
        page.find(REFUSE).click()
        assert ended(page).endswith("As you wish.")
        second.find(ONCE).click()
        second.until(lambda: second.texts(".toast span"))
        assert ended(second).endswith("As you wish.")


def test_an_answer_that_asks_can_be_stopped(page: Page) -> None:
    turn_on(page, "calculator")
    ask(page, "multiply")
    page.press(Keys.ESCAPE)
    page.wait(".of-answer .next")
    assert page.texts(".call summary") == ["Calculator · refused"]
    assert page.count(".ask") == 0
    page.find(".of-answer .next").click()
    page.until(lambda: page.texts(".answer")[-1].endswith("As you wish."))


def test_a_file_of_the_conversation_is_read_when_it_is_allowed(page: Page, fake_model: EchoModel) -> None:
    turn_on(page, "files")
    page.drop("whale <b>.txt", "the whale is blue")
    page.wait("#attached .size")
    ask(page, "which colour?")
    assert "the whale is blue" not in str(fake_model.asked[-1]["messages"])
    assert page.texts(".ask pre") == ["name: whale <b>.txt"]
    page.find(ONCE).click()
    assert ended(page) == "It is blue."
    page.find(".call summary").click()
    assert "the whale is blue" in page.texts(".call > div")[0]


def test_tools_are_kept_in_the_settings(page: Page) -> None:
    turn_on(page, "calculator", "files")
    page.ask_and_wait("hello")
    page.reload()
    page.find("#settings-open").click()
    boxes: list[Any] = [page.find(f"#tool-{tool}") for tool in ("calculator", "files")]
    assert all(box.is_selected() for box in boxes)
    page.find("#settings-clear").click()
    assert not any(box.is_selected() for box in boxes)


def test_the_question_is_asked_in_the_readers_language(page: Page) -> None:
    page.browser.add_cookie({"name": "lang", "value": "zh"})
    page.reload()
    turn_on(page, "calculator")
    ask(page, "multiply")
    words = TEXTS["zh"]
    assert page.texts(".ask p") == [words["asks"].replace("{tool}", words["calculator"])]
    assert page.texts(".ask button") == [words[key] for key in ("allow_once", "allow_always", "refuse")]
    page.find(REFUSE).click()
    ended(page)
    assert page.texts(".call summary") == [f"{words['calculator']} · {words['refused']}"]
