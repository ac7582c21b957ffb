"""Chat templates render as in transformers, and hostile ones end in a UserError."""

from __future__ import annotations

import json
import re
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from freedive.errors import UserError
from freedive.text.template import ChatTemplate
from freedive.text.tokenizer import Tokenizer

CHATML = """
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- "\\n" }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, users=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- set ns.users = ns.users + 1 %}
    {%- endif %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = message.content | map(attribute='text') | join('') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.reasoning_content is defined and loop.index0 == ns.last %}
        {{- '<think>\\n' ~ message.reasoning_content.strip('\\n') ~ '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""

LLAMA3 = """
{{- bos_token }}
{%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one tool call at a time") }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}
"""

MISTRAL = """{{ bos_token }}{% for message in messages %}
    {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {% endif %}
    {% if message['role'] == 'user' %}
        {{ '[INST] ' + message['content'] + ' [/INST]' }}
    {% elif message['role'] == 'assistant' %}
        {% set mark = '' %}
        {% generation %}{% set mark = '!' %}{{ message['content'] + eos_token}}{% endgeneration %}{{ mark }}
    {% endif %}
{% endfor %}"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif -%}
{%- macro turn(role, text='') -%}<｜{{ role|capitalize }}｜>{{ text }}{%- endmacro -%}
{% set ns = namespace(is_first=true, system_prompt='') -%}
{%- for message in messages %}{%- if message['role'] == 'system' %}
{%- set ns.system_prompt = ns.system_prompt ~ message['content'] %}{%- endif %}{%- endfor -%}
{{ bos_token }}{{ ns.system_prompt }}
{%- for message in messages if message['role'] != 'system' %}
{%- if message['role'] == 'tool' %}{% continue %}{% endif -%}
{%- set content = message['content'] -%}
{%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif -%}
{{ turn(message['role'], content.lstrip().replace('\\r', '')) }}
{%- if message['role'] == 'assistant' %}{{ '<｜end▁of▁sentence｜>' }}{% endif -%}
{%- endfor -%}
{% if add_generation_prompt %}{{ turn('assistant') }}{% endif %}"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "deepseek": DEEPSEEK}

CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "  Où est <b>l'été</b> & l'hiver? 中文 🦜 "},
    {"role": "assistant", "content": '<think>hm</think> In "Paris".\n'},
    {"role": "user", "content": "And\r\nthen?", "name": None},
]
SYSTEM: list[dict[str, Any]] = [{"role": "system", "content": " Be brief. "}]
TOOLS = [
    {"type": "function", "function": {"name": "wetter", "description": "Grüße <&>", "parameters": {"a": [1, None]}}}
]
CALL = {"type": "function", "function": {"name": "wetter", "arguments": {"ort": "Zürich"}}}


@pytest.fixture(scope="module")
def tokenizer(byte_level_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(byte_level_folder)


@pytest.fixture(scope="module")
def transformers_tokenizer(byte_level_folder: Path) -> Any:
    return PreTrainedTokenizerFast.from_pretrained(byte_level_folder)


def chat_template(source: Any, tokenizer: Tokenizer) -> ChatTemplate:
    return ChatTemplate.from_gguf({"tokenizer.chat_template": source}, tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    ("messages", "options"),
    [
        (CHAT, {}),
        (CHAT, {"add_generation_prompt": False}),
        (SYSTEM + CHAT, {"tools": TOOLS}),
        (CHAT, {"enable_thinking": False, "date_string": "1 Jan 2030"}),
        (CHAT[:2], {"continue_final_message": True, "add_generation_prompt": False}),
        ([CHAT[0], {"role": "assistant", "content": "x", "reasoning": "\nwell\n"}], {}),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], {}),
        ([*CHAT, {"role": "assistant", "tool_calls": [CALL]}], {"tools": TOOLS}),
        ([*CHAT, {"role": "assistant", "tool_calls": [CALL, CALL]}], {}),
        ([CHAT[0], CHAT[0]], {}),
    ],
    ids=["plain", "closed", "tools", "variables", "continue", "reasoning", "blocks", "call", "calls", "users"],
)
def test_templates_render_as_in_transformers(
    tokenizer: Tokenizer, transformers_tokenizer: Any, name: str, messages: list[Any], options: dict[str, Any]
) -> None:
    """The texts are equal, or both raise an error."""
    try:
        expected = transformers_tokenizer.apply_chat_template(
            messages,
            chat_template=TEMPLATES[name],
            tokenize=False,
            **({"add_generation_prompt": True} | options),
        )
    except Exception:
        expected = None
    ours = chat_template(TEMPLATES[name], tokenizer)
    if expected is None:
        with pytest.raises(UserError, match="chat template"):
            ours.render(messages, **options)
    else:
        assert ours.render(messages, **options) == expected


