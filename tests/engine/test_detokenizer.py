"""Stop strings: no part of them is shown, and no other text is delayed."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.engine.detokenizer import Automaton, Detokenizer
from freedive.text.dialects.codecs import json_calls
from freedive.text.dialects.dialect import Call, Dialect, Event, Mark
from freedive.text.dialects.parser import Answer, Parser, joined


class Letters:
    """A tokenizer whose token ids are code points."""

    def push(self, token_id: int) -> str:
        return chr(token_id)


def text_of(events: Sequence[Event]) -> str:
    return joined(events).content


def read(text: str, *stop: str) -> tuple[list[str], str | None]:
    stream = Detokenizer(Letters(), stop)
    pieces = []
    for letter in text:
        pieces.append(text_of(stream.push(ord(letter))))
        if stream.stopped:
            break
    return [*pieces, text_of(stream.close())], stream.stop_string


def test_only_text_that_may_become_a_stop_string_is_delayed() -> None:
    assert read("ab.\n\nQ", "\n\nQ:") == (["a", "b", ".", "", "", "", "\n\nQ"], None)
    assert read("ab\n\nQ:x", "\n\nQ:") == (["a", "b", "", "", "", "", ""], "\n\nQ:")
    assert read("aab", "ab") == (["", "a", "", ""], "ab")
    assert read("aac", "ab") == (["", "a", "ac", ""], None)


def test_without_stop_strings_no_text_is_delayed() -> None:
    assert read("abc") == (["a", "b", "c", ""], None)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("abdc", max_size=30),
    stop=st.lists(st.text("abd", min_size=1, max_size=5), max_size=4),
)
def test_the_text_is_everything_before_the_stop_string_that_ends_first(text: str, stop: list[str]) -> None:
    ends = sorted((text.find(item) + len(item), text.find(item), item) for item in stop if item in text)
    pieces, found = read(text, *stop)
    assert "".join(pieces) == (text[: ends[0][1]] if ends else text)
    assert found == (ends[0][2] if ends else None)


@settings(max_examples=200, deadline=None)
@given(text=st.text("abc", max_size=30), stop=st.lists(st.text("ab", min_size=1, max_size=5), max_size=3))
def test_delayed_text_is_always_the_beginning_of_a_stop_string(text: str, stop: list[str]) -> None:
    stream, shown = Detokenizer(Letters(), tuple(stop)), ""
    for count, letter in enumerate(text, 1):
        shown += text_of(stream.push(ord(letter)))
        if stream.stopped:
            break
        held = text[len(shown) : count]
        assert held == "" or any(item.startswith(held) and item != held for item in stop)


THINKING = Dialect(
    {"<think>": Mark.THINK, "</think>": Mark.END_THINK, "[": Mark.CALL, "]": Mark.END_CALL}, (json_calls,)
)
CALL = '[{"name": "f", "arguments": {"a": 1}}]'


def seen(output: str, *stop: str) -> tuple[Answer, str | None, int]:
    """Returns the shown part of ``output``, the stop string that ended it, and the number of letters read by then."""
    stream = Detokenizer(Letters(), stop, Parser(THINKING, tools=[{"function": {"name": "f"}}]))
    events, num_read = [], 0
    for letter in output:
        events += stream.push(ord(letter))
        num_read += 1
        if stream.stopped:
            break
    return joined([*events, *stream.close()]), stream.stop_string, num_read


def test_stop_strings_in_thoughts_calls_and_markers_do_nothing() -> None:
    output = f"<think>one}} two</think>\n\nSo: {CALL}"
    whole = seen(output)
    assert whole[0] == Answer("So:", "one} two", (Call("f", '{"a": 1}'),))
    for stop in ("}", '"', "<", "think", "</think>", "name", "one", "]", "[", "k>\n"):
        assert seen(output, stop) == (whole[0], None, len(output))


def test_stop_strings_end_the_text_after_the_thoughts() -> None:
    assert seen("<think>b c</think>a b c", "b")[:2] == (Answer("a ", "b c", ()), "b")
    assert seen("<think>b c</think>a\nb c", "\n") == (Answer("a", "b c", ()), "\n", len("<think>b c</think>a\nb"))
    assert seen(f"x {CALL} y", "y")[0] == Answer("x", "", (Call("f", '{"a": 1}'),))


def test_stop_strings_in_a_call_that_is_cut_off_do_nothing() -> None:
    output = 'Well.[{"name": "f", "argum'
    for stop in ('"', "[", "name", "{", "m"):
        assert seen(output, stop) == (seen(output)[0], None, len(output))
    assert seen(output, "ll.") == (Answer("We", "", ()), "ll.", len("Well."))


def test_stop_strings_do_not_reach_over_a_call() -> None:
    assert seen(f"ab{CALL}cd", "bc")[:2] == (Answer("abcd", "", (Call("f", '{"a": 1}'),)), None)


def test_white_space_is_shown_at_once_where_no_marker_can_follow() -> None:
    stream = Detokenizer(Letters(), ("\n\n",), Parser(THINKING.without_calls()))
    assert [text_of(stream.push(ord(letter))) for letter in "a b\n\n"] == ["a", " ", "b", "", ""]
    assert stream.stop_string == "\n\n"


def test_many_long_stop_strings_cost_no_more_than_one() -> None:
    class Counting(Automaton):
        num_looks = 0

        def step(self, state: int, char: str) -> int:
            while (following := self._next.get((state, char))) is None and state:
                state, self.num_looks = self._suffix_links[state], self.num_looks + 1
            self.num_looks += 1
            return following or 0

    stops = [*("a" * size + "b" for size in range(64, 127)), "ab" * 512]
    text = ("a" * 63 + "ab" * 100 + "c") * 10
    automaton, state = Counting(stops), 0
    automaton.num_looks = 0  # those of its construction
    for char in text:
        state = automaton.step(state, char)
    assert automaton.num_looks <= 2 * len(text)
