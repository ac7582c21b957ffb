"""Which instruction-set level a processor gets."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest

from freedive.native import _native

CPU_INFO = Path("/proc/cpuinfo")

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are levels of x86-64")

CHOICES = {
    "nothing": ((), "scalar"),
    "AVX2": (("avx2",), "avx2"),
    "AVX-VNNI without AVX512": (("avx2", "avx_vnni"), "avx_vnni"),
    "AVX512 without AVX-VNNI": (("avx2", "avx512"), "avx512"),
    "both": (("avx2", "avx_vnni", "avx512"), "avx512"),
}


@pytest.mark.parametrize(("features", "best"), CHOICES.values(), ids=CHOICES)
def test_a_processor_gets_the_best_level_that_it_has(features: tuple[str, ...], best: str) -> None:
    levels = _native.isa_levels_with(**dict.fromkeys(features, True))
    assert levels[-1] == best
    assert {*features} <= {*levels}
    assert levels[0] == "scalar"


@pytest.mark.skipif(not CPU_INFO.exists(), reason="only Linux lists the features of a processor")
def test_avx_vnni_is_a_level_where_linux_lists_it() -> None:
    flags = re.search(r"^flags\s*:(.*)$", CPU_INFO.read_text(), re.MULTILINE)
    assert flags
    present = flags[1].split()
    assert ("avx_vnni" in _native.isa_levels()) == ("avx_vnni" in present and "avx2" in present)
