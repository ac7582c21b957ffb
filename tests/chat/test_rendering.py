"""The chat page's Markdown."""

from __future__ import annotations

import re
from functools import partial
from html import unescape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pace import seconds_on_an_idle_core

from freedive.server.page.rendering import MARKDOWN, MAX_RENDERED, LiveMarkdown, to_html
from freedive.server.page.routes import choose_language


@pytest.mark.parametrize(
    "attack",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "text <b onclick=x>b</b>",
        "[x](javascript:alert(1))",
        "[x](data:text/html,<script>alert(1)</script>)",
        "[x](vbscript:x)",
        "<javascript:alert(1)>",
        "![x](https://example.org/?secret)",
        "```<script>alert(1)</script>\n</code></pre><img src=x onerror=alert(1)>\n```",
        '```"onmouseover="x\ncode\n```',
        "    </code><script>x</script>",
        '[x](https://a.b "\\"onclick=x")',
        "| <i> |\n|:-:|\n| <script> |",
    ],
)
def test_nothing_a_model_writes_becomes_active(attack: str) -> None:
    html = MARKDOWN.render(attack)
    tags = "p|a|pre|code|span|figure|figcaption|button|table|thead|tbody|tr|th|td"
    assert all(re.fullmatch(tags, tag) for tag in re.findall(r"<(\w+)", html))
    assert not re.search(r"<[^>]*\s(on\w+|style|src)=(?=[^>]*>)", re.sub(r'"[^"]*"', '""', html))
    assert not re.search(r'href="(javascript|data|vbscript):', html)


def test_code_is_highlighted_by_its_language() -> None:
    html = MARKDOWN.render("```python\ndef f(): pass\n```")
    assert '<span class="k">def</span>' in html
    assert '<figcaption><span>python</span><button type="button" class="copy"' in html
    assert "plain &lt;text&gt;" in MARKDOWN.render("```no-such-language\nplain <text>\n```")


def test_cells_are_aligned_by_class() -> None:
    assert '<td class="right">1</td>' in MARKDOWN.render("| a |\n|--:|\n| 1 |")


def test_links_open_in_a_new_tab_without_a_referrer() -> None:
    assert 'target="_blank" rel="noopener noreferrer nofollow"' in MARKDOWN.render("[a](https://example.org)")


FRAGMENTS = [
    *[
        "para",
        "\n",
        "\n",
        "\n\n",
        "\n\n",
        "- item",
        "1. one",
        "  - nested",
        "> quote",
        "# head",
        "===",
        "---",
        "***",
        "*",
    ],
    *["```py\n", "```", "~~~", "    code", "\t", " ", "| a | b |", "|---|:-:|", "[x]: http://y", "[x]", "**b**", "`c`"],
    *["<div>", "1", ".", "#", "\r\n", "\u2028", "\x0c", "\\", "é", "汉字"],
]


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=25))
def test_a_growing_text_ends_as_the_whole_text_would(pieces: list[str]) -> None:
    live, settled, tail = LiveMarkdown(), "", ""
    for piece in pieces:
        done, tail = live.push(piece)
        settled += done
    assert settled + tail == MARKDOWN.render("".join(pieces).replace("\r", ""))


def test_settled_blocks_are_not_rendered_again() -> None:
    live = LiveMarkdown()
    for index in range(50):
        settled, tail = live.push(f"paragraph {index}\n\n")
        assert tail == f"<p>paragraph {index}</p>\n"
        assert settled == (f"<p>paragraph {index - 1}</p>\n" if index else "")


@pytest.mark.parametrize(
    ("cookie", "accepted", "chosen"),
    [
        ("", "", "en"),
        ("", "zh-CN,zh;q=0.9,en;q=0.8", "zh"),
        ("", "fr,de;q=0.5,zh-TW;q=0.1", "zh"),
        ("en", "zh-CN", "en"),
        ("xx", "fr", "en"),
    ],
)
def test_the_language_is_the_readers(cookie: str, accepted: str, chosen: str) -> None:
    assert choose_language(cookie, accepted, ["en", "zh"]) == chosen


@pytest.mark.parametrize("language", ["cpp", "java", "csharp", "fan", "makefile", "python", "html"])
def test_code_is_highlighted_in_bounded_time(language: str) -> None:
    for part in ("\n", "a\n", '"\\', "a ", " ", "="):
        code = (part * 50_000)[:50_000]
        MARKDOWN.render(f"```{language}\nx\n```")
        block = f"```{language}\n{code}\n```"
        assert seconds_on_an_idle_core(partial(MARKDOWN.render, block), times=2) < 0.5
        html = MARKDOWN.render(block)
        text = re.search(r"<code>(.*)</code>", html, re.DOTALL)[1]
        assert unescape(re.sub(r"<[^>]*>", "", text)) == code + "\n"


def test_a_text_of_many_megabytes_is_shown_as_written() -> None:
    text = "> " * 20 + "*a* <b>\n" * MAX_RENDERED
    live, pieces = LiveMarkdown(), []
    live.push("*begun*")
    assert seconds_on_an_idle_core(lambda: pieces.append(live.push(text))) < 5
    [(settled, tail)] = pieces
    assert settled.startswith("<p><em>begun</em></p>\n<pre>&gt; ")
    assert tail == ""
    assert to_html(text).endswith("*a* &lt;b&gt;\n</pre>\n")
    assert seconds_on_an_idle_core(lambda: to_html(text)) < 5
