"""The aarch64 kernels, cross-compiled and run under emulation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64-static"
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror", "-static"]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which(COMPILER), reason=f"{COMPILER} is not installed")
@pytest.mark.skipif(not shutil.which(EMULATOR), reason=f"{EMULATOR} is not installed")
def test_neon_matches_scalar_bit_for_bit(tmp_path: Path) -> None:
    native = ROOT / "freedive" / "native"
    objects = []
    for source in ("cpu", "formats/pack", "isa/scalar", "isa/neon"):
        target = tmp_path / f"{Path(source).name}.o"
        level = ["-march=armv8.2-a+dotprod"] if source == "isa/neon" else []
        subprocess.run([COMPILER, *FLAGS, *level, "-c", native / f"{source}.cpp", "-o", target], check=True)
        objects.append(target)
    program = tmp_path / "compare_levels"
    main = Path(__file__).with_name("compare_levels.cpp")
    subprocess.run([COMPILER, *FLAGS, main, *objects, "-o", program], check=True)
    result = subprocess.run([EMULATOR, "-cpu", "max", program], capture_output=True, text=True, timeout=200)
    assert result.stdout.split() == ["scalar", "neon"]
    assert result.returncode == 0
