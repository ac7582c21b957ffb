"""Packing and products in every format at every instruction-set level, compared with the gguf library and numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from weights import HALVES, KERNELS, KINDS, LEVELS, Floats, random_tensor, set_iq1_m_scale, unpack

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.packed import FORMATS, PackedTensor, pack
from freedive.checkpoint.tensor import Tensor
from freedive.native import _native

PANEL = 32
GROUP = 32
MAX_CODE = 127 * 256 + 127
MAX_NMSE = 1e-6


def widths(kind: str) -> tuple[int, ...]:
    """Returns input dimensions: the smallest of a format, an odd number of groups, and several blocks."""
    if kind not in HALVES:
        return (1, 7, 45, 128, 300)
    block = BLOCKS[kind][0]
    return (block, 3 * block, 9 * block) if block < 256 else (256, 512, 768)


def multiply(level: str, w: PackedTensor, x: Floats, *, in_bf16: bool = False) -> Floats:
    """Returns products [M, rows rounded up to whole panels] of activations ``x`` [M, k]; ``in_bf16`` as of prompts."""
    rows, k = w.shape
    panels = -(-rows // PANEL)
    out = np.full(panels * len(x) * PANEL, np.nan, np.float32)
    _native.multiply(level, FORMATS[w.format], rows, k, w.data, np.ascontiguousarray(x), out, in_bf16)
    return out.reshape(panels, len(x), PANEL).swapaxes(0, 1).reshape(len(x), -1)


def activations(num_rows: int, k: int, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).standard_normal((num_rows, k)).astype(np.float32)


def as_read_by(kind: str, x: Floats) -> Floats:
    """Returns ``x`` as the kernels round it: 16 bits with one scale per 32 inputs if weights are quantised."""
    if kind not in HALVES:
        return x
    groups = x.reshape(len(x), -1, GROUP)
    top = np.abs(groups).max(-1, keepdims=True)
    codes = np.rint(groups * (np.float32(MAX_CODE) / np.where(top > 0, top, 1)))
    seen: Floats = (codes * (top / np.float32(MAX_CODE))).reshape(x.shape)
    return seen


def product(tensor: Tensor, x: Floats) -> np.ndarray[Any, Any]:
    """Returns x @ w.T in float64."""
    return x.astype(np.float64) @ dequantize(tensor).astype(np.float64).T


def check_exact(tensor: Tensor, x: Floats, level: str) -> Floats:
    """Checks that the kernel's product differs from float64's only by the rounding of float32 sums."""
    got = multiply(level, pack(tensor), x)
    x = as_read_by(tensor.format, x)
    expected = product(tensor, x)
    # Codes and minima are summed separately and may cancel: the largest weight of a row bounds both.
    size = np.abs(x).sum(-1)[:, None] * np.abs(dequantize(tensor)).max(-1)
    assert np.all(np.abs(got[:, : expected.shape[1]] - expected) <= 1e-6 * size + 1e-30)
    assert not got[:, expected.shape[1] :].any(), "rows that only fill a panel are not 0"
    return got


def test_every_format_of_the_kernels_is_tested() -> None:
    assert KERNELS.keys() == FORMATS.keys()


@pytest.mark.parametrize("kind", KINDS)
def test_a_packed_weight_holds_what_the_gguf_library_reads(kind: str) -> None:
    for k in widths(kind):
        for rows in (1, 31, 32, 33, 100):
            tensor = random_tensor(kind, rows, k, seed=rows)
            packed = pack(tensor)
            np.testing.assert_array_equal(unpack(packed), dequantize(tensor))
            np.testing.assert_array_equal(pack(tensor, num_threads=5).data, packed.data)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KERNELS.values())
def test_products_are_those_of_the_dequantised_weights(kind: str, level: str) -> None:
    for k in widths(kind):
        tensor = random_tensor(kind, 70, k, seed=k)
        x = activations(5, k)
        got = check_exact(tensor, x, level)
        expected = product(tensor, x)
        error = ((got[:, :70] - expected) ** 2).sum() / (expected**2).sum()
        assert error <= MAX_NMSE, f"{kind} {level} k={k}: NMSE {error:.1e}"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KERNELS.values())
def test_a_row_is_equal_alone_in_a_batch_and_on_every_level(kind: str, level: str) -> None:
    k = widths(kind)[-1]
    packed = pack(random_tensor(kind, 70, k))
    x = activations(40, k)
    together = multiply(level, packed, x)
    np.testing.assert_array_equal(together, multiply("scalar", packed, x))
    for m in range(1, 40):
        np.testing.assert_array_equal(multiply(level, packed, x[:m]), together[:m])
        np.testing.assert_array_equal(multiply(level, packed, x[m:]), together[m:])


def peculiar(k: int) -> dict[str, Floats]:
    """Returns activations that could make a kernel overflow, divide by zero, or round differently."""
    x = activations(3, k)
    outlier, sparse = x.copy(), np.zeros_like(x)
    outlier[:, k // 2] = [1e4, -1e4, 3e5]
    sparse[:, -1] = 1
    return {
        "zero": np.zeros_like(x),
        "negative zero": -np.zeros_like(x),
        "outlier": outlier,
        "sparse": sparse,
        "huge": x * np.float32(1e25),
        "tiny": x * np.float32(1e-25),
        "subnormal": x * np.float32(1e-40),
        "all at the top": np.where(x > 0, np.float32(3), np.float32(-3)),
        "halfway": np.where(x > 0, np.float32(127), np.float32(0.5)),
    }


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KERNELS.values())
def test_peculiar_activations(kind: str, level: str) -> None:
    k = widths(kind)[-1]
    tensor = random_tensor(kind, 33, k)
    packed = pack(tensor)
    for name, x in peculiar(k).items():
        got = multiply(level, packed, x)
        np.testing.assert_array_equal(got, multiply("scalar", packed, x), err_msg=name)
        if name != "subnormal":  # as_read_by and the kernels may flush different subnormals to 0
            check_exact(tensor, x, level)
        if not x.any():
            assert not got.any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", KERNELS.values())
@pytest.mark.parametrize("scale", [0.0, 3e-7, 6e-5, 100.0], ids=["zero", "subnormal", "half subnormal", "large"])
def test_peculiar_scales(kind: str, level: str, scale: float) -> None:
    k = widths(kind)[-1]
    got = check_exact(random_tensor(kind, 33, k, scale=scale), activations(3, k), level)
    assert got.any() == (scale > 0 or kind == "MXFP4")  # the smallest scale of MXFP4 is 2^-128


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("kind", [kind for kind in KERNELS.values() if kind in HALVES])
def test_extreme_codes_do_not_overflow(kind: str, level: str) -> None:
    """All codes and all activations are at an extreme, which gives the largest integer sums."""
    k = widths(kind)[-1]
    block, num_bytes = BLOCKS[kind]
    for fill in (0x00, 0x7F, 0x80, 0xFF):
        data = np.full((33, k // block, num_bytes), fill, np.uint8)
        for at in HALVES[kind]:
            data[..., at : at + 2] = np.array([0.5], np.float16).view(np.uint8)
        if kind == "MXFP4":
            data[..., 0] = 127
        if kind == "IQ1_M":
            set_iq1_m_scale(data, np.full((33, k // block, 1), 0.5))
        if kind == "F4G16":
            data[..., :4] = np.array([0.5], np.float32).view(np.uint8)
            data[..., 4:20] = 0x40
        tensor = Tensor("w", (33, k), kind, data.reshape(33, -1))
        for value in (1, -1):
            check_exact(tensor, np.full((2, k), value, np.float32), level)


# --- half floats --------------------------------------------------------------------------------------------------

HALF_FLOATS = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
HALF_FLOATS = HALF_FLOATS[np.isfinite(HALF_FLOATS)]


def same_floats(a: Floats, b: Floats) -> bool:
    """Returns whether all bits are equal."""
    return bool(np.all(a.view(np.uint32) == b.view(np.uint32)))


def column(kind: str, values: np.ndarray[Any, Any]) -> PackedTensor:
    """Returns a matrix with one input."""
    return pack(Tensor("w", (len(values), 1), kind, values.view(np.uint8).reshape(len(values), -1)))


def test_every_half_float_is_unpacked_as_numpy_reads_it() -> None:
    assert same_floats(unpack(column("F16", HALF_FLOATS))[:, 0], HALF_FLOATS.astype(np.float32))


@pytest.mark.parametrize("level", LEVELS)
def test_every_half_float_is_loaded_as_numpy_reads_it(level: str) -> None:
    expected = HALF_FLOATS.astype(np.float32) + np.float32(0)  # a sum that starts at 0 has no negative zero
    got = multiply(level, column("F16", HALF_FLOATS), np.ones((1, 1), np.float32))[0, : len(expected)]
    assert same_floats(got, expected)


def awkward_floats() -> Floats:
    """Returns every half float, the midpoints of neighbours and values next to those, and values out of range."""
    halves = HALF_FLOATS.astype(np.float32)
    ordered = np.unique(halves)
    middle = (ordered[:-1].astype(np.float64) + ordered[1:]) / 2
    near = [np.nextafter(middle.astype(np.float32), np.float32(end)) for end in (-np.inf, np.inf)]
    beyond = [65504, 65519.99, 65520, 1e6, 3e38, -65520, -3e38, 1e-45, -1e-45, 2.9e-8]
    return np.concatenate([halves, middle.astype(np.float32), *near, np.array(beyond, np.float32)])


@pytest.mark.parametrize("level", LEVELS)
def test_the_cache_rounds_to_half_floats_as_numpy_does_and_saturates(level: str) -> None:
    """A token that attends only to itself returns its own value as the cache stores it."""
    heads, dim = 32, 64
    values = awkward_floats()
    tokens = -(-len(values) // (heads * dim))
    table = np.zeros((tokens, heads * dim), np.float32)
    table.ravel()[: len(values)] = values

    program = _native.Program(level, 2)
    q, k, v, out, result = (program.buffer(heads * dim, wanted) for wanted in (False, False, False, False, True))
    tables = {name: pack(Tensor(name, table.shape, "F32", data.view(np.uint8))) for name, data in
              {"zeros": np.zeros_like(table), "values": table}.items()}  # fmt: skip
    handles = {name: program.weight(FORMATS["F32"], *table.shape, w.data) for name, w in tables.items()}
    for buffer, name in ((q, "zeros"), (k, "zeros"), (v, "values")):
        program.embed(handles[name], buffer)
    program.attention(
        q=q,
        k=k,
        v=v,
        out=out,
        source=-1,
        num_heads=heads,
        num_kv_heads=heads,
        key_dim=dim,
        value_dim=dim,
        scale=1.0,
        softcap=0.0,
        window=0,
        chunk=0,
        sinks=-1,
        q_steps=[],
        k_steps=[],
        v_steps=[],
    )
    program.select(out, result)
    program.allocate(tokens, tokens)

    ids = np.arange(tokens, dtype=np.int32)
    got = program.step(
        ids,
        np.ones_like(ids),
        np.zeros_like(ids),
        ids[:, None].copy(),
        ids,
        np.ones_like(ids),
        0,
        program.num_operations,
        result,
    )
    expected = np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(got.ravel()[: len(values)], expected)
