"""Files in the chat page: dropped, pasted, refused, shown, and sent with the question."""

from __future__ import annotations

from browser import Page
from echo_model import EchoModel
from selenium.webdriver.common.keys import Keys


def test_a_dropped_file_goes_with_the_question_and_its_tokens_are_counted(page: Page) -> None:
    page.drop("notes.py", "print('the whale is blue')")
    page.wait("#attached .chip .size")
    page.until(lambda: page.texts("#attached .name") == ["notes.py"])
    assert "tokens" in page.find("#attached .size").text
    answer = page.ask_and_wait("what colour?")
    assert "the whale is blue" in answer
    assert "what colour?" in answer
    assert page.texts(".of-question .chip .name") == ["notes.py"]
    assert not page.find("#attached").is_displayed()
    page.find(".of-question .chip button").click()
    page.until(lambda: page.texts("#file-text") == ["print('the whale is blue')"])
    assert page.texts("#file-name") == ["notes.py"]


def test_a_long_paste_becomes_a_file_and_a_short_one_is_text(page: Page) -> None:
    assert not page.paste("short")
    assert page.paste("long " * 1000)
    page.until(lambda: page.texts("#attached .name") == ["Pasted text.txt"])


def test_a_file_can_be_removed_before_it_is_sent(page: Page) -> None:
    page.drop("a.txt", "aaa")
    page.drop("b.txt", "bbb")
    page.until(lambda: page.count("#attached .size") == 2)
    kept = page.texts("#attached .name")[1]
    page.find("#attached .chip .close").click()
    page.until(lambda: page.texts("#attached .name") == [kept])
    answer = page.ask_and_wait("which?")
    assert kept[0] * 3 in answer
    assert ("bbb" if kept == "a.txt" else "aaa") not in answer


def test_files_that_were_not_sent_survive_a_reload(page: Page) -> None:
    page.drop("a.txt", "aaa")
    page.wait("#attached .size")
    assert page.texts("#attached .name") == ["a.txt"]
    page.find("#message").send_keys("unsent words")
    page.reload()
    assert page.texts("#attached .name") == ["a.txt"]
    assert page.find("#message").get_attribute("value") == "unsent words"


def test_images_and_binaries_are_refused_by_name(page: Page, fake_model: EchoModel) -> None:
    page.drop("whale.png", "not really", "image/png")
    page.until(lambda: page.texts(".toast span") == ["whale.png is an image, and this model cannot see."])
    page.drop("data.bin", "a\0b", "application/octet-stream")
    page.until(lambda: page.texts(".toast span")[-1] == "data.bin is neither text nor a PDF.")
    assert not page.find("#attached").is_displayed()
    assert not page.find("#send").is_enabled()


def test_an_edited_question_keeps_its_files(page: Page) -> None:
    page.drop("a.txt", "the whale")
    page.wait("#attached .size")
    assert page.texts("#attached .name") == ["a.txt"]
    page.ask_and_wait("one")
    page.click(".edit")
    page.find(".editor textarea").send_keys(" more", Keys.CONTROL + Keys.ENTER)
    page.until(lambda: page.texts(".question") == ["one more"])
    page.wait_for_end()
    assert "the whale" in page.texts(".answer")[-1]
    assert page.texts(".of-question .chip .name") == ["a.txt"]
