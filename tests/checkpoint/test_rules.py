"""Naming rules: tensors that a maker splits, stacks, permutes, transposes or offsets become
canonical, and back again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pace import seconds_on_an_idle_core
from weights import quantize, random_tensor

from freedive.arrays import Bytes
from freedive.checkpoint import rules as module
from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.rule_steps import Add, Halve, Permute, Row, Transpose
from freedive.checkpoint.rules import Ignore, Rule, Rules, canonical_tensors, maker_tensors
from freedive.checkpoint.tensor import Checkpoint, Tensor
from freedive.errors import UserError
from freedive.model.params import Param
from freedive.model.spec import Attention, FeedForward, Layer, ModelSpec

WIDTH = 32
MODEL = ModelSpec("tiny", 8, WIDTH, (Layer(Attention(1, 1, WIDTH, None, 1), FeedForward(8)),), 1e-6, 8, True)
FLOATS = ("F32", "F16", "BF16")


def theirs_of(name: str, shape: Sequence[int], kind: str, seed: int = 0) -> Tensor:
    """Returns a tensor of random bytes (finite as floats) in a maker's file."""
    if len(shape) == 1:
        values = np.random.default_rng(seed).integers(-(2**15), 2**15, shape).astype(np.float32) / 2**13
        data = quantize(name, values, kind).data.reshape(1, -1)
    else:
        data = random_tensor(kind, int(np.prod(shape[:-1])), shape[-1], seed=seed).data
    return Tensor(name, tuple(shape), kind, data)


def canonical(
    monkeypatch: pytest.MonkeyPatch,
    tensors: Sequence[Tensor],
    rules: Rules,
    expected: dict[str, Sequence[int]],
    role: Any = "linear",
) -> dict[str, Tensor]:
    """Returns the tensors of a model with the weights ``expected``: canonical name -> shape."""
    table = {name: Param(tuple(shape), role) for name, shape in expected.items()}
    monkeypatch.setattr(module, "params", lambda _: table)
    return canonical_tensors(Checkpoint("safetensors", {}, {t.name: t for t in tensors}), MODEL, rules)


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert (ours.name, ours.shape, ours.format) == (theirs.name, theirs.shape, theirs.format)
    assert ours.data.shape == theirs.data.shape
    assert ours.data.tobytes() == theirs.data.tobytes()


# --- each kind of rule: its meaning in numpy, and its inverse -------------------------------------------------------

HEADS, EXPERTS, FFN = 3, 4, 6


def case(rule: Rule, shape: Sequence[int], expected: dict[str, Sequence[int]], meaning: Any, formats: Any) -> Any:
    """Makes a test case; ``meaning`` converts the maker's values to those of ``expected``, in order."""
    return rule, shape, expected, meaning, formats


def experts(*parts: str) -> list[str]:
    return [f"l.0.experts.{index}.{part}" for index in range(EXPERTS) for part in parts]


def halves(x: Any) -> list[Any]:
    return [half for expert in x for half in np.split(expert, 2)]


def alternating(x: Any) -> list[Any]:
    return [half for expert in x for half in (expert[0::2], expert[1::2])]


