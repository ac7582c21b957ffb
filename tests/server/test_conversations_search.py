"""Search finds words in English and Chinese, the best and newest first, and no text is a wrong query."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from freedive.server.conversations.records import ConversationDraft, FileDraft, MessageDraft, now
from freedive.server.conversations.search import Snippet
from freedive.server.conversations.store import ConversationStore
from freedive.server.conversations.words import indexed, terms

DAY_MS = 86_400_000

TEXTS = {
    "rust": ("The borrow checker", "Explain the borrow checker of Rust, please."),
    "gradient": ("梯度下降", "请解释一下梯度下降法。学习率怎么选？"),
    "weather": ("天气", "明天北京的天气怎么样？用Python写一个程序。"),
    "coffee": ("Café", "The café's crème brûlée and a naïve question about C++ and don't"),
    "kana": ("日本語", "ひらがなとカタカナ、漢字。"),
    "rare": ("Ideographs", "𠮷野家 is written with a rare character, 😀 and 𝒳."),
    "markup": ("<b>bold</b>", '<script>alert(1)</script> & "quotes" AND NOT OR NEAR(x, 2)'),
}


@pytest.fixture(scope="module")
def store() -> Iterator[ConversationStore]:
    store = ConversationStore()
    for name, (title, text) in TEXTS.items():
        message = MessageDraft(role="user", content=text, reasoning="hiddenthought")
        file = FileDraft(name=f"{name}-report.pdf", text="filecontent")
        draft = ConversationDraft(title=title, folder=name, messages=[message], leaf=0, files=[file])
        store.create("ann", draft)
    store.create("bob", ConversationDraft(title="borrow 梯度"))
    yield store
    store.close()


def found(store: ConversationStore, query: str) -> set[str]:
    return {hit.conversation.folder for hit in store.search("ann", query)}


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("borrow", {"rust"}),
        ("BORROW Checker", {"rust"}),
        ("checker explain", {"rust"}),
        ("borr", {"rust"}),
        ("borr checker", set()),
        ("梯", {"gradient"}),
        ("梯度", {"gradient"}),
        ("下降", {"gradient"}),
        ("度梯", set()),
        ("学习率", {"gradient"}),
        ("怎么", {"gradient", "weather"}),
        ("北京 天气", {"weather"}),
        ("北京天气", set()),
        ("用Python写", {"weather"}),
        ("python", {"weather"}),
        ("cafe", {"coffee"}),
        ("café brulee", {"coffee"}),
        ("c++ cafe", {"coffee"}),
        ("don't", {"coffee"}),
        ("カタカナ", {"kana"}),
        ("語", {"kana"}),
        ("𠮷", {"rare"}),
        ("gradient-report.pdf", {"gradient"}),
        ("report", set(TEXTS)),
        ("hiddenthought", set()),
        ("filecontent", set()),
        ("", set()),
        ("   ", set()),
        ("?!", set()),
        ("missing", set()),
    ],
)
def test_words_are_found(store: ConversationStore, query: str, names: set[str]) -> None:
    assert found(store, query) == names


HOSTILE = [
    *('"', '""', "'", "*", "a*", "(", ")", "AND", "OR OR", "NOT", "NEAR(", "NEAR(a b, 2)", "text:", "word : a", "-a"),
    *("^a", "{text}", "a + b", '" OR 1=1 --', "\0", "a\0b", "%", "_", "\\", "e\u0301\u0301", "\u202e", "🎉", '"a'),
    *("'; DROP TABLE word; --", "rank MATCH 'bm25()'", "\ud800", "a" * 100_000, "a " * 50_000, "梯" * 50_000),
]


@pytest.mark.parametrize("query", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_plain_queries(store: ConversationStore, query: str) -> None:
    assert found(store, query) <= set(TEXTS)
    assert found(store, f"borrow {query}") <= {"rust"}


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_any_text_is_a_query(query: str) -> None:
    shared = ConversationStore()
    shared.create("ann", ConversationDraft(title=query.encode(errors="ignore").decode()[:300]))
    hits = shared.search("ann", query)
    assert all(0 <= start < end for hit in hits for start, end in hit.snippet.marks)
    shared.close()


@given(st.text(st.sampled_from("ab梯度,. -é")))
def test_a_text_is_found_by_each_of_its_words(text: str) -> None:
    store = ConversationStore()
    store.create("ann", ConversationDraft(title="x", messages=[MessageDraft(role="user", content=text)]))
    for word in text.split():
        assert len(store.search("ann", word)) == bool(terms(word)), word
    store.close()


def marked(snippet: Snippet) -> list[str]:
    units = snippet.text.encode("utf-16-le")
    return [units[2 * start : 2 * end].decode("utf-16-le") for start, end in snippet.marks]


@pytest.mark.parametrize(
    ("query", "marks"),
    [
        ("borrow", ["borrow"]),
        ("checker borr", ["borr", "checker"]),
        ("chec", ["chec"]),
        ("梯度", ["梯度"]),
        ("cafe", ["caf\u00e9"]),
        ("用python写", ["用Python写"]),
        ("character rare", ["rare", "character"]),
        ("𝒳", []),
        ("alert", ["alert"]),
    ],
)
def test_snippets_mark_the_matches_in_utf16_units(store: ConversationStore, query: str, marks: list[str]) -> None:
    hits = store.search("ann", query)
    assert marked(hits[0].snippet)[: len(marks)] == marks if hits else marks == []


def test_a_snippet_shows_the_place_of_the_match_in_a_long_text() -> None:
    store = ConversationStore()
    text = f"{'filler 😀 ' * 1000}needle {'filler ' * 1000}"
    id = store.create("ann", ConversationDraft(messages=[MessageDraft(role="user", content=text)], leaf=0)).id
    [hit] = store.search("ann", "needle")
    assert marked(hit.snippet) == ["needle"]
    assert len(hit.snippet.text) < 250
    assert hit.snippet.message == store.read("ann", id).messages[0].id
    store.close()


def test_titles_and_new_conversations_stand_first() -> None:
    store = ConversationStore()

    def add(title: str, text: str, days: int) -> None:
        times: dict[str, Any] = {"created": now() - days * DAY_MS, "updated": now() - days * DAY_MS}
        store.create("ann", ConversationDraft(title=title, messages=[MessageDraft(role="user", content=text)], **times))

    add("old", "a tensor", 400)
    add("new", "a tensor", 1)
    add("tensor", "in the title", 400)
    add("other", "nothing", 0)
    assert [hit.conversation.title for hit in store.search("ann", "tensor")] == ["tensor", "new", "old"]
    assert [hit.conversation.title for hit in store.search("ann", "tensor", 1)] == ["tensor"]
    store.close()


def test_words_may_stand_in_different_messages() -> None:
    store = ConversationStore()
    messages = [MessageDraft(role="user", content="alpha"), MessageDraft(role="assistant", content="beta", parent=0)]
    store.create("ann", ConversationDraft(title="gamma", messages=messages, leaf=1))
    assert len(store.search("ann", "alpha beta gamma")) == 1
    assert store.search("ann", "alpha delta") == []
    store.close()


def test_a_new_title_replaces_the_old_one_in_the_index(store: ConversationStore) -> None:
    id = store.create("cid", ConversationDraft(title="before")).id
    store.update("cid", id, title="after", named=True)
    assert store.search("cid", "before") == []
    assert store.search("cid", "after")[0].conversation.id == id


def test_characters_without_spaces_between_words_are_separated() -> None:
    assert indexed("用Python写").split() == ["用", "Python", "写"]
    assert [term.parts for term in terms("用Python写 x")] == [("用", "Python", "写"), ("x",)]
