"""Renders Markdown from a model as safe HTML, complete or while it is still generated."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Sequence

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import format
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.token import Text, _TokenType

from freedive.server.page.formulas import add_formulas

FRAME_S = 0.04
"""Seconds between two updates of a growing answer, at least."""
RENDER_SHARE = 0.025
"""The most of a core for rendering one answer: long blocks, which are slow to render, are updated less often."""

HIGHLIGHT_S = 0.05
"""CPU seconds for highlighting one code block: some lexers take quadratic time for some texts."""
MAX_HIGHLIGHTED = 10_000
"""The most characters of a code block that are highlighted."""
MAX_RENDERED = 1 << 20
"""The most characters of a text that are rendered, which may take half a minute; what is longer is shown as written."""
LANGUAGES = frozenset(
    re.findall(
        r"\S+",
        "bash c c++ cpp css diff docker dockerfile go golang html java javascript js json jsx kotlin latex lua make "
        "makefile markdown md objective-c php powershell py python r rb ruby rs rust scala scss sh shell sql swift "
        "tex toml ts tsx typescript xml yaml yml zsh",
    )
)
"""Highlighted languages: no single step of their lexers takes long for any text."""


def _markdown() -> MarkdownIt:
    """Returns a renderer of CommonMark, tables and formulas, without raw HTML, images and reference links.

    Raw HTML is shown as text, and images become links, so that they load nothing. Without reference links each block
    can be rendered alone, so a growing text never changes blocks before its last.
    """
    markdown = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
    markdown.disable(["reference", "image", "html_block", "html_inline"])
    add_formulas(markdown)
    for name, rule in {
        "fence": _code,
        "code_block": _code,
        "link_open": _link,
        "table_open": _table,
        "th_open": _cell,
        "td_open": _cell,
    }.items():
        markdown.add_render_rule(name, rule)
    return markdown


def _code(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    token = tokens[index]
    language = token.info.split(maxsplit=1)[0] if token.info.strip() else ""
    code = _highlighted(token.content, language)
    copy = '<button type="button" class="copy" data-text="copy"></button>'
    caption = f"<figcaption><span>{escapeHtml(language)}</span>{copy}</figcaption>"
    return f'<figure class="code">{caption}<pre tabindex="0"><code>{code}</code></pre></figure>\n'


def _highlighted(code: str, language: str) -> str:
    lexer = get_lexer_by_name(language if language.lower() in LANGUAGES else "text", stripnl=False, ensurenl=False)
    tokens = _in_time(lexer.get_tokens(code[:MAX_HIGHLIGHTED]), code)
    return str(format(tokens, HtmlFormatter(nowrap=True)))


def _in_time(tokens: Iterable[tuple[_TokenType, str]], code: str) -> Iterator[tuple[_TokenType, str]]:
    """Yields ``tokens`` until :data:`HIGHLIGHT_S` has passed, then the rest of ``code`` as plain text."""
    position, deadline = 0, time.thread_time() + HIGHLIGHT_S
    for kind, text in tokens:
        if time.thread_time() > deadline:
            break
        yield kind, text
        position += len(text)
    yield Text, code[position:]


def _link(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    tokens[index].attrs |= {"target": "_blank", "rel": "noopener noreferrer nofollow"}
    return self.renderToken(tokens, index, options, env)


def _table(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """Lets a table have the focus: it may be wider than the page, and then the keyboard scrolls it."""
    tokens[index].attrs["tabindex"] = "0"
    return self.renderToken(tokens, index, options, env)


def _cell(self: RendererHTML, tokens: Sequence[Token], index: int, options: OptionsDict, env: EnvType) -> str:
    """Renders a cell with its alignment as a class, because the page's security policy forbids inline styles."""
    style = tokens[index].attrs.pop("style", None)
    if style:
        tokens[index].attrs["class"] = str(style).removeprefix("text-align:")
    return self.renderToken(tokens, index, options, env)


MARKDOWN = _markdown()


def to_html(text: str) -> str:
    """Returns a whole text as HTML, one of more than :data:`MAX_RENDERED` characters as it was written."""
    plain = text.replace("\r", "")
    return MARKDOWN.render(plain) if len(plain) <= MAX_RENDERED else _as_written(plain)


def _as_written(text: str) -> str:
    return f"<pre>{escapeHtml(text)}</pre>\n"


class LiveMarkdown:
    """Renders a growing text; complete blocks are rendered once, and only the last block is rendered again."""

    def __init__(self) -> None:
        self._tail = ""
        self._num_chars = 0

    def push(self, text: str) -> tuple[str, str]:
        """Adds ``text`` and returns (HTML of the blocks that it completed, HTML of the incomplete last block)."""
        text = text.replace("\r", "")
        self._num_chars += len(text)
        if self._num_chars > MAX_RENDERED:
            before, self._tail = self._tail, ""
            return MARKDOWN.render(before) + _as_written(text), ""
        self._tail += text
        settled = ""
        if "\n" in text:
            settled, self._tail = _split(self._tail)
        return MARKDOWN.render(settled), MARKDOWN.render(self._tail)


def _split(text: str) -> tuple[str, str]:
    """Cuts ``text`` before its last block that begins on a complete line; blocks before it cannot change any more."""
    complete = text[: text.rfind("\n") + 1]
    blocks = [token for token in MARKDOWN.parse(complete) if token.level == 0 and token.nesting >= 0]
    first = blocks[-1].map[0] if blocks and blocks[-1].map else 0
    lines = text.split("\n")
    cut = sum(len(line) + 1 for line in lines[:first])
    return text[:cut], text[cut:]
