"""Formulas become MathML; money, faulty formulas and payloads stay text; a growing answer renders like a whole one."""

from __future__ import annotations

import re

import pytest
from markdown_it.rules_block import StateBlock
from pace import seconds_on_an_idle_core

from freedive.server.page.formulas import ATTRIBUTES, ELEMENTS, _block, mathml
from freedive.server.page.rendering import MARKDOWN, LiveMarkdown


@pytest.mark.parametrize(
    ("text", "display"),
    [
        ("so $x^2$ is", "inline"),
        (r"so \(x^2\) is", "inline"),
        ("so $$x^2$$ is", "block"),
        ("$$\nx^2\n$$", "block"),
        ("\\[\nx^2\n\\]\nand on", "block"),
        ("- item\n\n  $$\n  x^2\n  $$", "block"),
    ],
    ids=str,
)
def test_formulas_become_mathml(text: str, display: str) -> None:
    html = MARKDOWN.render(text)
    attributes = f'display="{display}"' + (' tabindex="0"' if display == "block" else "")
    assert f"<math {attributes}><mrow><msup><mi>x</mi><mn>2</mn></msup></mrow></math>" in html
    assert "$" not in html
    assert "\\" not in html


def test_lines_of_a_formula_are_no_markdown() -> None:
    html = MARKDOWN.render("$$\na\n- b\n= c\n# d\n$$")
    assert html.count("<math") == 1
    assert "<li>" not in html
    assert "<h1>" not in html


@pytest.mark.parametrize(
    "text",
    [
        "It costs $5 and $6.",
        "$5-$6",
        "from $10, or 20$ more",
        "$5 billion and US$ too",
        "a US$5 and AU$6",
        "`$x$`",
        "\\$x\\$",
        "$ x $",
        "$$",
        "$$ $$",
        "\\[",
        "$x",
    ],
)
def test_other_texts_stay_text(text: str) -> None:
    html = MARKDOWN.render(text)
    assert "<math" not in html
    assert html.strip() == html.replace("<math", "").strip()


@pytest.mark.parametrize(
    "formula", [r"\frac", r"\left(", "{" * 900, r"\begin{matrix}", r"\newcommand{\a}{\a\a}\a", "x" * 1001]
)
def test_faulty_formulas_are_shown_as_written(formula: str) -> None:
    html = MARKDOWN.render(f"\\[{formula}\\]")
    assert "<math" not in html
    assert formula.strip("\\")[:20] in html


PAYLOADS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&amp;lt;script&amp;gt;",
    '"><svg onload=alert(1)>',
    "&#60;script&#62;",
    "</math><script>alert(1)</script>",
]
WAYS = ["{}", r"\text{{{}}}", r"\mbox{{{}}}", r"\href{{{}}}{{x}}", r"\style{{{}}}{{x}}", r"\class{{{}}}{{x}}"]
WAYS += [
    r"\color{{{}}}x",
    r"\operatorname{{{}}}",
    r"\verb|{}|",
    r"\tag{{{}}}",
    r"\begin{{array}}{{{}}}x\end{{array}}",
    r"\hspace{{{}}}",
    r"\left{}x\right)",
    r"\rule{{{}}}{{1em}}",
    r"\frac{{{}}}{{2}}",
]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads_show_as_text(way: str, payload: str) -> None:
    for text in (f"${way.format(payload)}$", f"\\[\n{way.format(payload)}\n\\]"):
        html = MARKDOWN.render(text)
        for tag, attributes in re.findall(r"<(/?[\w]+)([^<>]*)>", html):
            assert tag.strip("/") in ELEMENTS | {"p", "code"}
            assert set(re.findall(r'\s([\w-]+)="', attributes)) <= ATTRIBUTES | {"class"}
        assert not re.search(r"<(script|img|svg|a)\b", html)


@pytest.mark.parametrize("link", ["javascript:alert(1)", "https://evil.example"])
def test_links_in_formulas_are_dropped(link: str) -> None:
    html = mathml(rf"\href{{{link}}}{{x}}", is_display=False)
    assert "<mi>x</mi>" in html
    assert link not in html


@pytest.mark.parametrize(
    "text", ["$" * 20_000, "\\(" * 20_000, "$a " * 10_000, "\\[\n" * 5_000, "$$\n\n" * 5_000, "$x$" * 5_000]
)
def test_hostile_texts_take_time_in_proportion(text: str) -> None:
    assert seconds_on_an_idle_core(lambda: MARKDOWN.render(text)) < 5


def test_the_lines_of_a_formula_are_not_copied_again_and_again() -> None:
    state = StateBlock("$$\n" + "a\n" * 200_000, MARKDOWN, {}, [])
    assert seconds_on_an_idle_core(lambda: _block(state, 0, state.lineMax, silent=False)) < 1.5
    assert state.line == 200_001


@pytest.mark.parametrize("atom", ["{^\\hat", "&{1", "\\substack{^'", "1\"'", "x'", "\\sqrt{", "\\left("])
def test_the_time_of_one_formula_is_bounded(atom: str) -> None:
    assert seconds_on_an_idle_core(lambda: mathml((atom * 1000)[:1000], is_display=True), times=3) < 0.5


def test_a_growing_text_renders_like_the_whole() -> None:
    text = (
        "Start $a$ and\n\n$$\nx\n- y\n$$\nnext \\(b\\)\n\n\\[\nopen\n- item\n\nafter\n\n$$z$$\n"
        "\n- a\n\n  $$\n  q\n  $$\n"
        "\nend $5 and $6\n"
    )
    for size in (1, 3, 7):
        live, html, tail = LiveMarkdown(), "", ""
        for start in range(0, len(text), size):
            settled, tail = live.push(text[start : start + size])
            html += settled
        assert html + tail == MARKDOWN.render(text)