GATE_UP = tuple(f"l.{{}}.experts.{{}}.{part}" for part in ("gate", "up"))
QUANTISED = ("Q8_0", "Q4_0", *FLOATS)
MATRICES = dict.fromkeys(experts("gate", "up"), (FFN, WIDTH))
VECTORS = dict.fromkeys(experts("gate", "up"), (FFN,))
CASES = {
    "rename": case(Rule("a", ("x",)), (5, WIDTH), {"x": (5, WIDTH)}, lambda x: [x], QUANTISED),
    "rename a vector": case(Rule("a", ("x",)), (5,), {"x": (5,)}, lambda x: [x], FLOATS),
    "one-rowed matrix": case(Rule("a", ("x",)), (WIDTH,), {"x": (1, WIDTH)}, lambda x: [x[None]], FLOATS),
    "two rows in one": case(
        Rule("a", ("x", "y"), (Halve(),), 5),
        (5, 2 * WIDTH),
        {"x": (5, WIDTH), "y": (5, WIDTH)},
        lambda x: [x[:, :WIDTH], x[:, WIDTH:]],
        QUANTISED,
    ),
    "permute": case(
        Rule("a", ("x",), (Permute(4),)),
        (HEADS * 4, WIDTH),
        {"x": (HEADS * 4, WIDTH)},
        lambda x: [x.reshape(HEADS, 2, 2, WIDTH).swapaxes(1, 2).reshape(x.shape)],
        QUANTISED,
    ),
    "permute a bias": case(
        Rule("a", ("x",), (Permute(4),)),
        (HEADS * 4,),
        {"x": (HEADS * 4,)},
        lambda x: [x.reshape(HEADS, 2, 2).swapaxes(1, 2).ravel()],
        FLOATS,
    ),
    "fused q, k, v": case(
        Rule("a", ("q", "k", "v")),
        (12, WIDTH),
        {"q": (6, WIDTH), "k": (2, WIDTH), "v": (4, WIDTH)},
        lambda x: np.split(x, [6, 8]),
        QUANTISED,
    ),
    "fused biases": case(
        Rule("a", ("q", "k", "v")), (12,), {"q": (6,), "k": (2,), "v": (4,)}, lambda x: np.split(x, [6, 8]), FLOATS
    ),
    "alternating rows": case(
        Rule("a", ("g", "u"), blocks=FFN),
        (2 * FFN, WIDTH),
        {"g": (FFN, WIDTH), "u": (FFN, WIDTH)},
        lambda x: [x[0::2], x[1::2]],
        QUANTISED,
    ),
    "keys and values of latents": case(
        Rule("a", ("k_b", "v_b"), blocks=HEADS),
        (HEADS * 5, WIDTH),
        {"k_b": (HEADS, 2, WIDTH), "v_b": (HEADS, 3, WIDTH)},
        lambda x: np.split(x.reshape(HEADS, 5, WIDTH), [2], axis=1),
        QUANTISED,
    ),
    "a stack": case(
        Rule("l.{}.down", ("l.{}.experts.{}.down",)),
        (EXPERTS, 5, WIDTH),
        dict.fromkeys(experts("down"), (5, WIDTH)),
        list,
        QUANTISED,
    ),
    "a stack of biases": case(
        Rule("l.{}.down", ("l.{}.experts.{}.down",)),
        (EXPERTS, 5),
        dict.fromkeys(experts("down"), (5,)),
        list,
        FLOATS,
    ),
    "a stack of halves": case(Rule("l.{}.a", GATE_UP), (EXPERTS, 2 * FFN, WIDTH), MATRICES, halves, QUANTISED),
    "a stack of alternating rows": case(
        Rule("l.{}.a", GATE_UP, blocks=FFN), (EXPERTS, 2 * FFN, WIDTH), MATRICES, alternating, QUANTISED
    ),
    "a stack of alternating biases": case(
        Rule("l.{}.a", GATE_UP, blocks=FFN), (EXPERTS, 2 * FFN), VECTORS, alternating, FLOATS
    ),
    "a transposed stack of halves": case(
        Rule("l.{}.a", GATE_UP, (Transpose(),)),
        (EXPERTS, WIDTH, 2 * FFN),
        MATRICES,
        lambda x: halves(x.swapaxes(1, 2)),
        FLOATS,
    ),
    "a transposed stack of alternating rows": case(
        Rule("l.{}.a", GATE_UP, (Transpose(),), FFN),
        (EXPERTS, WIDTH, 2 * FFN),
        MATRICES,
        lambda x: alternating(x.swapaxes(1, 2)),
        FLOATS,
    ),
    "transposed heads": case(
        Rule("a", ("k_b",), (Transpose(),)),
        (HEADS, WIDTH, 5),
        {"k_b": (HEADS, 5, WIDTH)},
        lambda x: [x.swapaxes(1, 2)],
        FLOATS,
    ),
    "one row": case(Rule("a", ("x",), (Row(),)), (1, 5), {"x": (5,)}, list, FLOATS),
    "norms that add one": case(Rule("a", ("x",), (Add(1),)), (5,), {"x": (5,)}, lambda x: [x + 1], ("F32",)),
}


