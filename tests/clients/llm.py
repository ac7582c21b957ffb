"""Simon Willison's llm, which finds the server in a file of the user's folder."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from subprocess import run
from unittest import TestCase

import llm
import openai
from pydantic import BaseModel

raises = TestCase().assertRaises


class Person(BaseModel):
    name: str
    age: int


def _known(url: str, model_name: str = "echo") -> None:
    """Adds the server to llm's list of models."""
    entry = {
        "model_id": "freedive",
        "model_name": model_name,
        "api_base": f"{url}/v1",
        "supports_tools": True,
        "supports_schema": True,
    }
    Path(os.environ["LLM_USER_PATH"], "extra-openai-models.yaml").write_text(json.dumps([entry]))


def _model(url: str, model_name: str = "echo") -> llm.Model:
    _known(url, model_name)
    return llm.get_model("freedive")


def chat(url: str) -> None:
    answer = _model(url).prompt("hello", system="Be brief", stream=False, max_tokens=100)
    assert answer.text() == "system: Be brief\nuser: hello"
    assert answer.usage().input == answer.usage().output == 28


def stream(url: str) -> None:
    answer = _model(url).prompt("hello")
    assert len(list(answer)) > 5
    assert answer.text() == "user: hello"
    assert answer.usage().input == 11


def conversation(url: str) -> None:
    conversation = _model(url).conversation()
    conversation.prompt("hello").text()
    assert conversation.prompt("again").text() == "user: hello\nassistant: user: hello\nuser: again"


def command(url: str) -> None:
    _known(url)
    answer = run(
        [sys.executable, "-P", "-m", "llm", "-m", "freedive", "hello"], capture_output=True, text=True, timeout=20
    )
    assert answer.stdout == "user: hello\n", answer.stderr


def tools(url: str) -> None:
    def weather(city: str) -> str:
        """The weather in a city"""
        return f"12 degrees in {city}"

    assert _model(url).chain("weather", tools=[weather]).text() == "It is mild."
    assert _model(url).chain("weather twice", tools=[weather], stream=False).text() == "It is mild."


def json_schema(url: str) -> None:
    assert json.loads(_model(url).prompt("Who was Ada?", schema=Person).text()) == {"name": "Ada", "age": 36}


def errors(url: str) -> None:
    with raises(openai.NotFoundError):
        _model(url, "gpt-99").prompt("hello").text()
    with raises(openai.BadRequestError):
        _model(url).prompt("hello", seed=2**70).text()
    with raises(openai.RateLimitError):
        _model(url).prompt("overload").text()
    with raises(openai.APIError):
        _model(url).prompt("boom").text()
