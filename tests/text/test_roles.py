"""Conversations with roles that a chat template does not accept are rendered without loss."""

from __future__ import annotations

from typing import Any

import pytest

from freedive.errors import UserError
from freedive.text.roles import rendered
from freedive.text.template import ChatTemplate

LENIENT = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
ONE_SYSTEM = """
{%- for m in messages %}
    {%- if m.role == 'system' and not loop.first %}{{- raise_exception('System message must be first.') }}{%- endif %}
    {{- '<' + m.role + '>' + m.content }}
{%- endfor %}"""
ALTERNATING = """
{%- if messages[0].role == 'system' %}
    {{- '<system>' + messages[0].content }}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for m in messages %}
    {%- set due = ('user', 'assistant')[loop.index0 % 2] %}
    {%- if m.role != due %}{{- raise_exception('Roles must alternate.') }}{%- endif %}
    {{- '<' + m.role + '>' + m.content }}
{%- endfor %}"""
OMITS_SYSTEM = """
{%- for m in messages %}
    {%- if m.role != 'system' or loop.first %}{{- '<' + m.role + '>' + m.content }}{%- endif %}
{%- endfor %}"""
"""A template that silently omits later system messages."""


def template(source: str) -> ChatTemplate:
    return ChatTemplate({"default": source}, {})


def conversation(text: str) -> list[dict[str, Any]]:
    """Returns messages from words like ``system:a``."""
    pairs = (word.split(":") for word in text.split())
    return [{"role": role, "content": content} for role, content in pairs]


@pytest.mark.parametrize("name", ["template", "name", "variables", "chat", "form", "options"])
def test_a_template_may_have_variables_of_any_name(name: str) -> None:
    source = "{{ " + name + " }}"
    assert rendered(template(source), conversation("user:a"), **{name: "on"}) == "on"


CLAUDE_CODE = "system:a user:b system:c"
CODEX = "system:a system:b user:c user:d"


@pytest.mark.parametrize("said", [CLAUDE_CODE, CODEX, "user:a", "user:a assistant:b system:c user:d"])
def test_roles_that_a_template_takes_are_rendered_as_they_came(said: str) -> None:
    messages = conversation(said)
    assert rendered(template(LENIENT), messages) == template(LENIENT).render(messages)


@pytest.mark.parametrize(
    ("source", "said", "told"),
    [
        (ONE_SYSTEM, CLAUDE_CODE, "<system>a<user>b<user>c"),
        (ONE_SYSTEM, CODEX, "<system>a\n\nb<user>c<user>d"),
        (OMITS_SYSTEM, CLAUDE_CODE, "<system>a<user>b<user>c"),
        (OMITS_SYSTEM, CODEX, "<system>a\n\nb<user>c<user>d"),
        (ALTERNATING, CLAUDE_CODE, "<system>a<user>b\n\nc"),
        (ALTERNATING, CODEX, "<system>a\n\nb<user>c\n\nd"),
        (ALTERNATING, "user:a user:b assistant:c system:d user:e", "<user>a\n\nb<assistant>c<user>d\n\ne"),
    ],
)
def test_roles_that_a_template_does_not_accept_become_accepted_ones(source: str, said: str, told: str) -> None:
    assert rendered(template(source), conversation(said)) == told


@pytest.mark.parametrize("source", [ONE_SYSTEM, OMITS_SYSTEM, ALTERNATING])
@pytest.mark.parametrize("said", [CLAUDE_CODE, CODEX])
def test_replaced_roles_do_not_change_the_prefix_of_the_next_prompt(source: str, said: str) -> None:
    first = conversation(said)
    following = [*first, *conversation("assistant:x user:y system:z")]
    assert rendered(template(source), following).startswith(rendered(template(source), first))


def test_refusal_that_has_nothing_to_do_with_roles_is_the_templates_own() -> None:
    refusing = "{{ raise_exception('never ' ~ messages | length) }}"
    with pytest.raises(UserError, match="never 3"):
        rendered(template(refusing), conversation(CLAUDE_CODE))


def test_instructions_that_a_template_rewrites_stay_its_own() -> None:
    shouting = "{% for m in messages %}<{{ m.role }}>{{ m.content | upper }}{% endfor %}"
    assert rendered(template(shouting), conversation("system:a user:b system:c")) == "<system>A<user>B<system>C"


def test_messages_with_calls_are_never_joined() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "b"}]}
    seen: list[Any] = []

    class Refusing(ChatTemplate):
        def render(self, messages: Any, **_: Any) -> str:
            seen.append(list(messages))
            return template("{{ raise_exception('no') }}").render(messages)

    with pytest.raises(UserError):
        rendered(Refusing({}, {}), [*conversation("system:a"), call, parts, *conversation("system:c user:d")])
    assert seen[-1] == [*conversation("system:a"), call, parts, {"role": "user", "content": "c\n\nd"}]
