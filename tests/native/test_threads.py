"""The thread team and the readers of experts, tested by programs of their own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++20", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror"]


pytestmark = pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")


def run(name: str, sources: Sequence[str], folder: Path) -> tuple[str, int]:
    """Compiles the program ``name`` with ``sources`` of the kernels; returns what it prints, and its status."""
    program, main = folder / name, Path(__file__).with_name(f"{name}.cpp")
    native = [ROOT / "freedive" / "native" / f"{source}.cpp" for source in sources]
    subprocess.run(["g++", *FLAGS, main, *native, "-o", program], check=True)
    result = subprocess.run([program, folder], capture_output=True, text=True, timeout=60)
    return result.stdout, result.returncode


def test_each_task_runs_once_in_order_and_other_threads_take_those_of_a_slow_one(tmp_path: Path) -> None:
    assert run("share_tasks", ["threads"], tmp_path) == ("", 0)


def test_threads_find_the_bytes_of_every_expert_in_any_memory(tmp_path: Path) -> None:
    sources = ["paged_experts", "record_reader", "memory", "checksum", "threads"]
    assert run("page_experts", sources, tmp_path) == ("", 0)
