"""The dialects in which an output is several messages, each with a header: harmony, Solar Open, Muse Glimmer."""

from __future__ import annotations

import re

from freedive.text.dialects.codecs import NamedJson, Tagged
from freedive.text.dialects.dialect import Dialect, Messages, Writing, marks

HARMONY = Dialect(
    marks(HEADER=("<|start|>", "<|channel|>"), MESSAGE="<|message|>", END=("<|end|>", "<|return|>", "<|call|>")),
    (
        NamedJson(
            re.compile(
                r"(?>.*?\bto=(?:functions\.)?)(?P<name>[^\s<]++)(?>.*?<\|message\|>)(?P<arguments>.*)", re.DOTALL
            )
        ),
    ),
    separators=("<|constrain|>",),
    header=re.compile(
        r"(?=(?P<call>.*to=)?)"
        r"(<\|start\|>)?(assistant)?( ?to=[^\s<]+)?(<\|channel\|>((?P<thought>analysis)|commentary|final))?"
        r"( to=[^\s<]+)?( ?(<\|constrain\|>)? ?(json|code))?<\|message\|>"
    ),
    writing=Writing(
        "<|channel|>commentary to=functions.$name <|constrain|>json<|message|>$arguments",
        between=None,
    ),
    messages=Messages(
        thought=("<|channel|>analysis<|message|>", "<|end|><|start|>assistant"),
        answer=("<|channel|>final<|message|>", "<|channel|>final <|constrain|>json<|message|>"),
    ),
)
SOLAR = Dialect(
    marks(
        HEADER="<|begin|>",
        MESSAGE=("<|think|>", "<|content|>", "<|tool_calls|>"),
        END=("<|end|>", "<|flush|>", "<|calls|>"),
        CALL="<|tool_call:begin|>",
        END_CALL="<|tool_call:end|>",
    ),
    (
        NamedJson(
            re.compile(
                r"(?P<id>[^\s<]++)?<\|tool_call:name\|>(?P<name>[^\s<]++)<\|tool_call:args\|>(?P<arguments>.*)",
                re.DOTALL,
            )
        ),
    ),
    separators=("<|tool_call:name|>", "<|tool_call:args|>"),
    header=re.compile(r"(<\|begin\|>)?(assistant)?((?P<thought><\|think\|>)|<\|content\|>|<\|tool_calls\|>)"),
    writing=Writing(
        "<|tool_call:begin|>$id<|tool_call:name|>$name<|tool_call:args|>$arguments<|tool_call:end|>",
        before="<|tool_calls|>",
    ),
    messages=Messages(thought=("<|think|>", "<|end|><|begin|>assistant"), answer=("<|content|>",)),
)
MUSE = Dialect(
    marks(
        HEADER="<|start|>",
        MESSAGE="<|message|>",
        END=("<|eom|>", "<|eot|>"),
        SECTION="<atem:function_calls>",
        END_SECTION="</atem:function_calls>",
        CALL='<atem:invoke name="',
        END_CALL="</atem:invoke>",
    ),
    (
        Tagged(
            re.compile(r'([^"<>\n]+)">\s*'), re.compile(r'<atem:parameter name="([^"<>\n]+)">'), ("</atem:parameter>",)
        ),
    ),
    header=re.compile(r"(<\|start\|>)?(assistant)? ?(to=((?P<thought>self)|[\w.-]+))?<\|message\|>"),
    must_close=True,
    writing=Writing(
        ' to=$name<|message|><atem:function_calls>\n<atem:invoke name="$name">\n$parameters</atem:invoke>\n'
        "</atem:function_calls>",
        between="<|eom|><|start|>assistant",
        parameter='<atem:parameter name="$key">$value</atem:parameter>\n',
    ),
    messages=Messages(thought=(" to=self<|message|>", "<|eom|><|start|>assistant"), answer=(" to=user<|message|>",)),
)
