"""For any output and any split of it: no exception, equal events, no lost text, linear time."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise

import pytest
from dialect_samples import SAMPLES, TOOLS, output_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pace import seconds_on_an_idle_core

from freedive.text.dialects.dialect import Dialect, Mode, State
from freedive.text.dialects.parser import Answer, Parser, joined, parse
from freedive.text.dialects.registry import dialect_for

DIALECTS = {name: dialect_for(sample.source, sample.added_tokens) for name, sample in SAMPLES.items()}
DIFFERENT = (
    *("DeepSeek R1", "DeepSeek V4", "Qwen3", "Qwen3.5", "Granite 3.3", "Granite 3.2", "Hunyuan A13B", "Hy3"),
    *("openPangu", "Kimi K2", "gpt-oss", "Llama 4", "GLM-4.5", "Mistral Small 3.2", "Gemma 4", "MiniMax M2"),
    *("MiMo-V2", "Phi-4-mini", "OLMo 3 Think", "Solar Open", "Muse Glimmer"),
)
"""One dialect of each kind for fuzzing."""
BODIES = [
    '{"name": "now", "arguments": {"apple": [1]}}',
    '{"name": 1, "berry": NaN}',
    "[now(cherry='damson')]",
    'now(cherry="damson")',
    " to=x",
]
WORDS = ["apple", "berry", "cherry", "damson", "elder"]
MESSAGE = {
    "role": "assistant",
    "reasoning_content": "apple <berry",
    "content": "cherry",
    "tool_calls": [{"type": "function", "id": "1", "function": {"name": "weather", "arguments": '{"city": "damson"}'}}],
}


def soup_of(name: str) -> st.SearchStrategy[str]:
    """Returns a strategy of well-formed outputs, slices of them, whole and partial markers, and words, in any order."""
    dialect, output = DIALECTS[name], output_of(SAMPLES[name], MESSAGE)[2]
    marker = st.sampled_from([*dialect.marks, *dialect.separators, "<"])
    piece = st.sampled_from([*WORDS, *BODIES, " ", "\n", "{", "[", "é"])
    edges = st.tuples(st.integers(0, len(output)), st.integers(0, len(output)))
    torn = st.builds(lambda text, size: text[:size], marker, st.integers(1, 20))
    cut = edges.map(lambda edge: output[: min(edge)] + output[max(edge) :])
    return st.lists(st.one_of(marker, piece, torn, cut, st.just(output)), max_size=12).map("".join)


def parsed_in_chunks(dialect: Dialect, output: str, cuts: list[int], state: State) -> Answer:
    parser = Parser(dialect, state, TOOLS)
    ends = [0, *sorted(cut % (len(output) + 1) for cut in cuts), len(output)]
    events = [event for start, end in pairwise(ends) for event in parser.feed(output[start:end])]
    return joined(events + parser.finish())


@pytest.mark.parametrize("name", DIFFERENT)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_any_split_of_an_output_gives_the_same_answer_and_loses_no_word(name: str, data: st.DataObject) -> None:
    dialect = DIALECTS[name]
    output = data.draw(soup_of(name))
    modes = [Mode.TEXT, Mode.THOUGHT] + [Mode.HEADER] * bool(dialect.header)
    state = State(data.draw(st.sampled_from(modes)), data.draw(st.booleans()))
    whole = parse(dialect, output, state, TOOLS)
    assert parsed_in_chunks(dialect, output, data.draw(st.lists(st.integers(0, 10_000), max_size=30)), state) == whole
    shown = whole.content + whole.reasoning + "".join(call.name + call.arguments for call in whole.calls)
    assert {word: shown.count(word) for word in WORDS} == {word: output.count(word) for word in WORDS}


@given(st.text(), st.lists(st.integers(0, 100), max_size=5))
def test_a_model_without_markers_is_shown_as_it_writes(output: str, cuts: list[int]) -> None:
    assert parsed_in_chunks(Dialect({}), output, cuts, State()) == Answer(output, "", ())


@pytest.mark.parametrize("name", SAMPLES)
def test_no_marker_begins_another(name: str) -> None:
    """Otherwise the result would depend on how the output is split."""
    markers = DIALECTS[name].marks
    assert not [(one, other) for one in markers for other in markers if one != other and other.startswith(one)]


def hostile_outputs(dialect: Dialect) -> list[str]:
    markers = list(dialect.marks)
    repeated = [marker * (200_000 // len(marker)) for marker in [*markers, "".join(markers), *BODIES]]
    opened = [markers[0] + "<" * 200_000, " " * 200_000, "{" * 200_000, "[" * 200_000]
    inside = [
        marker + body * (200_000 // len(body))
        for marker in markers
        for body in (
            "<parameter=",
            "<parameter=a>",
            " ",
            "<arg_key>a</arg_key>",
            "to=",
            '"',
            "a",
            "[",
            "-",
            "f( ",
            "f(a=1,",
        )
    ]
    return repeated + opened + inside


@pytest.mark.parametrize(
    "name",
    [
        *("Qwen3", "Qwen3.5", "DeepSeek V4", "DeepSeek R1", "Kimi K2", "gpt-oss", "Llama 4"),
        *("OLMo 3 Think", "Solar Open"),
    ],
)
def test_hostile_outputs_take_linear_time(name: str) -> None:
    for output in hostile_outputs(DIALECTS[name]):
        seconds = seconds_on_an_idle_core(partial(parse, DIALECTS[name], output, State(), TOOLS))
        assert seconds < 1, output[:80]


@pytest.mark.parametrize(
    ("body", "size"), [("word and\n", 1_000_000), (" ", 200_000), ("<", 200_000), ("<tool_call>{", 200_000)]
)
def test_a_long_output_in_small_chunks_takes_linear_time(body: str, size: int) -> None:
    parser, output = Parser(DIALECTS["Qwen3"]), "<think>" + body * (size // len(body))

    def feed() -> None:
        for start in range(0, len(output), 4):
            parser.feed(output[start : start + 4])
        parser.finish()

    assert seconds_on_an_idle_core(feed) < 2


def test_only_text_that_may_be_a_marker_is_delayed() -> None:
    parser = Parser(DIALECTS["Qwen3"])
    shown = ["".join(event.text for event in parser.feed(piece)) for piece in ("a <", "b", " <to", "ols>", "\n", "c")]
    assert shown == ["a", " <b", "", " <tools>", "", "\nc"]


def test_a_call_comes_as_soon_as_it_is_complete() -> None:
    parser = Parser(DIALECTS["Qwen3"])
    assert parser.feed('Hm.\n<tool_call>{"name": "now"}</tool_call')[0].text == "Hm."
    assert re.match("Call", repr(parser.feed(">")[0]))