@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name, entry in CASES.items() for kind in entry[-1]])
def test_a_rule_means_what_numpy_says_and_comes_back(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule, shape, expected, meaning, _ = CASES[name]
    theirs = theirs_of(rule.theirs.format(0), shape, kind)
    ours = canonical(monkeypatch, [theirs], [rule], expected)
    assert list(ours) == list(expected)
    for (key, tensor), values in zip(ours.items(), meaning(dequantize(theirs)), strict=True):
        assert (tensor.name, tensor.shape, tensor.format) == (key, expected[key], kind)
        assert tensor.data.shape[0] == np.prod(tensor.shape[:-1])
        np.testing.assert_array_equal(dequantize(tensor), values)
    (back,) = maker_tensors(ours, [rule]).values()
    if name != "one-rowed matrix":
        assert_same(back, theirs)
    assert back.data.tobytes() == theirs.data.tobytes()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(["F32", "F16", "Q8_0"]),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_any_chain_comes_back(
    kind: str, shares: list[int], blocks: int, num_experts: int, permuted: bool, transposed: bool
) -> None:
    """``shares`` are the rows of each part in a block; ``num_experts`` 0 means no stack."""
    names = [f"part{index}" for index in range(len(shares))]
    stack = "e.{}." if num_experts else ""
    rows = 4 * blocks * sum(shares)
    transposed = transposed and kind != "Q8_0"
    steps = (Transpose(),) * transposed + (Permute(4),) * permuted
    rule = Rule("a", tuple(f"{stack}{name}" for name in names), steps, blocks)
    shape = (num_experts,) * bool(num_experts) + ((WIDTH, rows) if transposed else (rows, WIDTH))
    theirs = theirs_of("a", shape, kind)
    expected = {
        f"{stack.format(expert)}{name}": (4 * blocks * share, WIDTH)
        for expert in range(num_experts or 1)
        for name, share in zip(names, shares, strict=True)
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        ours = canonical(monkeypatch, [theirs], [rule], expected)
    assert_same(maker_tensors(ours, [rule])["a"], theirs)


# --- formats --------------------------------------------------------------------------------------------------------


def test_transposing_quantised_rows_makes_half_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule("a", ("k_b",), (Transpose(),))
    theirs = theirs_of("a", (HEADS, 5, WIDTH), "Q8_0")
    ours = canonical(monkeypatch, [theirs], [rule], {"k_b": (HEADS, WIDTH, 5)})["k_b"]
    assert ours.format == "F16"
    np.testing.assert_array_equal(dequantize(ours), dequantize(theirs).astype(np.float16).swapaxes(1, 2))


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_adding_one_is_done_in_float32(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule("a", ("x",), (Add(1),))
    theirs = theirs_of("a", (WIDTH,), kind)
    ours = canonical(monkeypatch, [theirs], [rule], {"x": (WIDTH,)}, "norm")["x"]
    assert ours.format == "F32"
    np.testing.assert_array_equal(dequantize(ours), dequantize(theirs) + 1)
    back = maker_tensors({"x": ours}, [rule])["a"]
    np.testing.assert_array_equal(dequantize(back), dequantize(theirs))


@pytest.mark.parametrize(("role", "shape"), [("norm", (WIDTH,)), ("bias", (WIDTH,)), ("router", (2, WIDTH))])
def test_norms_biases_and_routers_are_floats(role: str, shape: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = Rule("a", ("x",))
    for kind in FLOATS:
        canonical(monkeypatch, [theirs_of("a", shape, kind)], [rule], {"x": shape}, role)
    wrong = Tensor("a", shape, "Q8_0", np.zeros((1, 34), np.uint8))
    with pytest.raises(UserError, match="'a' is Q8_0 instead of F32, F16 or BF16"):
        canonical(monkeypatch, [wrong], [rule], {"x": shape}, role)


# --- tensors are computed on demand -----------------------------------------------------------------------------------


def test_plain_experts_are_views_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    rule, shape, expected, _, _ = CASES["a stack of halves"]
    theirs = theirs_of("l.0.a", shape, "Q8_0")
    for tensor in canonical(monkeypatch, [theirs], [rule], expected).values():
        assert np.shares_memory(tensor.data, theirs.data)


def test_only_the_wanted_experts_rows_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, int]] = []
    theirs = theirs_of("l.0.a", (EXPERTS, 2 * FFN, WIDTH), "F16")

    def rows(begin: int, end: int) -> Bytes:
        made.append((begin, end))
        return theirs.data[begin:end]

    lazy = Tensor("l.0.a", theirs.shape, "F16", rows)
    ours = canonical(monkeypatch, [lazy], [Rule("l.{}.a", GATE_UP, blocks=FFN)], MATRICES)
    assert made == []
    np.testing.assert_array_equal(dequantize(ours["l.0.experts.2.up"]), dequantize(theirs)[2, 1::2])
    assert made == [(4 * FFN, 6 * FFN)]


# --- names ------------------------------------------------------------------------------------------------------------


def test_faults_name_the_makers_tensor_in_its_own_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shape in (
        ("a stack of halves", "[4, 12, 32]"),
        ("a transposed stack of halves", "[4, 32, 12]"),
        ("a stack of alternating biases", "[4, 12]"),
        ("keys and values of latents", "[15, 32]"),
    ):
        rule, _, expected, _, _ = CASES[name]
        theirs = rule.theirs.format(0)
        with pytest.raises(UserError) as caught:
            canonical(monkeypatch, [], [rule], expected)
        assert f"configured: {theirs} {shape} is missing. " in str(caught.value)
        with pytest.raises(UserError) as caught:
            canonical(monkeypatch, [theirs_of(theirs, (3, WIDTH), "F32")], [rule], expected)
        assert f"'{theirs}' is [3, 32] instead of {shape}. " in str(caught.value)


@pytest.mark.parametrize(("shape", "ours"), [((1, 5), (5,)), ((1, 1, 5), (5,)), ((5,), (1, 5)), ((1, 1), (1,))])
def test_leading_ones_are_no_difference(shape: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = Tensor("a", shape, "F32", np.arange(shape[-1], dtype=np.float32).reshape(1, -1).view(np.uint8))
    tensor = canonical(monkeypatch, [theirs], [Rule("a", ("x",))], {"x": ours})["x"]
    assert (tensor.shape, tensor.data.tobytes()) == (ours, theirs.data.tobytes())


def test_the_rule_whose_tensor_is_there_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = Rule("fused", ("q", "k"))
    rules = [fused, Rule("q_proj", ("q",)), Rule("k_proj", ("k",))]
    expected = {"q": (2, WIDTH), "k": (1, WIDTH)}
    q, k = theirs_of("q_proj", (2, WIDTH), "F32"), theirs_of("k_proj", (1, WIDTH), "F32")
    both = theirs_of("fused", (3, WIDTH), "F32")
    assert canonical(monkeypatch, [q, k], rules, expected)["k"].data.tobytes() == k.data.tobytes()
    assert canonical(monkeypatch, [both], rules, expected)["k"].data.tobytes() == both.data[2:].tobytes()
    with pytest.raises(UserError, match="'k_proj' is unexpected"):
        canonical(monkeypatch, [both, k], rules, expected)
    with pytest.raises(UserError, match=r"fused \[3, 32\] is missing"):
        canonical(monkeypatch, [], rules, expected)
    for one in (q, k):
        with pytest.raises(UserError, match="fused is missing, and other tensors have only some of its weights"):
            canonical(monkeypatch, [one], rules, expected)
    assert list(maker_tensors({"q": q, "k": k}, rules)) == ["fused"]


def test_stacks_of_which_a_part_is_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = [Rule("stack", ("x.{}.up",)), Rule("x.{}.up_proj", ("x.{}.up",))]
    expected = {f"x.{index}.up": (1, WIDTH) for index in range(3)}
    alone = [theirs_of(f"x.{index}.up_proj", (1, WIDTH), "F32") for index in (0, 2)]
    with pytest.raises(UserError, match="stack is missing, and other tensors have only some of its weights"):
        canonical(monkeypatch, alone, rules, expected)


def test_whole_parts_are_ignored_by_their_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    ignored = ["visual.*", "model.layers.61.*", "blk.{}.nextn.*", "buffer", "l.{}.inv_freq"]
    rules = [Rule("a", ("x",)), *map(Ignore, ignored)]

    def load(extra: str) -> None:
        tensors = [theirs_of("a", (1, WIDTH), "F32"), theirs_of(extra, (1, WIDTH), "F32")]
        canonical(monkeypatch, tensors, rules, {"x": (1, WIDTH)})

    for extra in ("visual.a.0.b", "model.layers.61.mlp.0.x", "blk.46.nextn.norm", "buffer", "l.3.inv_freq"):
        load(extra)
    for extra in ("visua", "model.layers.6.x", "model.layers.610.x", "blk.x.nextn.norm", "buffer.b", "l.{}.inv_freq"):
        with pytest.raises(UserError, match="is unexpected"):
            load(extra)


def test_forty_five_thousand_tensors_take_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSeek-V3 has 45,000 tensors."""
    parts = ("gate", "up", "down")
    rules = [
        Rule(f"model.layers.{{}}.mlp.experts.{{}}.{p}_proj.weight", (f"layers.{{}}.ffn.experts.{{}}.{p}",))
        for p in parts
    ]
    names = [(layer, expert, part) for layer in range(58) for expert in range(256) for part in parts]
    data = np.zeros((1, 128), np.uint8)
    theirs = [Tensor(f"model.layers.{i}.mlp.experts.{e}.{p}_proj.weight", (1, WIDTH), "F32", data) for i, e, p in names]
    expected = {f"layers.{i}.ffn.experts.{e}.{p}": (1, WIDTH) for i, e, p in names}

    def load() -> None:
        assert len(canonical(monkeypatch, theirs, rules, expected)) == 58 * 256 * 3

    assert seconds_on_an_idle_core(load, times=3) < 1  # it takes about 0.5 s
