"""Tile instructions compared with their software model, which also executes them on machines without AMX."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from freedive.native import _native

HERE = Path(__file__).parent
LEVEL = HERE.parents[1] / "freedive" / "native" / "isa" / "amx.cpp"
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"]
GCC_HEADERS = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]

pytestmark = [
    pytest.mark.skipif(platform.system() != "Linux", reason="traps are taken as Linux hands them out"),
    pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="only x86-64 has these instructions"),
    pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed"),
]


def check(folder: Path, *sources: Path, flags: list[str], least: int) -> None:
    """Checks that a program succeeds and that ``least`` instructions trapped, or none on a machine with tiles."""
    program = folder / "program"
    subprocess.run(["g++", *FLAGS, *flags, *GCC_HEADERS, *sources, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0
    trapped = int(result.stdout)
    assert trapped == 0 if "amx" in _native.isa_levels() else trapped > least


@pytest.mark.slow
@pytest.mark.skipif("avx512" not in _native.isa_levels(), reason="this machine has no avx512")
def test_the_amx_level_equals_its_software_model(tmp_path: Path) -> None:
    check(tmp_path, HERE / "trap_tiles.cpp", LEVEL, flags=AVX512, least=50_000)


def test_products_of_bfloat16_are_those_of_the_model_in_software(tmp_path: Path) -> None:
    check(tmp_path, HERE / "trap_products.cpp", flags=[], least=2_000)
