"""Settings of a conversation in the chat page: system prompt, parameters, JSON schema, presets, model."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from browser import Page
from echo_model import EchoModel, serving
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}}


def open_settings(page: Page) -> None:
    page.find("#settings-open").click()
    page.until(lambda: page.find("#settings").is_displayed())


def save(page: Page) -> None:
    page.find("#settings-form [type=submit]").click()
    page.until(lambda: not page.find("#settings").is_displayed())


def test_the_system_prompt_and_parameters_reach_the_model(page: Page, fake_model: EchoModel) -> None:
    open_settings(page)
    page.find("#system").send_keys("You are a whale.")
    page.find("#parameter-temperature").send_keys("0.25")
    page.find("#parameter-top_k").send_keys("7")
    page.find("#parameter-stop").send_keys("END", Keys.ENTER, "FIN")
    save(page)
    fake_model.script["hello"] = "well END never shown"
    assert page.ask_and_wait("hello") == "well"
    sampling = fake_model.engine.generations[-1].sampling
    assert (sampling.temperature, sampling.top_k, sampling.stop) == (0.25, 7, ("END", "FIN"))
    assert fake_model.asked[-1]["messages"][0] == {"role": "system", "content": "You are a whale."}


def test_settings_belong_to_their_conversation_and_survive_a_reload(page: Page, fake_model: EchoModel) -> None:
    page.ask_and_wait("hello")
    open_settings(page)
    page.find("#parameter-seed").send_keys("11")
    save(page)
    page.ask_and_wait("again")
    assert fake_model.engine.generations[-1].sampling.seed == 11
    page.reload()
    open_settings(page)
    assert page.find("#parameter-seed").get_attribute("value") == "11"
    page.find("#settings-clear").click()
    save(page)
    page.ask_and_wait("once more")
    assert fake_model.engine.generations[-1].sampling.seed != 11
    page.find("#new").click()
    page.until(lambda: page.find("#welcome").is_displayed())
    open_settings(page)
    assert page.find("#parameter-seed").get_attribute("value") == ""


def test_every_parameter_says_what_it_does_and_its_default(page: Page) -> None:
    open_settings(page)
    notes = page.texts(".parameter p")
    assert len(notes) == 11
    assert all("Default:" in note and len(note) > 40 for note in notes)


def test_a_schema_that_is_no_json_object_is_not_saved(page: Page, fake_model: EchoModel) -> None:
    open_settings(page)
    page.find("#schema").send_keys("{broken")
    page.find("#settings-form [type=submit]").click()
    assert page.find("#schema-wrong").is_displayed()
    page.find("#schema").clear()
    page.find("#schema").send_keys(json.dumps(SCHEMA))
    save(page)
    page.ask_and_wait("hello")
    assert fake_model.asked[-1]["format"] is not None
    open_settings(page)
    assert json.loads(page.find("#schema").get_attribute("value") or "") == SCHEMA


def test_presets_are_kept_in_the_browser(page: Page) -> None:
    open_settings(page)
    page.find("#system").send_keys("Answer in rhymes.")
    page.find("#parameter-temperature").send_keys("1.2")
    page.find("#preset-save").click()
    page.type("Poet <b>" + Keys.ENTER)
    page.until(lambda: not page.find("#prompt").is_displayed())
    page.press(Keys.ESCAPE)
    page.reload()
    open_settings(page)
    assert page.find("#system").get_attribute("value") == ""
    Select(page.find("#presets")).select_by_visible_text("Poet <b>")
    assert page.find("#system").get_attribute("value") == "Answer in rhymes."
    assert page.find("#parameter-temperature").get_attribute("value") == "1.2"
    page.find("#preset-drop").click()
    assert page.texts("#presets option") == ["Presets …"]


@pytest.fixture
def two_models(browser: webdriver.Chrome) -> Iterator[tuple[Page, EchoModel, EchoModel]]:
    first, second = EchoModel("small", delay_s=0), EchoModel("large", delay_s=0)
    with serving(first, second) as url:
        yield Page(browser, url), first, second


def test_the_model_is_chosen_for_each_conversation(two_models: tuple[Page, EchoModel, EchoModel]) -> None:
    page, first, second = two_models
    page.ask_and_wait("one")
    Select(page.find("#model")).select_by_visible_text("large")
    page.ask_and_wait("two")
    assert [len(model.engine.generations) for model in (first, second)] == [1, 1]
    page.reload()
    assert page.find("#model").get_attribute("value") == "large"
    page.ask_and_wait("three")
    assert len(second.engine.generations) == 2
