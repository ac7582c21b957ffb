"""Mutations of files: of any bytes, and of the values in JSON headers."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from freedive.checkpoint.model_folder import DESCRIPTION, STORE
from freedive.checkpoint.weight_store import MAGIC
from freedive.native import _native

NUMBERS = (-1, 0, 1, 2, 3, 7, 31, 32, 33, 64, 127, 200, 255, 1000, 4096, 1 << 16, 1 << 20, 1 << 31, 1 << 34, 1 << 63)
ODD: tuple[Any, ...] = (*NUMBERS, 1 << 70, 0.5, -0.0, 1e308, 1e400, float("nan"))
ODD += (True, False, None, "", "x", "F32", "Q4_K", [], {}, [0])

Mutate = Callable[[random.Random, Path], None]
"""A function that changes the files of a folder in place."""


def bytes_of(chance: random.Random, data: bytes) -> bytes:
    """Returns ``data`` with flipped bits, replaced numbers, or ranges that are removed, duplicated, moved or zeroed."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 5))):
        at, length = chance.randrange(len(changed) + 1), chance.choice((1, 2, 4, 8, 64, 1000))
        if chance.random() < 0.7:  # headers come first
            at = chance.randrange(min(len(changed), 3000) + 1)
        stretch = changed[at : at + length]
        match chance.randrange(7):
            case 0 if stretch:
                changed[at] ^= 1 << chance.randrange(8)
            case 1:
                size = chance.choice((1, 4, 8))
                changed[at : at + size] = (chance.choice(NUMBERS) % (1 << 8 * size)).to_bytes(size, "little")
            case 2:
                del changed[at : at + length]
            case 3:
                changed[at:at] = stretch
            case 4:
                changed[at : at + length] = bytes(len(stretch))
            case 5:
                to = chance.randrange(len(changed) + 1)
                changed[to : to + length] = stretch
            case 6:
                del changed[at if chance.random() < 0.2 else max(at, len(changed) - 200) :]
    return bytes(changed)


def values_of(chance: random.Random, value: Any) -> Any:
    """Returns a JSON value with a few of its members changed, removed or duplicated."""
    for _ in range(chance.choice((1, 1, 2, 4))):
        _change_one(chance, value)
    return value


def _change_one(chance: random.Random, value: Any) -> None:
    places: list[tuple[Any, Any]] = []
    _collect(value, places)
    if not places:
        return
    holder, key = chance.choice(places)
    match chance.randrange(6):
        case 0 | 1 | 2:
            holder[key] = chance.choice(ODD)
        case 3 if type(holder[key]) in (int, float):
            holder[key] = chance.choice((holder[key] * 2, holder[key] + 1, holder[key] - 1, -holder[key]))
        case 4:
            other, name = chance.choice(places)
            holder[key] = json.loads(json.dumps(other[name]))
        case _:
            del holder[key]


def _collect(value: Any, places: list[tuple[Any, Any]]) -> None:
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            _collect(value[key], places)


def mutate_json(chance: random.Random, path: Path) -> None:
    path.write_text(json.dumps(values_of(chance, json.loads(path.read_text("utf-8")))), "utf-8")


def mutate_bytes(chance: random.Random, path: Path) -> None:
    path.write_bytes(bytes_of(chance, path.read_bytes()))


def mutate_store_header(chance: random.Random, path: Path) -> None:
    """Mutates the header and updates the checksum, as an attacker would."""
    data = path.read_bytes()
    begin = len(MAGIC) + 16
    end = begin + int.from_bytes(data[len(MAGIC) : len(MAGIC) + 8], "little")
    text = json.dumps(values_of(chance, json.loads(data[begin:end]))).encode()
    checksum = _native.checksum(np.frombuffer(text, np.uint8))
    head = MAGIC + len(text).to_bytes(8, "little") + checksum.to_bytes(8, "little") + text
    path.write_bytes(head + data[len(head) :])


def mutate_safetensors_header(chance: random.Random, path: Path) -> None:
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    text = json.dumps(values_of(chance, json.loads(data[8:end]))).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


