"""The tree of a conversation in the chat page: edits, new answers, arrows between versions, continuing."""

from __future__ import annotations

from functools import partial

import pytest
from browser import Page
from echo_model import EchoModel
from patience import PATIENCE_S
from selenium.webdriver.common.keys import Keys


def branches(page: Page) -> list[str]:
    return page.texts(".branches span")


def is_at(page: Page, place: str) -> bool:
    return branches(page) == [place]


def edit(page: Page, selector: str, text: str) -> None:
    """Replaces a message by ``text``."""
    page.click(f"{selector} .edit")
    page.find(".editor textarea").clear()
    page.find(".editor textarea").send_keys(text)
    page.find(".editor .primary").click()


def test_an_edited_question_becomes_a_branch_with_an_answer_of_its_own(page: Page) -> None:
    page.ask_and_wait("one")
    page.ask_and_wait("two")
    edit(page, ".of-question", "uno")
    page.until(lambda: page.texts(".question") == ["uno"])
    page.wait_for_end()
    assert page.texts(".answer") == ["user: uno"]
    assert branches(page) == ["2/2"]
    page.click(".branches .left")
    page.until(lambda: page.texts(".question") == ["one", "two"])
    assert branches(page) == ["1/2"]
    page.reload()
    assert page.texts(".question") == ["one", "two"], "the branch that was chosen is remembered"
    page.click(".branches .right")
    page.until(lambda: page.texts(".question") == ["uno"])


def test_regenerate_makes_another_version_of_the_answer(page: Page, fake_model: EchoModel) -> None:
    fake_model.script["dice"] = "four"
    page.ask_and_wait("dice")
    fake_model.script["dice"] = "six"
    page.click(".again")
    page.until(lambda: page.texts(".answer") == ["six"])
    page.wait_for_end()
    assert branches(page) == ["2/2"]
    page.click(".branches .left")
    page.until(lambda: page.texts(".answer") == ["four"])
    fake_model.script.clear()
    assert page.ask_and_wait("next").replace("\n", " ") == "user: dice assistant: four user: next"


def test_an_edited_answer_is_what_the_model_sees(page: Page) -> None:
    page.ask_and_wait("one")
    edit(page, ".of-answer", "I am **edited**")
    page.until(lambda: page.texts(".answer") == ["I am edited"])
    assert page.texts(".answer strong") == ["edited"]
    assert branches(page) == ["2/2"]
    assert "assistant: I am edited" in page.ask_and_wait("two").replace("\n", " ")


def test_arrows_keep_the_focus_and_stop_at_the_ends(page: Page, fake_model: EchoModel) -> None:
    page.ask_and_wait("hi")
    for place in ("2/2", "3/3"):
        page.click(".again")
        page.until(partial(is_at, page, place))
        page.wait_for_end()
    assert not page.find(".branches .right").is_enabled()
    page.find(".branches .left").click()
    page.until(lambda: branches(page) == ["2/3"])
    page.press(Keys.ENTER)
    page.until(lambda: branches(page) == ["1/3"])
    assert not page.find(".branches .left").is_enabled()


def test_editing_is_given_up_with_escape(page: Page) -> None:
    page.ask_and_wait("one")
    page.click(".edit")
    page.find(".editor textarea").send_keys("more", Keys.ESCAPE)
    page.until(lambda: page.count(".editor") == 0)
    assert page.texts(".question") == ["one"]
    assert branches(page) == []


def test_arrow_up_in_an_empty_message_edits_the_last_question(page: Page) -> None:
    page.ask_and_wait("one")
    page.find("#message").send_keys(Keys.ARROW_UP)
    page.find(".editor textarea").send_keys(" and two", Keys.CONTROL + Keys.ENTER)
    page.until(lambda: page.texts(".question") == ["one and two"])


@pytest.mark.parametrize("how", ["button", "escape"])
def test_a_stopped_answer_is_continued_where_it_ended(page: Page, fake_model: EchoModel, how: str) -> None:
    fake_model.delay_s = 0.01
    fake_model.script["count"] = "word " * 2000
    page.ask("count")
    page.until(lambda: page.texts(".answer")[0].startswith("word word"))
    if how == "button":
        page.find("#stop").click()
    else:
        page.find("#message").send_keys(Keys.ESCAPE)
    page.until(lambda: page.texts(".notice") == ["Stopped"])
    assert fake_model.engine.generations[0].cancelled.wait(PATIENCE_S)
    stopped = page.texts(".answer")[0]
    fake_model.delay_s = 0.0
    fake_model.script["count"] = "and the end."
    page.click(".next")
    page.until(lambda: page.texts(".answer")[-1].endswith("and the end."))
    page.wait_for_end()
    assert page.texts(".answer")[-1].startswith(stopped)
    assert fake_model.asked[-1]["continue_final_message"]
