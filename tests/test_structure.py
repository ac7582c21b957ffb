"""The house keeps its order: imports go down only, rooms keep to their trade, doors have a sign."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import freedive

ROOT = Path(freedive.__file__).parents[1]

ORDER = (
    ("freedive.errors", "freedive.machine", "freedive.progress", "freedive.native"),
    ("freedive.config", "freedive.model.spec", "freedive.model.batch"),
    ("freedive.model.params", "freedive.model.description", "freedive.model.operations"),
    ("freedive.checkpoint", "freedive.text", "freedive.model.decoder", "freedive.model.size"),
    ("freedive.families", "freedive.ops"),
    ("freedive.engine", "freedive.hub"),
    ("freedive.api",),
    ("freedive",),
    ("freedive.server",),
    ("freedive.server.page",),
    ("freedive.server.app", "freedive.train"),
    ("freedive.commands",),
    ("freedive.cli",),
    ("freedive.__main__",),
)
"""Rooms, lowest first: a module belongs to the longest name that it starts with, and imports from lower lines only."""

FORBIDDEN = {
    "freedive": ("torch", "transformers", "freedive.ops.torch"),
    "freedive.model.spec": ("numpy",),
    "freedive.model.params": ("numpy",),
    "freedive.model.decoder": ("numpy",),
    "freedive.engine": ("httpx", "socket", "urllib", "fastapi", "uvicorn", "freedive.native", "freedive.ops"),
    "freedive.server": ("numpy", "freedive.native", "freedive.ops", "freedive.checkpoint"),
    "freedive.server.page": ("numpy", "freedive.native", "freedive.ops", "freedive.checkpoint"),
}
"""What a room must do without: torch is for training, networks for the server, tensors for the kernels."""

PERMITTED = {
    "freedive.ops.torch": ("torch",),
    "freedive.train": ("torch", "freedive.ops.torch"),
    "freedive.engine.sampler": ("freedive.native",),
}
"""What a room may use though a larger one must not: drawing from a vocabulary is a kernel, too."""


def belongs(module: str, room: str) -> bool:
    return module == room or module.startswith(f"{room}.")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted((ROOT / "freedive").rglob("*.py")) if path.stat().st_size}
"""Every module that says anything, by its name."""


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Every (module, name in it or "") that ``module`` imports, wherever in its text."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in MODULES else (node.module, alias.name)


def room(module: str) -> tuple[int, str]:
    """The line and the name of the room that a module belongs to."""
    fitting = [
        (level, name)
        for level, names in enumerate(ORDER)
        for name in names
        if belongs(module, name) and (name != "freedive" or module == "freedive")
    ]
    assert fitting, f"{module} belongs to no room: give it one in ORDER"
    return max(fitting, key=lambda place: len(place[1]))


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    level, own = room(module)
    for imported, _ in imports(module):
        if belongs(imported, "freedive"):
            other_level, other = room(imported)
            assert other == own or other_level < level, f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_rooms_keep_to_their_trade(module: str) -> None:
    forbidden, permitted = (
        {name for where, names in table.items() if belongs(module, where) for name in names}
        for table in (FORBIDDEN, PERMITTED)
    )
    banned = forbidden - permitted
    for imported, _ in imports(module):
        assert not any(belongs(imported, name) for name in banned), f"{module} imports {imported}"


def test_the_order_names_only_rooms_that_exist() -> None:
    assert {room(module)[1] for module in MODULES} == {name for names in ORDER for name in names}


def doors() -> list[tuple[str, str]]:
    """The names that one room imports from another."""
    return sorted(
        {
            (imported, name)
            for module in MODULES
            for imported, name in imports(module)
            if imported in MODULES and name and room(imported) != room(module)
        }
    )


def test_what_other_rooms_use_has_a_docstring() -> None:
    silent = []
    for module, name in doors():
        for node in tree(module).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name and not ast.get_docstring(node):
                silent.append(f"{module}.{name}")
    assert silent == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module for module in MODULES if not ast.get_docstring(tree(module))] == []


def test_the_package_offers_few_names_and_explains_them() -> None:
    assert freedive.__all__ == ["Call", "LanguageModel", "Text", "Thought", "__version__", "load"]
    assert freedive.load.__doc__
    methods = [value for name, value in vars(freedive.LanguageModel).items() if not name.startswith("_")]
    assert [method for method in methods if not method.__doc__] == []


@pytest.mark.parametrize(
    "code", ["import freedive", "from freedive.cli import app; app(['--help'], standalone_mode=False)"]
)
def test_starting_imports_nothing_heavy(code: str) -> None:
    code += "; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"numpy", "gguf", "tokenizers", "fastapi", "httpx", "torch", "freedive.api", "freedive.native"}
    assert not heavy & set(done.stdout.split())