TEMPLATES = (
    """{{ bos_token }}{% for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message.content | trim }}
{%- if message.tool_calls %}{% for call in message.tool_calls %}{{ call.function.arguments | tojson }}
{%- endfor %}{% endif %}
{{- '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}""",
    """{%- set ns = namespace(last=-1, text='') %}
{%- for m in messages[::-1] %}{% set ns.last = loop.index0 %}{% endfor -%}
{%- macro show(x, depth=0) %}{% if x is mapping %}
{%- for k, v in x | dictsort %}{{ k }}: {{ show(v, depth + 1) }}{% endfor %}
{%- else %}{{ x }}{% endif %}{% endmacro -%}
{%- for m in messages %}{% set ns.text = ns.text ~ m.content.split('</think>')[-1].lstrip('\\n') %}
{{- show(m) }}{% endfor -%}
{{ ns.text[:100] if ns.text is string and ns.text | length > 3 else raise_exception('empty') }}
{{- strftime_now('%Y') }}""",
)
STATEMENTS = (
    *(
        "{% for i in range(1000000) %}{{ i }}{% endfor %}",
        "{% set x = 'a' * 9999999 %}",
        "{% set x = x ~ x %}",
        "{{ x }}",
    ),
    *(
        "{% for m in messages * 99999 %}{% set ns.text = ns.text ~ m %}{% endfor %}",
        "{% include 'a' %}",
        "{{ show(show) }}",
    ),
    *(
        "{% macro show(a) %}{{ show(a) }}{% endmacro %}",
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.format.__globals__ }}",
    ),
    *(
        "{% set messages = messages + messages %}",
        "{{ messages | map('upper') | list }}",
        "{% if %}",
        "{% endfor %}",
        "{{",
    ),
)
EXPRESSIONS = (
    *(
        "messages",
        "x",
        "ns",
        "ns.text",
        "show",
        "loop",
        "none",
        "true",
        "-1",
        "0",
        "10 ** 10000",
        "1e308 * 1e308",
        "1 // 0",
    ),
    *("'a' * 99999999", "[0] * 9999999", "range(10 ** 9)", "''.join", "'%s' % messages", "{}", "[[]]", "'x'.split('')"),
    *("(messages | tojson | indent(99999))", "('ab' | replace('', 'aaaa'))", "(messages | sort)", "('9' * 5000) | int"),
)
_UNIT = re.compile(r"(\{\{.*?\}\}|\{%.*?%\})", re.DOTALL)
_WORD = re.compile(r"\b[a-z_.]+\b(?!')")


def mutate_template(chance: random.Random, folder: Path) -> None:
    """Removes, duplicates, moves or swaps statements of a chat template, and replaces words by expressions."""
    units = _UNIT.split(chance.choice(TEMPLATES))
    for _ in range(chance.choice((1, 1, 2, 4))):
        at = chance.randrange(len(units))
        match chance.randrange(6):
            case 0:
                units.insert(at, chance.choice(STATEMENTS))
            case 1:
                units[at] = ""
            case 2:
                units[at:at] = units[at : at + chance.choice((1, 3))]
            case 3:
                units[at], units[0] = units[0], units[at]
            case _:
                units[at] = _WORD.sub(lambda word: _word(chance, word[0]), units[at])
    (folder / "chat_template.jinja").write_text("".join(units), "utf-8")


def _word(chance: random.Random, word: str) -> str:
    return chance.choice(EXPRESSIONS) if chance.random() < 0.2 else word


def mutate_model_folder(chance: random.Random, folder: Path) -> None:
    change = chance.choice((mutate_json, mutate_json, mutate_store_header, mutate_store_header, mutate_bytes))
    change(chance, folder / (DESCRIPTION if change is mutate_json else STORE))


def mutate_gguf(chance: random.Random, folder: Path) -> None:
    mutate_bytes(chance, folder / "model.gguf")


def mutate_safetensors(chance: random.Random, folder: Path) -> None:
    match chance.randrange(4):
        case 0:
            mutate_bytes(chance, folder / "model.safetensors")
        case 1:
            mutate_safetensors_header(chance, folder / "model.safetensors")
        case 2:
            mutate_json(chance, folder / "config.json")
        case 3:
            mutate_bytes(chance, folder / chance.choice(("config.json", "tokenizer.json")))
