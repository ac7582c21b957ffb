"""Stop strings: nothing of them is shown, and nothing else is kept back."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.engine.stop import TextStream
from freedive.text.dialects.dialect import Event
from freedive.text.dialects.parser import joined


class Letters:
    """Token id = code point."""

    def push(self, token_id: int) -> str:
        return chr(token_id)


def text_of(events: Sequence[Event]) -> str:
    return joined(events).content


def read(text: str, *stop: str) -> tuple[list[str], str | None]:
    stream = TextStream(Letters(), stop)
    pieces = []
    for letter in text:
        pieces.append(text_of(stream.push(ord(letter))))
        if stream.stopped:
            break
    return [*pieces, text_of(stream.close())], stream.stop_string


def test_text_that_may_become_a_stop_string_is_held_back_and_the_rest_is_not() -> None:
    assert read("ab.\n\nQ", "\n\nQ:") == (["a", "b", ".", "", "", "", "\n\nQ"], None)
    assert read("ab\n\nQ:x", "\n\nQ:") == (["a", "b", "", "", "", "", ""], "\n\nQ:")
    assert read("aab", "ab") == (["", "a", "", ""], "ab")
    assert read("aac", "ab") == (["", "a", "ac", ""], None)


def test_without_stop_strings_nothing_is_held_back() -> None:
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
def test_held_back_text_is_always_the_beginning_of_a_stop_string(text: str, stop: list[str]) -> None:
    stream, shown = TextStream(Letters(), tuple(stop)), ""
    for count, letter in enumerate(text, 1):
        shown += text_of(stream.push(ord(letter)))
        if stream.stopped:
            break
        held = text[len(shown) : count]
        assert held == "" or any(item.startswith(held) and item != held for item in stop)
