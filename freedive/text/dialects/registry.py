"""The dialects of the model families, found by the markers in a chat template or a vocabulary."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import replace

from freedive.text.dialects.codecs import (
    BRACED,
    NamedJson,
    Tagged,
    braced_calls,
    json_calls,
    json_items,
    keyword_calls,
    pythonic_calls,
)
from freedive.text.dialects.dialect import Dialect, Mark, Writing, marks
from freedive.text.dialects.messages import HARMONY, MUSE, SOLAR

_THOUGHTS = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),  # Mistral
    ("<|channel>thought", "<channel|>"),  # Gemma 4
    ("Here is my thought process:", "Here is my response:"),  # Granite 3.2
)
_ANSWERS = (
    ("<answer>", "</answer>"),  # Hunyuan
    ("<response>", "</response>"),  # ERNIE, Granite 3.3
)

_DSML_NAMES = ("function_calls", "tool_calls", "calls")  # DeepSeek V3.2, V4, V4.1; V4.1 has a space in its tags
_DSML = Dialect(
    marks(
        SECTION=tuple(f"<｜DSML｜{space}{name}>" for name in _DSML_NAMES for space in ("", " ")),
        END_SECTION=tuple(f"</｜DSML｜{space}{name}>" for name in _DSML_NAMES for space in ("", " ")),
        CALL=('<｜DSML｜invoke name="', '<｜DSML｜ invoke name="'),
        END_CALL=("</｜DSML｜invoke>", "</｜DSML｜ invoke>"),
    ),
    (
        Tagged(
            re.compile(r'([^"<>\n]+)">\s*'),
            re.compile(r'<｜DSML｜ ?parameter name="([^"<>\n]+)" string="(true|false)">'),
            ("</｜DSML｜parameter>", "</｜DSML｜ parameter>"),
        ),
    ),
    must_close=True,
    ends_thought=True,
)


def _dsml(name: str, space: str = "") -> Dialect:
    """Returns the dialect of one DeepSeek version, with its call syntax."""
    tag = f"｜DSML｜{space}"
    writing = Writing(
        f'<{tag}invoke name="$name">\n$parameters</{tag}invoke>',
        before=f"<{tag}{name}>\n",
        after=f"</{tag}{name}>",
        parameter=f'<{tag}parameter name="$key" string="$string">$value</{tag}parameter>\n',
    )
    return replace(_DSML, writing=writing)


_DEEPSEEK = Dialect(
    marks(
        SECTION="<｜tool▁calls▁begin｜>",
        END_SECTION="<｜tool▁calls▁end｜>",
        CALL="<｜tool▁call▁begin｜>",
        END_CALL="<｜tool▁call▁end｜>",
    ),
    (
        NamedJson(re.compile(r"(?P<name>[^\s<]+)<｜tool▁sep｜>(?P<arguments>.*)", re.DOTALL)),  # V3.1
        NamedJson(re.compile(r"function<｜tool▁sep｜>(?P<name>[^\s<]+)\s*```(?:json)?(?P<arguments>.*)```", re.DOTALL)),
    ),
    separators=("<｜tool▁sep｜>",),
    ends_thought=True,
    writing=Writing(
        "<｜tool▁call▁begin｜>$name<｜tool▁sep｜>$arguments<｜tool▁call▁end｜>",
        before="<｜tool▁calls▁begin｜>",
        after="<｜tool▁calls▁end｜>",
    ),
)
_DEEPSEEK_R1 = replace(
    _DEEPSEEK,
    writing=Writing(
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>$name\n```json\n$arguments\n```<｜tool▁call▁end｜>",
        before="<｜tool▁calls▁begin｜>",
        after="<｜tool▁calls▁end｜>",
    ),
)

_KIMI = Dialect(
    marks(
        SECTION="<|tool_calls_section_begin|>",
        END_SECTION="<|tool_calls_section_end|>",
        CALL="<|tool_call_begin|>",
        END_CALL="<|tool_call_end|>",
    ),
    (
        NamedJson(
            re.compile(
                r"(?P<id>(?:functions\.)?(?P<name>[^\s:<]+)(?::\d+)?)\s*<\|tool_call_argument_begin\|>(?P<arguments>.*)",
                re.DOTALL,
            )
        ),
    ),
    separators=("<|tool_call_argument_begin|>",),
    ends_thought=True,
    writing=Writing(
        "<|tool_call_begin|>functions.$name:$number<|tool_call_argument_begin|>$arguments<|tool_call_end|>",
        before="<|tool_calls_section_begin|>",
        after="<|tool_calls_section_end|>",
    ),
)


def _hunyuan3(suffix: str) -> Dialect:
    """Returns the dialect of Hy3 and Hy4, in which every tag has the same suffix, such as ":opensource"."""
    close = f"</arg_value{suffix}>"
    key = rf"<arg_key{suffix}>([^<>\n]+)</arg_key{suffix}>\s*<arg_value{suffix}>"
    return Dialect(
        marks(
            THINK=f"<think{suffix}>",
            END_THINK=f"</think{suffix}>",
            SECTION=f"<tool_calls{suffix}>",
            END_SECTION=f"</tool_calls{suffix}>",
            CALL=f"<tool_call{suffix}>",
            END_CALL=f"</tool_call{suffix}>",
        ),
        (Tagged(re.compile(rf"\s*([^\s<>]+)\s*<tool_sep{suffix}>\s*"), re.compile(key), (close,)),),
        separators=(f"<tool_sep{suffix}>", f"<arg_key{suffix}>", f"</arg_key{suffix}>", f"<arg_value{suffix}>", close),
        must_close=True,
        ends_thought=True,
        writing=Writing(
            f"<tool_call{suffix}>$name<tool_sep{suffix}>\n$parameters</tool_call{suffix}>",
            before=f"<tool_calls{suffix}>\n",
            after=f"</tool_calls{suffix}>",
            parameter=f"<arg_key{suffix}>$key</arg_key{suffix}>\n<arg_value{suffix}>$value{close}\n",
        ),
    )


_HUNYUAN3_SECTION = re.compile(r"<tool_calls(:[^<>]+|)>")
_XML = (
    Tagged(
        re.compile(r"([^\s<>]+)>\s*"),
        re.compile(r"<parameter=([^<>\n]+)>\n?"),
        ("\n</parameter>", "</parameter>"),
    ),
)
_SEED = Dialect(
    marks(SECTION="<seed:tool_call>", END_SECTION="</seed:tool_call>", CALL="<function=", END_CALL="</function>"),
    _XML,
    must_close=True,
    writing=Writing(
        "<seed:tool_call>\n<function=$name>\n$parameters</function>\n</seed:tool_call>",
        parameter="<parameter=$key>$value</parameter>\n",
    ),
)
_QWEN_XML = Dialect(
    marks(SECTION="<tool_call>", END_SECTION="</tool_call>", CALL="<function=", END_CALL="</function>"),
    _XML,
    must_close=True,
    writing=Writing(
        "<tool_call>\n<function=$name>\n$parameters</function>\n</tool_call>",
        parameter="<parameter=$key>\n$value\n</parameter>\n",
    ),
)
_MIMO = replace(
    _QWEN_XML,
    codecs=(
        Tagged(re.compile(r"([^\s<>]+)>\s*"), re.compile(r"<parameter=([^<>\n]+)>"), ("</parameter>",)),  # as it is
    ),
    writing=Writing(
        "<tool_call>\n<function=$name>\n$parameters</function>\n</tool_call>",
        parameter="<parameter=$key>$value</parameter>\n",
    ),
)
_MINIMAX = Dialect(
    marks(
        SECTION="<minimax:tool_call>", END_SECTION="</minimax:tool_call>", CALL='<invoke name="', END_CALL="</invoke>"
    ),
    (
        Tagged(
            re.compile(r'([^"<>\n]+)">\s*'),
            re.compile(r'<parameter name="([^"<>\n]+)">'),
            ("</parameter>",),
        ),
    ),
    must_close=True,
    writing=Writing(
        '<invoke name="$name">\n$parameters</invoke>\n',
        before="<minimax:tool_call>\n",
        after="</minimax:tool_call>",
        parameter='<parameter name="$key">$value</parameter>\n',
    ),
)
_GLM = Dialect(
    marks(CALL="<tool_call>", END_CALL="</tool_call>"),
    (
        Tagged(
            re.compile(r"\s*([^\s<>]+)\s*"),
            re.compile(r"<arg_key>([^<>\n]+)</arg_key>\s*<arg_value>"),
            ("</arg_value>",),
        ),
    ),
    separators=("<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    must_close=True,
    writing=Writing(
        "<tool_call>$name\n$parameters</tool_call>",
        parameter="<arg_key>$key</arg_key>\n<arg_value>$value</arg_value>\n",
    ),
)
_NAMED = '{"name": "$name", "arguments": $arguments}'


def _list(begin: str, end: str = "") -> Writing:
    """Returns the syntax of a JSON list of all calls between ``begin`` and ``end``."""
    return Writing(_NAMED, before=f"{begin}[", between=", ", after=f"]{end}")


_PANGU = Dialect(
    marks(
        THINK="[unused16]",
        END_THINK="[unused17]",
        CALL=("[unused11]", "<|tool_call_start|>"),
        END_CALL=("[unused12]", "<|tool_call_end|>"),
    ),
    (json_calls, pythonic_calls),
    ends_thought=True,
    writing=_list("[unused11]", "[unused12]"),
)
_PANGU_NAMED = replace(_PANGU, writing=_list("<|tool_call_start|>", "<|tool_call_end|>"))
_MISTRAL = Dialect(
    marks(CALL="[TOOL_CALLS]"),
    (
        json_calls,
        NamedJson(
            re.compile(r"(?P<name>[^\s\[]+)(?:\[CALL_ID\](?P<id>[^\s\[]+))?\[ARGS\](?P<arguments>.*)", re.DOTALL)
        ),
    ),
    separators=("[CALL_ID]", "[ARGS]"),
    writing=_list("[TOOL_CALLS]"),
)
_MISTRAL_ARGS = replace(_MISTRAL, writing=Writing("[TOOL_CALLS]$name[ARGS]$arguments"))
_GRANITE3 = Dialect(marks(CALL="<|tool_call|>"), (json_calls,), writing=_list("<|tool_call|>"))
_PHI4 = Dialect(
    marks(CALL=("<|tool_call|>", "functools["), END_CALL="<|/tool_call|>"),
    (json_calls, json_items),
    writing=_list("<|tool_call|>", "<|/tool_call|>"),
)
_OLMO3 = Dialect(
    marks(CALL="<function_calls>", END_CALL="</function_calls>"),
    (keyword_calls, pythonic_calls, json_calls),
    writing=_list("<function_calls>", "</function_calls>"),
)
_HERMES = Dialect(
    marks(CALL="<tool_call>", END_CALL="</tool_call>"),
    (json_calls,),
    writing=Writing(f"<tool_call>\n{_NAMED}\n</tool_call>"),
)
_HUNYUAN = Dialect(
    marks(CALL="<tool_calls>", END_CALL="</tool_calls>"),
    (json_calls,),
    writing=_list("<tool_calls>", "</tool_calls>"),
)
_GEMMA4 = Dialect(
    marks(CALL="<|tool_call>", END_CALL="<tool_call|>"),
    (BRACED, braced_calls),
    separators=('<|"|>',),
    ends_thought=True,
    writing=Writing("<|tool_call>call:$name$arguments<tool_call|>"),  # a grammar writes quotes as in JSON
)
_BARE = Writing('{"name": "$name", "parameters": $arguments}', between="; ")
_LLAMA4 = Dialect(
    marks(CALL="<|python_start|>", END_CALL="<|python_end|>"),
    (json_calls, pythonic_calls),
    bare=True,
    writing=_BARE,
)
_LLAMA3 = Dialect(marks(CALL="<|python_tag|>"), (json_calls, pythonic_calls), bare=True, writing=_BARE)

_BY_SIGNS = (
    (("<|channel|>",), HARMONY),
    (("<atem:function_calls>",), MUSE),
    (("<|tool_call:begin|>",), SOLAR),
    (("｜DSML｜ calls",), _dsml("calls", " ")),
    (("｜DSML｜function_calls",), _dsml("function_calls")),
    (("｜DSML｜",), _dsml("tool_calls")),
    (("<｜tool▁call▁begin｜>", "```json"), _DEEPSEEK_R1),
    (("<｜tool▁call▁begin｜>",), _DEEPSEEK),
    (("<|tool_call_begin|>",), _KIMI),
    (("<seed:tool_call>",), _SEED),
    (("<minimax:tool_call>",), _MINIMAX),
    (("[unused9]",), _PANGU),
    (("<|tool_call_start|>",), _PANGU_NAMED),
    (("[TOOL_CALLS]", "[ARGS]"), _MISTRAL_ARGS),
    (("[TOOL_CALLS]",), _MISTRAL),
    (("<|/tool_call|>",), _PHI4),
    (("<|tool_call|>",), _GRANITE3),
    (("<|tool_call>",), _GEMMA4),
    (("<arg_key>",), _GLM),
    (("<function_calls>",), _OLMO3),
    (("<function=", "'</parameter>"), _MIMO),  # other templates write a line break before
    (("<function=",), _QWEN_XML),
    (("<tool_call>",), _HERMES),
    (("<tool_calls>",), _HUNYUAN),
    (("<|python_start|>",), _LLAMA4),
    (("<|python_tag|>",), _LLAMA3),
)
"""Call dialects by signs, all of which must occur in a template or vocabulary; the most specific signs first."""


def dialect_for(template: str, added_tokens: Collection[str]) -> Dialect:
    """Returns the dialect by the markers in a chat template's source, else by the tokenizer's added tokens.

    Returns a dialect without markers if neither has known ones.
    """
    for token in added_tokens:
        if (section := _HUNYUAN3_SECTION.fullmatch(token)) and f"<tool_sep{section[1]}>" in added_tokens:
            return _hunyuan3(section[1])
    marked = Dialect({})
    for begin, end in _THOUGHTS:
        if any(tag in template or tag in added_tokens for tag in (begin, end)):
            marked |= Dialect({begin: Mark.THINK, end: Mark.END_THINK})
    for begin, end in _ANSWERS:
        if begin in template or begin in added_tokens:
            marked |= Dialect({begin: Mark.ANSWER, end: Mark.END_ANSWER})
    for source in (template, "\n".join(added_tokens)):
        for signs, calls in _BY_SIGNS:
            if all(sign in source for sign in signs):
                return calls | marked
    return marked
