"""The errors: their class tree, their HTTP statuses and the style of their messages."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import freedive
from freedive import errors
from freedive.errors import NotFound, UserError
from freedive.server.anthropic.fields import ThreadNotFound
from freedive.server.http_errors import STATUSES, status_of

FOLDER = Path(freedive.__file__).parent
TREES = {path: ast.parse(path.read_text("utf-8")) for path in sorted(FOLDER.rglob("*.py"))}


@cache
def bases() -> dict[str, str]:
    """Returns the base class of each UserError class, by name."""
    classes = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    found = {"UserError": ""}
    while more := {
        node.name: base.id
        for node in classes
        for base in node.bases
        if isinstance(base, ast.Name) and base.id in found and node.name not in found
    }:
        found |= more
    return found


def drawn() -> dict[str, str]:
    """Returns the base class of each UserError class as the docstring of ``freedive.errors`` draws it."""
    found, above = {}, [""]
    for line in (errors.__doc__ or "").partition("::\n")[2].splitlines():
        if line.strip():
            name = line.strip(" │├└─").split()[0]
            depth = line.index(name) // 4
            above[depth:] = [name]
            found[name] = above[depth - 1]
    return found


def test_tree_of_errors_is_drawn_as_it_is() -> None:
    assert drawn() == bases()


def test_every_class_has_a_status_and_subclasses_that_of_their_base() -> None:
    assert all(issubclass(kind, UserError) for kind in STATUSES)
    assert status_of(UserError("it is wrong")) == 400
    assert status_of(NotFound("it is not there")) == status_of(ThreadNotFound("it is not there")) == 404


def sentences() -> Iterator[tuple[str, list[str]]]:
    """Yields where a UserError is made, by its class or by a function that returns one, and the ends of
    its messages."""
    for path, tree in TREES.items():
        makers = set(kinds := bases())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and isinstance(node.returns, ast.Name) and node.returns.id in kinds:
                makers.add(node.name)
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in makers:
                place = f"{path.relative_to(FOLDER)}:{node.lineno}"
                yield place, [end for argument in node.args for end in ends(argument, path)]


def ends(node: ast.expr, path: Path | None) -> list[str]:
    """Returns the possible ends of an argument's text: its literals, and those assigned to its name in the file
    ``path``."""
    match node:
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=[*_, ast.Constant(value=str(text))]):
            return [text]
        case ast.IfExp():
            return [*ends(node.body, path), *ends(node.orelse, path)]
        case ast.BoolOp():
            return [end for value in node.values for end in ends(value, path)]
        case ast.Name(id=name) if path:
            named = [
                found.value
                for found in ast.walk(TREES[path])
                if isinstance(found, ast.Assign)
                and any(isinstance(t, ast.Name) and t.id == name for t in found.targets)
            ]
            return [end for value in named for end in ends(value, None)]
    return []


def test_sentences_of_errors_end_without_a_full_stop() -> None:
    """str(UserError) joins both sentences by a full stop, and log lines and JSON messages have no final one."""
    made = list(sentences())
    assert len(made) > 250
    assert [place for place, texts in made if any(text.rstrip().endswith((".", "!", "\n")) for text in texts)] == []


@pytest.mark.parametrize(("remedy", "text"), [("", "it is wrong"), ("Try again", "it is wrong. Try again")])
def test_an_error_is_one_line(remedy: str, text: str) -> None:
    assert str(UserError("it is wrong", remedy)) == text
