"""The thread team, tested by a program of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++20", "-O2", "-pthread", "-Wall", "-Wextra", "-Werror"]


@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_each_task_runs_once_in_order_and_other_threads_take_those_of_a_slow_one(tmp_path: Path) -> None:
    program, main = tmp_path / "share_tasks", Path(__file__).with_name("share_tasks.cpp")
    subprocess.run(["g++", *FLAGS, main, ROOT / "freedive" / "native" / "threads.cpp", "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("", 0)
