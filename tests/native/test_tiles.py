"""The instructions of the amx level, on machines that may lack them: each traps and is done in software."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from freedive.native import _native

ROOT = Path(__file__).parents[2]
FLAGS = ["-std=c++20", "-O2", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512vnni", "-mfma", "-mf16c"]
GCC_HEADERS = ["-Wno-uninitialized", "-Wno-maybe-uninitialized"]


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="traps are taken as Linux hands them out")
@pytest.mark.skipif("avx512" not in _native.isa_levels(), reason="this machine has no avx512")
@pytest.mark.skipif(not shutil.which("g++"), reason="g++ is not installed")
def test_the_instructions_do_what_their_model_in_software_does(tmp_path: Path) -> None:
    program = tmp_path / "trap_tiles"
    level = ROOT / "freedive" / "native" / "isa" / "amx.cpp"
    main = Path(__file__).with_name("trap_tiles.cpp")
    subprocess.run(["g++", *FLAGS, *AVX512, *GCC_HEADERS, main, level, "-o", program], check=True)
    result = subprocess.run([program], capture_output=True, text=True, timeout=200)
    assert int(result.stdout) > 50_000
    assert result.returncode == 0
