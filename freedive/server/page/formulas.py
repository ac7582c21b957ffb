r"""Formulas in Markdown: $...$, $$...$$, \(...\) and \[...\] become MathML.

A formula that cannot be converted is shown as it was written. The library's own HTML is not safe, because it undoes the
escaping of texts: so only its tree is used, and written here with known elements and attributes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from html import unescape
from typing import Any
from xml.etree.ElementTree import Element

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict

MAX_LENGTH = 1000
"""The most characters of a formula that is converted: the time that this takes grows with its length."""
NUM_KEPT = 1024
"""Formulas whose MathML is kept: a growing block is rendered again and again."""

ELEMENTS = frozenset(
    re.findall(
        r"\w+",
        "math menclose merror mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts mroot mrow ms "
        "mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover none",
    )
)
ATTRIBUTES = frozenset(
    re.findall(
        r"\w+",
        "accent accentunder align columnalign columnlines columnspacing depth display displaystyle fence form "
        "frame height largeop linebreak linethickness lquote lspace mathcolor mathbackground mathsize "
        "mathvariant maxsize minsize movablelimits notation rowlines rowspacing rquote rspace scriptlevel "
        "separator stretchy symmetric tabindex voffset width",
    )
)
"""Attributes that are written; others, such as links and styles, are dropped."""
VALUE = re.compile(r"[\w#.,%+\- ]{0,100}")

DOLLARS = re.compile(r"\$(?![\s$])((?:\\.|[^$\\\n]){1,1000})(?<!\s)\$(?![\d$])")
"""A formula between dollars on one line, without spaces inside them and without a digit behind them."""
MONEY = re.compile(r"\d[\d.,]*\s+[^\W\d_]{2}")
"""How a text begins that only stands between two amounts of money."""
CLOSING = {"$$": "$$", "\\[": "\\]", "\\(": "\\)"}
DISPLAYED = ("$$", "\\[")


def add_formulas(markdown: MarkdownIt) -> None:
    """Lets ``markdown`` render formulas."""
    options: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}
    markdown.block.ruler.before("fence", "formula_block", _block, options)
    markdown.inline.ruler.before("escape", "formula", _inline)
    markdown.add_render_rule("formula", _rendered)
    markdown.add_render_rule("formula_block", _rendered)


def _block(state: StateBlock, first: int, last: int, silent: bool) -> bool:
    r"""Reads a block that begins with $$ or \[ and ends with a blank line, or with a line at whose end it is closed.

    So nothing that comes later changes a block that has ended: a formula that is still open is a paragraph.
    """
    if state.is_code_block(first):
        return False
    start = state.bMarks[first] + state.tShift[first]
    opening = state.src[start : start + 2]
    if opening not in DISPLAYED:
        return False
    if silent:
        return True
    lines: list[str] = []
    line = first
    while line < last and not state.isEmpty(line) and state.sCount[line] >= state.blkIndent:
        lines.append(state.getLines(line, line + 1, state.blkIndent, True).rstrip())
        line += 1
        if (len(lines) > 1 or len(lines[0].strip()) > 3) and lines[-1].endswith(CLOSING[opening]):
            break
    state.line = line
    content = "\n".join(lines).strip()
    inside = content[2:-2]
    if len(content) > 4 and content.endswith(CLOSING[opening]) and CLOSING[opening] not in inside:
        _push(state, "formula_block", content, inside, (first, line))
        return True
    state.push("paragraph_open", "p", 1).map = [first, line]
    inline = state.push("inline", "", 0)
    inline.content, inline.map, inline.children = content, [first, line], []
    state.push("paragraph_close", "p", -1)
    return True


def _inline(state: StateInline, silent: bool) -> bool:
    """Reads a formula in a text."""
    opening = state.src[state.pos : state.pos + 2]
    if opening in CLOSING:
        start = state.pos + 2
        end = state.src.find(CLOSING[opening], start, start + MAX_LENGTH + 2)
        if end <= start:
            return False
        inside, end = state.src[start:end], end + 2
    else:
        found = DOLLARS.match(state.src, state.pos) if opening.startswith("$") else None
        if not found or MONEY.match(found[1]) or _is_in_word(state):
            return False
        inside, end = found[1], found.end()
    if not silent:
        _push(state, "formula", state.src[state.pos : end], inside)
    state.pos = end
    return True


def _is_in_word(state: StateInline) -> bool:
    return state.pos > 0 and state.src[state.pos - 1].isalnum() and state.src[state.pos - 1].isascii()


def _push(state: Any, kind: str, written: str, inside: str, lines: tuple[int, int] | None = None) -> None:
    token = state.push(kind, "math", 0)
    token.content, token.meta = inside, {"written": written}
    token.map = list(lines) if lines else None


def _rendered(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    written = token.meta["written"]
    is_block = token.type == "formula_block"
    math = mathml(token.content.strip(), is_display=written.startswith(DISPLAYED))
    html = math or f'<code class="formula">{escapeHtml(written)}</code>'
    return f"<p>{html}</p>\n" if is_block else html


@lru_cache(NUM_KEPT)
def mathml(latex: str, *, is_display: bool) -> str:
    """Returns a formula as safe MathML, "" if it is too long, faulty, or defines commands of its own."""
    from latex2mathml.converter import Converter  # imported here: only answers with formulas need its tables of symbols

    if len(latex) > MAX_LENGTH or re.search(r"\\(?:re|provide)?newcommand|\\def\b|\\let\b", latex):
        return ""  # commands that call each other can grow without limit
    try:
        tree = Converter(display="block" if is_display else "inline").convert_to_element(latex)
        if is_display:
            tree.set("tabindex", "0")  # it may be wider than the page; the keyboard scrolls what has the focus
        return "".join(_safe(tree))
    except Exception:  # the library has many: for its own errors, for missing arguments, for deep nesting
        return ""


def _safe(node: Element) -> Iterator[str]:
    """Yields an element as HTML. Raises ValueError for an element that is not known."""
    if node.tag not in ELEMENTS:
        raise ValueError(node.tag)
    known = {name: value for name, value in node.attrib.items() if name in ATTRIBUTES and VALUE.fullmatch(value)}
    yield f"<{node.tag}" + "".join(f' {name}="{value}"' for name, value in known.items()) + ">"
    yield escapeHtml(unescape(node.text or ""))
    for child in node:
        yield from _safe(child)
    yield f"</{node.tag}>{escapeHtml(unescape(node.tail or ''))}"
