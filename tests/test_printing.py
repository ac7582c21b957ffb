"""Thoughts, text and tool calls from Python, separated as they arrive.

The model is a script of tokens, one per character.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from freedive import Call, LanguageModel, Text, Thought
from freedive.config import EngineConfig
from freedive.errors import UserError
from freedive.model.batch import Batch
from freedive.text.dialects.parser import joined
from freedive.text.template import ChatTemplate
from freedive.text.tokenizer import Tokenizer

ASK = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}]
CALL = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
PLAIN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "
THINKING = PLAIN + "{# <think></think><tool_call> tools #}"
OPENED = THINKING + "<think>\n"


class Script:
    """A runner that outputs ``tokens`` and then repeats the last one; it keeps the prompts that it was given."""

    num_pages = 64
    max_context = 1024
    drafts = False
    pages_experts = False
    boundaries = ()
    page_bytes = 1
    states = np.zeros((1, 0), np.uint8)

    def __init__(self, vocab_size: int, tokens: list[int]) -> None:
        self.vocab_size = vocab_size
        self.tokens = tokens
        self.prompt: list[int] = []

    def save_order(self) -> None:
        """It has no experts."""

    def step(self, batch: Batch) -> np.ndarray:
        if batch.starts[0] == 0:
            self.prompt = batch.tokens.tolist()
        written = batch.starts[0] + batch.output_rows + 1 - len(self.prompt)
        logits = np.zeros((len(written), self.vocab_size), np.float32)
        logits[np.arange(len(written)), np.array(self.tokens)[written.clip(max=len(self.tokens) - 1)]] = 1
        return logits


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A tokenizer of bytes with <think>, </think> and <tool_call> as special tokens; </tool_call> is plain letters."""
    alphabet = {letter: index for index, letter in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    core = tokenizers.Tokenizer(models.BPE(alphabet, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text) for text in ("<|end|>", "<think>", "</think>", "<tool_call>")])
    folder = tmp_path_factory.mktemp("tokenizer")
    core.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return Tokenizer.from_folder(folder)


Make = Callable[..., LanguageModel]


@pytest.fixture
def make(tokenizer: Tokenizer) -> Iterator[Make]:
    made: list[LanguageModel] = []

    def make(says: str, template: str = THINKING) -> LanguageModel:
        runner: Any = Script(tokenizer.vocab_size, tokenizer.encode(says))
        settings = EngineConfig(cache_tokens=1024)
        made.append(LanguageModel("script", runner, tokenizer, ChatTemplate({"default": template}, {}), settings, {}))
        return made[-1]

    yield make
    for model in made:
        model.close()


def answer(model: LanguageModel, tools: Any = (), **sampling: Any) -> tuple[str, str, tuple[Call, ...]]:
    said = joined(model.chat(ASK, tools=tools, temperature=0, **sampling).events())
    return said.content, said.reasoning, said.calls


@pytest.mark.parametrize(
    ("template", "says", "content", "reasoning"),
    [
        (THINKING, "<think>\nHm, é.\n</think>\n\nHello!<|end|>", "Hello!", "Hm, é."),
        (OPENED, "Hm.\n</think>\n\nHello!<|end|>", "Hello!", "Hm."),
        (THINKING, "Hello!<|end|>", "Hello!", ""),
        (OPENED, "Hm.<|end|>", "", "Hm."),
        (THINKING, "<think></think>Hello!<|end|>", "Hello!", ""),
        (THINKING, "Write <thi or <b>.\n<|end|>", "Write <thi or <b>.\n", ""),
    ],
)
def test_thoughts_are_separated_from_text(make: Make, template: str, says: str, content: str, reasoning: str) -> None:
    model = make(says, template)
    assert answer(model) == (content, reasoning, ())
    assert "".join(model.chat(ASK, temperature=0)) == content


@pytest.mark.parametrize("length", range(1, 17))
def test_an_answer_can_be_cut_anywhere(make: Make, length: int) -> None:
    model = make("<think>Hm...</think>\nHello <b!<|end|>")
    shown = max(length - 7, 0)  # 7 tokens: <think>, five letters with the dots, </think>
    content, reasoning, _ = answer(model, max_tokens=length)
    assert reasoning == "Hm..."[: max(length - 1, 0)]
    assert content == "\nHello <b!"[:shown].lstrip()


def test_events_arrive_as_soon_as_they_are_certain(make: Make) -> None:
    events = list(make("<think>ab</think>cd<|end|>").chat(ASK, temperature=0).events())
    assert events == [Thought("a"), Thought("b"), Text("c"), Text("d")]


def test_a_call_of_a_tool_that_was_given_is_an_event(make: Make) -> None:
    model = make("<think>Hm.</think>One moment." + CALL + "<|end|>")
    assert answer(model, TOOLS) == ("One moment.", "Hm.", (Call("now", "{}"),))


def test_a_call_without_tools_is_its_text(make: Make) -> None:
    model = make("<think>Hm.</think>One moment.\n" + CALL + "<|end|>")
    assert answer(model) == ("One moment.\n" + CALL, "Hm.", ())


def test_a_template_is_given_the_tools(make: Make, tokenizer: Tokenizer) -> None:
    model = make("Yes<|end|>", "{{ (tools or []) | length }} tools for {{ messages | length }}")
    for tools, prompt in (((), "0 tools for 1"), (TOOLS, "1 tools for 1")):
        answer(model, tools)
        assert tokenizer.decode(model.runner.prompt) == prompt  # type: ignore[attr-defined]


def test_a_stop_string_applies_to_the_answer_alone(make: Make) -> None:
    said = "<think>one two</think>three two one<|end|>"
    assert answer(make(said), stop=("two",)) == ("three ", "one two", ())


def test_leaving_an_answer_cancels_it(make: Make) -> None:
    model = make("<think>Hm")
    for event in model.chat(ASK, temperature=0).events():
        assert event == Thought("H")
        break
    deadline = time.monotonic() + 60
    while model.engine.stats().free_pages != model.engine.stats().num_pages:
        assert time.monotonic() < deadline, "pages were not freed"
        time.sleep(0.001)


def test_an_impossible_answer_is_refused_before_it_is_read(make: Make) -> None:
    with pytest.raises(UserError, match="temperature"):
        make("Hello<|end|>").chat(ASK, temperature=-1)