def test_the_error_has_the_templates_message(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="refuses these messages: Conversation roles must alternate") as caught:
        chat_template(MISTRAL, tokenizer).render([CHAT[0], CHAT[0]])
    assert caught.value.param == "messages"


def test_the_day_is_known(tokenizer: Tokenizer) -> None:
    text = chat_template("{{ strftime_now('%Y-%m-%d') }}", tokenizer).render(CHAT)
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", text)


def test_a_continued_message_stays_open(tokenizer: Tokenizer) -> None:
    messages = [CHAT[0], {"role": "assistant", "content": "The answer is "}]
    text = chat_template(CHATML, tokenizer).render(messages, continue_final_message=True)
    assert text.endswith("<|im_start|>assistant\nThe answer is ")
    assert messages[1]["content"] == "The answer is "


NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "with {{ tools|length }}"}]


def test_tools_choose_the_template_for_tools(tokenizer: Tokenizer, byte_level_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": NAMED}))
    gguf = {"tokenizer.chat_template": "plain", "tokenizer.chat_template.tool_use": "with {{ tools|length }}"}
    for template in (ChatTemplate.from_folder(tmp_path, tokenizer), ChatTemplate.from_gguf(gguf, tokenizer)):
        assert template.render(CHAT) == "plain"
        assert template.render(CHAT, tools=TOOLS) == "with 1"


def test_template_files_come_before_the_configuration(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old"}))
    assert ChatTemplate.from_folder(tmp_path, tokenizer).render(CHAT) == "old"
    (tmp_path / "chat_template.jinja").write_text("né{{ bos_token }}", encoding="utf-8")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("tools")
    template = ChatTemplate.from_folder(tmp_path, tokenizer)
    assert template.render(CHAT) == "né<|im_start|>"
    assert template.render(CHAT, tools=TOOLS) == "tools"


@pytest.mark.parametrize(
    ("source", "messages", "says"),
    [
        (None, CHAT, "no chat template. .*completion"),
        (7, CHAT, "neither text nor a list"),
        ([{"name": "rag", "template": "x"}], CHAT, "only the chat templates rag"),
        ([{"name": "rag"}], CHAT, "neither text nor a list"),
        ("{% for %}", CHAT, "not valid"),
        ("{{ x | no_such_filter }}", CHAT, "not valid"),
        ("{{ messages[7].content.text }}", CHAT, "fails: "),
        ("{{ 1 / 0 }}", CHAT, "fails: division by zero"),
        ("{% include 'x' %}", CHAT, "fails: "),
        ("x", [], "no messages"),
    ],
)
def test_what_cannot_be_rendered_is_a_user_error(
    tokenizer: Tokenizer, source: Any, messages: list[Any], says: str
) -> None:
    with pytest.raises(UserError, match=says) as caught:
        chat_template(source, tokenizer).render(messages)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "last", [{"role": "assistant"}, {"role": "assistant", "content": []}, {"role": "assistant", "content": [{"x": 1}]}]
)
def test_only_text_can_be_continued(tokenizer: Tokenizer, last: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="no text to continue"):
        chat_template(CHATML, tokenizer).render([CHAT[0], last], continue_final_message=True)


BIG = "{% set s = 'x' * 4000000 %}"
LAUGHS = "{% set ns = namespace(a=['ha']) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}"
WIDE_TEXT = "{% set x = '\U0001f600' * 16000000 %}"
NAMESPACES = (
    "{% set ns = namespace(x=1) %}{% for i in range(40) %}{% set ns.x = namespace(a=ns.x, b=ns.x) %}{% endfor %}"
)
HOSTILE = {
    "a long range": "{% for i in range(10**9) %}{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "loops that skip": "{% for i in range(9999) %}{% for j in range(9999) if false %}{% endfor %}{% endfor %}",
    "endless recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "macros that branch": "{% macro m(n) %}{% if n %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "recursive loops": "{% for i in [[]] recursive %}{{ loop([[]]) }}{% endfor %}",
    "repeated text": "{{ 'x' * 10**10 }}",
    "repeated lists": "{{ ([0] * 10**10)|length }}",
    "large powers": "{{ 10 ** (10 ** 10) }}",
    "large products": "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "doubling by ~": "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "doubling by +": "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "doubling blocks": (
        "{% set ns = namespace(a='x') %}{% for i in range(60) %}"
        "{% set b %}{{ ns.a }}{{ ns.a }}{% endset %}{% set ns.a = b %}{% endfor %}"
    ),
    "a billion laughs": LAUGHS + "{{ ns.a }}",
    "laughs as text": LAUGHS + "{{ (ns.a|string)|length }}",
    "laughs in upper case": LAUGHS + "{{ (ns.a|upper)|length }}",
    "laughs as JSON": LAUGHS + "{{ (ns.a|tojson)|length }}",
    "laughs formatted": LAUGHS + "{{ '%s' % ns.a }}",
    "laughs by format": LAUGHS + "{{ '{}'.format(ns.a) }}",
    "wide percent formats": "{{ '%9999999999d' % 1 }}",
    "computed widths": "{{ '%*d' % (10**9, 1) }}",
    "wide formats": "{{ '{:>9999999999}'.format(1) }}",
    "nested formats": "{{ '{:>{}}'.format(1, 10**9) }}",
    "repeating formats": BIG + "{{ ('{0}' * 1000).format(s) }}",
    "repeating formats of private names": BIG + "{{ ('{_s}' * 1000).format(_s=s) }}",
    "centred text": "{{ 'x'|center(10**10) }}",
    "padded text": "{{ 'x'.ljust(10**10) }}",
    "indentation": "{{ 'x\\nx'|indent(10**9) }}",
    "indentation after other line ends": "{{ ('x\u2028' * 100)|indent(10**7) }}",
    "indented JSON": "{{ [1, 2]|tojson(indent=10**9) }}",
    "replacements": BIG + "{{ s.replace('x', s)|length }}",
    "replacing filters": BIG + "{{ s|replace('x', s)|length }}",
    "joined text": BIG + "{{ s.join(['a'] * 1000)|length }}",
    "joining filters": BIG + "{{ ([s] * 1000)|join|length }}",
    "a long output": BIG + "{% for i in range(10) %}{{ s }}{% endfor %}",
    "growing lists": (
        "{% set ns = namespace(l=[]) %}{% for i in range(150) %}"
        "{% set ns.l = ns.l + ['a' * 16000000 ~ i] %}{% endfor %}"
    ),
    "upper case again and again": BIG + "{% for i in range(99999) %}{% set x = s|upper %}{% endfor %}",
    "titles": BIG + "{% for i in range(99999) %}{% set x = s|title %}{% endfor %}",
    "titles by method": BIG + "{% for i in range(99999) %}{% set x = s.title() %}{% endfor %}",
    "sorting": BIG + "{% for i in range(99999) %}{% set x = s|list|sort %}{% endfor %}",
    "splitting": BIG + "{% for i in range(99999) %}{% set x = s.split('x') %}{% endfor %}",
    "slicing": BIG + "{% for i in range(99999) %}{% set x = s[1:] %}{% endfor %}",
    "reversing": BIG + "{% for i in range(99999) %}{% set x = s|reverse %}{% endfor %}",
    "comparing": BIG + "{% set t = 'x' * 4000000 %}{% for i in range(99999) %}{% set x = s == t %}{% endfor %}",
    "comparing laughs": LAUGHS + LAUGHS.replace("a", "b").replace("nbmespbce", "namespace") + "{{ ns.a == ns.b }}",
    "searching": BIG + "{% for i in range(99999) %}{% set x = 'y' in s %}{% endfor %}",
    "searching backwards": BIG + "{{ s.rfind('y' ~ s[:2000000]) }}",
    "stripping": BIG + "{{ s.strip('y' * 4000000 ~ 'x')|length }}",
    "hashing laughs": LAUGHS.replace("['ha']", "('ha',)").replace("[ns.a, ns.a]", "(ns.a, ns.a)")
    + "{{ {ns.a: 1}|length }}",
    "testing": BIG + "{% for i in range(99999) %}{% set x = s is lower %}{% endfor %}",
    "bytes of numbers": "{{ (1).to_bytes(10**9, 'big')|length }}",
    "numbers of other bases": BIG + "{{ ('f' * 10000)|int(base=16) // 3 }}",
    "blocks that branch": "".join(
        "{% block b" + str(i) + " %}{{ self.b" + str(i + 1) + "() }}{{ self.b" + str(i + 1) + "() }}{% endblock %}"
        for i in range(40)
    )
    + "{% block b40 %}{% endblock %}",
    "keys that collide": (
        "{% set ns = namespace(l=[]) %}{% for i in range(5000) %}{% set ns.l = ns.l + [[i * (2**61 - 1), i]] %}"
        "{% endfor %}{% for i in range(99999) %}{% set x = dict(ns.l) %}{% endfor %}"
    ),
    "namespaces in lists": (
        "{% set ns = namespace() %}{% for i in range(60) %}{% set ns.a = [ns, ns] %}{% endfor %}{{ ns.a }}"
    ),
    "separators that are long": "{{ [0, 0]|tojson(separators=('a' * 999, ':')) }}",
    "JSON that is deep and indented": (
        "{% set ns = namespace(x=[1] * 60000) %}{% for i in range(900) %}{% set ns.x = [ns.x] %}{% endfor %}"
        "{{ ns.x|tojson(indent='\U0001f600')|length }}"
    ),
    "a wide field with a key": "{{ '%(a)900000000s' % {'a': 1} }}",
    "a wide field with a brace in its name": "{{ '{0[}]:900000000}'.format({'}': 1}) }}",
    "an iterator over a long text": WIDE_TEXT + "{{ x|select|list|length }}",
    "the length of a loop over an iterator": WIDE_TEXT
    + "{% for c in x|select %}{{ loop.length }}{% break %}{% endfor %}",
    "a long text joined": WIDE_TEXT + "{{ x|join|length }}",
    "a long text joined by a method": WIDE_TEXT + "{{ ''.join(x)|length }}",
    "a dict of a long text": WIDE_TEXT + "{{ dict(x) }}",
    "arguments of a long text": WIDE_TEXT + "{% macro f() %}{% endmacro %}{{ f(*x) }}",
    "sums of numbers": (
        "{% set ns = namespace(x=1, l=0) %}{% for i in range(80000) %}{% set ns.x = ns.x + ns.x %}"
        "{% set ns.l = [ns.l, ns.x] %}{% endfor %}"
    ),
    "objects with many arguments": (
        "{% set l = [0] * 80000 %}{% set ns = namespace(l=0) %}"
        "{% for i in range(1500) %}{% set ns.l = [ns.l, cycler(*l)] %}{% endfor %}"
    ),
    "a refusal that writes namespaces": NAMESPACES + "{{ raise_exception(ns) }}",
    "a name that is a namespace": NAMESPACES + "{{ 1|attr(ns) }}",
    "differences of keys": "{{ dict(a=1).keys() - [] }}",
    "paths of attributes": "{{ [1, 2, 3]|map(attribute='a.' * 8000000, default=1)|list }}",
    "searches from the end": "{{ ('a' * 4000000).rfind('ab' + 'a' * 15000) }}",
    "characters to strip": "{{ ('a€' * 2000000).strip('šŢɡʡ' * 3000 + 'a€') }}",
    "a long template": "x" * (1 << 21),
    "Python's insides": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "format insides": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_templates_end_soon_in_a_user_error(tokenizer: Tokenizer, case: str) -> None:
    with pytest.raises(UserError, match="chat template"):
        chat_template(HOSTILE[case], tokenizer).render(CHAT)


@pytest.mark.timeout(60)
@pytest.mark.matrix  # the cases of the test before, with their memory traced
@pytest.mark.parametrize("case", HOSTILE)
def test_a_rendering_is_bounded_in_time_and_memory(tokenizer: Tokenizer, case: str) -> None:
    template, begun = chat_template(HOSTILE[case], tokenizer), time.thread_time()
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match="chat template"):
            template.render(CHAT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.thread_time() - begun < 8  # 2 s without the overhead of tracing
    assert peak < 200 << 20


def test_filters_of_items_are_true_as_in_transformers_even_of_no_items(tokenizer: Tokenizer) -> None:
    chosen = "{% if messages|selectattr('role', 'equalto', 'none') %}yes{% endif %}"
    source = chosen + "{{ messages|map(attribute='role')|first }}"
    assert chat_template(source, tokenizer).render(CHAT) == "yes" + CHAT[0]["role"]


@pytest.mark.parametrize("nothing", ["none", "never_defined", "''"])
@pytest.mark.parametrize("filter", ["map(attribute='name')", "selectattr('name')", "rejectattr('name')", "select"])
def test_filters_of_items_find_nothing_in_nothing_as_in_transformers(
    tokenizer: Tokenizer, nothing: str, filter: str
) -> None:
    source = f"{{% for item in {nothing}|{filter} %}}{{{{ item }}}}{{% endfor %}}none"
    assert chat_template(source, tokenizer).render(CHAT) == "none"


def test_a_namespace_may_hold_a_namespace_and_json_be_indented(tokenizer: Tokenizer) -> None:
    source = "{% set a = namespace(n=1) %}{% set b = namespace(a=a) %}{{ b.a.n }}{{ {'k': [1]}|tojson(indent=2) }}"
    assert chat_template(source, tokenizer).render(CHAT) == '1{\n  "k": [\n    1\n  ]\n}'


def test_methods_of_texts_work_in_loops_that_make_namespaces(tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{% set ns = namespace(n=1) %}{{ m.content.strip() }}{{ '{}'.format(1) }}{% endfor %}"
    )
    assert chat_template(source, tokenizer).render([{"role": "user", "content": " a "}]) == "a1"


def test_json_is_indented_by_a_number_or_a_text(tokenizer: Tokenizer) -> None:
    messages = [{"role": "user", "content": "a"}]
    by_number, by_text = (
        chat_template("{{ messages|tojson(indent=" + indent + ") }}", tokenizer).render(messages)
        for indent in ("2", "'  '")
    )
    assert by_number == by_text == json.dumps(messages, indent=2)


def test_a_long_conversation_is_within_the_budget(tokenizer: Tokenizer) -> None:
    turns = [
        {"role": role, "content": "word " * 100 + str(turn)} for turn in range(1500) for role in ("user", "assistant")
    ]
    for name, source in TEMPLATES.items():
        text = chat_template(source, tokenizer).render(turns)
        assert "word 1499" in text.replace("\n", " "), name
    assert len(chat_template(CHATML, tokenizer).render([{"role": "user", "content": "word " * 1_000_000}])) > 5_000_000


def test_messages_cannot_be_changed_by_a_template(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError):
        chat_template("{{ messages.append(1) }}", tokenizer).render(CHAT)


def test_one_template_serves_many_threads(tokenizer: Tokenizer) -> None:
    template = chat_template(CHATML, tokenizer)
    expected = [template.render([{"role": "user", "content": str(number)}]) for number in range(8)]
    results: dict[int, set[str]] = {}

    def work(number: int) -> None:
        results[number] = {template.render([{"role": "user", "content": str(number)}]) for _ in range(50)}

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: {text} for number, text in enumerate(expected)}
