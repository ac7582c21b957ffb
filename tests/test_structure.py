"""The structure of the package: the order of imports, docstrings of what other folders use, no global state, short
files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import freedive

ROOT = Path(freedive.__file__).parents[1]

ORDER = (
    ("errors", "arrays", "cgroups", "disk", "json_object", "progress", "native"),
    ("disk_speed", "files", "machine"),
    ("field_types",),
    ("config",),
    ("model",),
    ("checkpoint", "text"),
    ("families", "ops"),
    ("engine", "hub"),
    ("reply",),
    ("api",),
    ("__init__",),
    ("server", "train"),
    ("commands",),
    ("cli",),
    ("__main__",),
)
"""The folders and files of the package, lowest first: a module imports only from its own line and from lower lines."""

TORCH_OPS = ("freedive.ops.torch", "freedive.ops.torch_attention", "freedive.ops.torch_delta")
"""The modules that import torch and that serving does without."""

FORBIDDEN = {
    "freedive": (
        "torch",
        "transformers",
        "freedive.ops.torch",
        "freedive.ops.torch_attention",
        "freedive.ops.torch_delta",
    ),
    "freedive.model.spec": ("numpy",),
    "freedive.model.params": ("numpy",),
    "freedive.model.decoder": ("numpy",),
    "freedive.engine": ("httpx", "socket", "urllib", "fastapi", "uvicorn", "freedive.native", "freedive.ops"),
    "freedive.server": ("numpy", "freedive.native", "freedive.ops", "freedive.checkpoint"),
}
"""Imports that a package or module must not have: torch is for training, networks for the server, tensors for the
kernels."""

PERMITTED = {
    **dict.fromkeys(TORCH_OPS, ("torch", *TORCH_OPS)),
    "freedive.train": ("torch", "freedive.ops.torch"),
    "freedive.engine.sampler": ("freedive.native",),
}
"""Exceptions for parts of the above; sampling over a vocabulary is a kernel, too."""


def belongs(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in sorted((ROOT / "freedive").rglob("*.py")) if path.stat().st_size}
"""Every module that is not empty, by its name."""


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text("utf-8"))


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Yields every (module, name in it or "") that ``module`` imports anywhere in its text."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module, f"{module} imports relatively"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, "") if whole in MODULES else (node.module, alias.name)


def part_of(module: str) -> tuple[int, str]:
    """Returns the line of :data:`ORDER` and the name of the folder or file that a module belongs to."""
    name = module.split(".")[1] if "." in module else "__init__"
    [level] = (level for level, names in enumerate(ORDER) if name in names)
    return level, name


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    level, own = part_of(module)
    for imported, _ in imports(module):
        if belongs(imported, "freedive"):
            other_level, other = part_of(imported)
            assert other == own or other_level < level, f"{module} imports {imported}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_import_nothing_forbidden(module: str) -> None:
    forbidden, permitted = (
        {name for where, names in table.items() if belongs(module, where) for name in names}
        for table in (FORBIDDEN, PERMITTED)
    )
    banned = forbidden - permitted
    for imported, _ in imports(module):
        assert not any(belongs(imported, name) for name in banned), f"{module} imports {imported}"


def test_the_order_names_only_parts_that_exist() -> None:
    assert {part_of(module)[1] for module in MODULES} == {name for names in ORDER for name in names}


def test_imports_have_no_cycle() -> None:
    graph = {
        module: {imported for imported, _ in imports(module)} & MODULES.keys() - {module, "freedive"}
        for module in MODULES
    }
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError


def shared_names() -> list[tuple[str, str]]:
    """Returns the names that one folder or file imports from another."""
    return sorted(
        {
            (imported, name)
            for module in MODULES
            for imported, name in imports(module)
            if imported in MODULES and name and part_of(imported) != part_of(module)
        }
    )


def test_what_other_parts_use_has_a_docstring() -> None:
    silent = []
    for module, name in shared_names():
        for node in tree(module).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name and not ast.get_docstring(node):
                silent.append(f"{module}.{name}")
    assert silent == []


def test_every_module_says_what_it_is_for() -> None:
    assert [module for module in MODULES if not ast.get_docstring(tree(module))] == []


def test_the_package_offers_few_names_and_explains_them() -> None:
    assert len(freedive.__all__) < 20
    assert [name for name in freedive.__all__ if not getattr(freedive, name)] == []
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


MUTATORS = {
    *("add", "append", "appendleft", "clear", "discard", "extend", "insert", "move_to_end", "pop", "popitem"),
    *("popleft", "remove", "reverse", "setdefault", "sort", "update"),
}
"""Methods that change a list, a dict, a set or a deque."""


def mutations(module: str) -> Iterator[str]:
    """Yields each place where ``module`` changes a global of its own or of a module that it imports from."""
    names = {target.id for node in tree(module).body for target in targets(node) if isinstance(target, ast.Name)}
    names |= {name for imported, name in imports(module) if belongs(imported, "freedive") and name.isupper()}

    def is_global(node: ast.expr) -> bool:
        """Returns whether the node is such a name, or ``other_module.NAME``."""
        if isinstance(node, ast.Attribute) and node.attr.isupper() and isinstance(node.value, ast.Name):
            return node.value.id not in ("self", "cls")
        return isinstance(node, ast.Name) and node.id in names

    for node in ast.walk(tree(module)):
        match node:
            case ast.Global(names=changed):
                yield f"{module}:{node.lineno} global {', '.join(changed)}"
            case ast.Call(func=ast.Attribute(value=owner, attr=method)) if method in MUTATORS and is_global(owner):
                yield f"{module}:{node.lineno} {ast.unparse(node)}"
            case ast.Subscript(value=owner, ctx=ast.Store() | ast.Del()) if is_global(owner):
                yield f"{module}:{node.lineno} {ast.unparse(node)}"
            case ast.Attribute(value=owner, ctx=ast.Store() | ast.Del()) if is_global(owner):
                yield f"{module}:{node.lineno} {ast.unparse(node)}"
            case ast.AugAssign(target=ast.Name() as target) if is_global(target):
                yield f"{module}:{node.lineno} {ast.unparse(node)}"


def targets(node: ast.stmt) -> list[ast.expr]:
    match node:
        case ast.Assign(targets=found):
            return found
        case ast.AnnAssign(target=found):
            return [found]
    return []


def test_modules_have_no_mutable_state() -> None:
    """Caches of functions are allowed, since they change only the duration of a call."""
    assert [place for module in MODULES for place in mutations(module)] == []


MAX_LINES = 400
MAX_FUNCTION_LINES = 60
SOURCES = sorted(
    path for kind in ("*.py", "*.cpp", "*.h") for path in (ROOT / "freedive").rglob(kind) if path.is_file()
)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_long_file_says_why_in_its_first_comment(path: Path) -> None:
    lines = path.read_text("utf-8").splitlines()
    assert len(lines) <= MAX_LINES or re.match(r"(#|//) Over \d+ lines: ", lines[0])


@pytest.mark.parametrize("module", MODULES)
def test_a_long_function_says_why_in_its_first_comment(module: str) -> None:
    lines = MODULES[module].read_text("utf-8").splitlines()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = lines[node.lineno - 1 : node.end_lineno]
            comment = next((line.strip() for line in body if line.strip().startswith("#")), "")
            assert len(body) <= MAX_FUNCTION_LINES or re.match(r"# Over \d+ lines: ", comment), node.name


def test_every_file_that_the_architecture_names_exists() -> None:
    files = {
        path.name for path in ROOT.rglob("*") if path.suffix in (".py", ".h", ".cpp") and "build" not in path.parts
    }
    named = set(re.findall(r"[\w/]+\.(?:py|h|cpp)\b", (ROOT / "docs" / "architecture.md").read_text("utf-8")))
    assert {name for name in named if name.rpartition("/")[2] not in files} == set()
