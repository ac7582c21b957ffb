"""The binding checks all arguments of Python: no read or write is out of bounds."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from descriptions import SHAPES
from tiny_models import pack_floats
from weights import random_tensor

from freedive.checkpoint.packed import FORMATS, pack
from freedive.engine.sampler import logprobs
from freedive.model import spec
from freedive.model.batch import Batch, StateUpdates
from freedive.model.params import params
from freedive.native import _native
from freedive.ops.native import MAX_SNAPSHOTS, NativeRunner, num_snapshots

LOGITS = np.array([0.5, 2, 1], np.float32)
BEYOND = (-1, 1 << 20, 2**31 - 1, -(2**31))


def ints(*values: int) -> Any:
    return np.array(values, np.int32)


def runner_of(shape: str, **sizes: int) -> NativeRunner:
    model, rng = SHAPES[shape], np.random.default_rng(0)
    weights = {name: rng.standard_normal(param.shape, np.float32) for name, param in params(model).items()}
    return NativeRunner(model, pack_floats(weights), num_threads=1, max_rows=8, num_pages=2, **sizes)


@pytest.fixture(scope="module")
def runner() -> NativeRunner:
    return runner_of("part of a head rotates")


def batch(**changes: Any) -> Batch:
    """Returns a batch of two sequences, of two tokens and one, with two output rows."""
    arrays = {
        "tokens": ints(1, 2, 3),
        "lengths": ints(2, 1),
        "starts": ints(0, 4),
        "pages": ints(0, 1).reshape(2, 1),
        "output_rows": ints(1, 2),
        "prompts": ints(2, 5),
    }
    return Batch(**(arrays | changes))


def test_a_step_that_fits_is_taken(runner: NativeRunner) -> None:
    assert runner.step(batch()).shape == (2, runner.vocab_size)


@pytest.fixture(scope="module", params=["short convolutions", "delta rule", "delta rule by channel"])
def recurrent(request: pytest.FixtureRequest) -> NativeRunner:
    """Returns a model with per-sequence states, for two sequences and some snapshots."""
    return runner_of(request.param, max_sequences=2)


def moves(**changes: Any) -> StateUpdates:
    """Returns state updates for :func:`batch`: one state begins at 0, one has an accepted draft token; one is saved."""
    arrays = {"slots": ints(0, 1), "begins": ints(0, 3), "ends": ints(2, 5), "saves": ints(1, 4, 2).reshape(-1, 3)}
    return StateUpdates(**(arrays | changes))


def test_snapshots_of_large_states_are_bounded() -> None:
    """A state of Qwen3.5-35B has 63 MiB, one of LFM2 16 KiB."""
    assert num_snapshots(16 << 10, cache_bytes=0, max_sequences=16) == 32
    assert num_snapshots(63 << 20, cache_bytes=0, max_sequences=16) == 8
    assert num_snapshots(1 << 30, cache_bytes=0, max_sequences=16) == 2
    assert num_snapshots(63 << 20, cache_bytes=8 << 30, max_sequences=1) == 32
    assert num_snapshots(1 << 10, cache_bytes=8 << 30, max_sequences=1) == MAX_SNAPSHOTS


def test_valid_state_updates_are_applied(recurrent: NativeRunner) -> None:
    assert recurrent.step(batch(states=moves())).shape == (2, recurrent.vocab_size)


WRONG_MOVES: dict[str, dict[str, Any]] = {
    **{f"slot {index}": {"slots": ints(0, index)} for index in (*BEYOND, 2)},
    "behind the start": {"begins": ints(0, 5)},
    "before the first token": {"begins": ints(-1, 3)},
    "more drafts than are kept": {"begins": ints(0, 3), "ends": ints(2, 30)},
    "an end before the start": {"ends": ints(2, 3)},
    "an end behind the rows": {"ends": ints(3, 5)},
    "one sequence": {"slots": ints(0), "begins": ints(0), "ends": ints(2)},
    **{f"a copy in slot {index}": {"saves": ints(1, 4, index).reshape(-1, 3)} for index in (*BEYOND, 0, 1)},
    **{f"a copy at {at}": {"saves": ints(1, at, 2).reshape(-1, 3)} for at in (3, 6, *BEYOND)},
    **{f"a copy of {index}": {"saves": ints(index, 4, 2).reshape(-1, 3)} for index in (*BEYOND, 2)},
    "a copy of two numbers": {"saves": ints(1, 4).reshape(-1, 2)},
}


@pytest.mark.parametrize("name", WRONG_MOVES)
def test_states_beyond_their_bounds_are_refused(name: str, recurrent: NativeRunner) -> None:
    with pytest.raises((ValueError, IndexError)):
        recurrent.step(batch(states=moves(**WRONG_MOVES[name])))


def test_a_step_without_state_updates_is_refused(recurrent: NativeRunner) -> None:
    with pytest.raises(ValueError, match="nothing of states"):
        recurrent.step(batch())


WRONG: dict[str, dict[str, Any]] = {
    **{f"token {index}": {"tokens": ints(1, index, 3)} for index in (*BEYOND, 77)},
    **{f"page {index}": {"pages": ints(0, index).reshape(2, 1)} for index in (*BEYOND, 2)},
    **{f"wanted {index}": {"output_rows": ints(0, index)} for index in (*BEYOND, 3)},
    **{f"start {index}": {"starts": ints(0, index)} for index in (*BEYOND, 32)},
    **{f"length {index}": {"lengths": ints(2, index)} for index in BEYOND},
    "lengths that do not add up": {"lengths": ints(1, 1)},
    "a length and its opposite": {"lengths": ints(4, -1)},
    "too few starts": {"starts": ints(0)},
    "too few prompts": {"prompts": ints(2)},
    "too few tables": {"pages": ints(0).reshape(1, 1)},
    "no pages": {"pages": ints().reshape(2, 0)},
    "too many rows": {"tokens": ints(*range(9)), "lengths": ints(8, 1)},
    "too many wanted": {"output_rows": ints(*[0] * 9)},
}


@pytest.mark.parametrize("name", WRONG)
def test_a_step_beyond_its_bounds_is_refused(name: str, runner: NativeRunner) -> None:
    before = runner.step(batch())
    with pytest.raises((IndexError, ValueError)):
        runner.step(batch(**WRONG[name]))
    np.testing.assert_array_equal(runner.step(batch()), before)


@pytest.mark.parametrize("part", [(-1, 1, 0), (0, 1000, 0), (2, 1, 0), (0, 1, 1000), (0, 1, -1)])
def test_unknown_operations_and_buffers_are_refused(part: Any, runner: NativeRunner) -> None:
    with pytest.raises((IndexError, ValueError)):
        runner._run(batch(), part)
    with pytest.raises(IndexError):
        runner._program.read(1000)


# --- functions without a program ----------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [4, *BEYOND])
def test_more_of_the_likeliest_tokens_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(IndexError):
        _native.likeliest(LOGITS, k)


@pytest.mark.parametrize("places", [[0], [70], [99], range(100)])
def test_logits_that_are_not_numbers_do_no_harm(places: Any) -> None:
    logits = np.zeros(100, np.float32)
    logits[places] = np.nan
    tokens, _ = _native.likeliest(logits, 20)
    assert len(set(tokens)) == len(tokens) <= 20


@pytest.mark.parametrize("row", [3, *BEYOND])
def test_the_experts_of_an_unknown_row_are_refused(row: int, runner: NativeRunner) -> None:
    runner.step(batch())
    with pytest.raises(IndexError):
        runner.chosen_experts(row)


def test_more_alternatives_than_tokens_are_all_of_them() -> None:
    for size in (1, 2, 3):
        found = logprobs(LOGITS[:size], 0, 20).top
        assert len(found) == size


def test_a_vocabulary_of_two_is_drawn_from() -> None:
    model = replace(SHAPES["part of a head rotates"], vocab_size=2)
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal(param.shape, np.float32) for name, param in params(model).items()}
    runner = NativeRunner(model, pack_floats(weights), num_threads=2, max_rows=8, num_pages=2)
    for row in runner.step(batch(tokens=ints(1, 0, 1))):
        assert len(logprobs(row, 0, 20).top) == 2
        for top_k in (0, 1, 2, 50):
            assert _native.draw(row, 1.0, top_k, 0.9, 0.1, 0.5) in (0, 1)


@pytest.mark.parametrize("index", [*BEYOND, 5])
def test_a_row_that_is_not_there_is_refused(index: int) -> None:
    data = pack(random_tensor("Q8_0", 5, 32)).data
    with pytest.raises((IndexError, TypeError)):
        _native.unpack_row(FORMATS["Q8_0"], 5, 32, data, index, np.empty(32, np.float32))


def wrong_calls() -> dict[str, Callable[[], Any]]:
    data, out = pack(random_tensor("Q8_0", 5, 32)).data, np.empty(32, np.float32)
    x, products = np.zeros((2, 32), np.float32), np.empty(64, np.float32)
    level, kind, nothing = _native.isa_levels()[0], FORMATS["Q8_0"], np.empty(0, np.float32)
    return {
        "negative rows": lambda: _native.packed_bytes(kind, -5, 32),
        "half a group": lambda: _native.packed_bytes(kind, 5, 33),
        "too much": lambda: _native.packed_bytes(kind, 2**31 - 1, 2**31 - 32),
        "a short row": lambda: _native.unpack_row(kind, 5, 32, data, 0, out[:31]),
        "short data": lambda: _native.unpack_row(kind, 5, 32, data[:-64], 0, out),
        "a wide product": lambda: _native.multiply(level, kind, 5, 32, data, np.zeros((2, 64), np.float32), products),
        "a short product": lambda: _native.multiply(level, kind, 5, 32, data, x, products[:-1]),
        "a short mask": lambda: _native.mask(LOGITS, np.zeros(1, np.uint8), np.empty(2, np.float32)),
        "a long weighing": lambda: _native.weigh(LOGITS, 1.0, 0, 1.0, 0.0, np.empty(999, np.float32)),
        "no logits": lambda: _native.draw(nothing, 1.0, 0, 1.0, 0.0, 0.5),
    }


@pytest.mark.parametrize("name", wrong_calls())
def test_sizes_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises((IndexError, ValueError)):
        wrong_calls()[name]()


# --- programs -----------------------------------------------------------------------------------------------------


def program() -> Any:
    """Returns a program with buffers of 32 and 64 numbers, a weight [64, 32], and a vector of 32."""
    made = _native.Program(_native.isa_levels()[0], 1)
    made.buffer(32, False)
    made.buffer(64, False)
    made.weight(FORMATS["F32"], 64, 32, pack(random_tensor("F32", 64, 32)).data)
    made.vector(np.zeros(32, np.float32))
    return made


def attention(made: Any, **changes: Any) -> Any:
    numbers = {"q": 1, "k": 0, "v": 0, "out": 1, "num_heads": 4, "num_kv_heads": 2, "key_dim": 16, "value_dim": 16}
    rest = {"scale": 1.0, "softcap": 0.0, "window": 0, "chunk": 0, "sinks": -1, "source": -1}
    return made.attention(**(numbers | rest | {"q_steps": [], "k_steps": [], "v_steps": []} | changes))


def row_glu(made: Any, **changes: Any) -> Any:
    numbers = {"gate": 0, "up": 1, "first": 0, "out": 0, "activation": _native.Activation.silu, "limit": 0.0}
    return made.row_glu(**(numbers | changes))


def delta_rule(made: Any, **changes: Any) -> Any:
    """One key head and two value heads, all of 16 dimensions; buffer 0 has 32 numbers and buffer 1 has 64."""
    keys, values, gates = made.buffer(16, False), made.buffer(32, False), made.buffer(2, False)
    buffers = {"q": keys, "k": keys, "v": values, "out": values, "beta": gates, "decay": gates}
    sizes = {"num_key_heads": 1, "num_value_heads": 2, "key_dim": 16, "value_dim": 16}
    rest = {"by_channel": False, "tiled": False, "rate": 0, "bias": 0, "decay_bound": 0.0}
    return made.delta_rule(**(buffers | sizes | rest | changes))


def gated_norm(made: Any, **changes: Any) -> Any:
    numbers = {"x": 0, "gate": 0, "out": 0, "weight": 0, "head_dim": 16, "eps": 1e-6}
    return made.gated_norm(**(numbers | {"activation": _native.Activation.silu} | changes))


RECORDINGS: dict[str, Callable[[Any], Any]] = {
    "no buffer": lambda made: made.select(7, 0),
    "another width": lambda made: made.select(0, 1),
    "no table": lambda made: made.embed(9, 0),
    "a table of another width": lambda made: made.embed(0, 1),
    "a linear that reads more": lambda made: made.linear(1, (-1, 0.0), [(0, -1, 1)], 1.0, []),
    "a linear that writes more": lambda made: made.linear(0, (-1, 0.0), [(0, -1, 0)], 1.0, []),
    "a residual of another width": lambda made: made.linear(0, (-1, 0.0), [(0, -1, 1)], 1.0, [0]),
    "a short bias": lambda made: made.linear(0, (-1, 0.0), [(0, 0, 1)], 1.0, []),
    "no norm": lambda made: made.linear(0, (5, 0.0), [(0, -1, 1)], 1.0, []),
    "a norm without weights": lambda made: made.row_norm(x=0, out=0, norm=(-1, 0.0), part=32),
    "a norm of parts that do not divide a row": lambda made: made.row_norm(x=0, out=0, norm=(0, 0.0), part=20),
    "a norm of no columns": lambda made: made.row_norm(x=0, out=0, norm=(0, 0.0), part=0),
    "a norm with a residual of another width": lambda made: made.row_norm(
        x=0, out=0, norm=(0, 0.0), part=32, residuals=[1]
    ),
    "a gate that is wider than the result": lambda made: row_glu(made, gate=1),
    "columns beyond a row": lambda made: row_glu(made, first=33),
    "columns before a row": lambda made: row_glu(made, first=-1),
    "keys of no layer": lambda made: attention(made, k=-1, v=-1, source=0),
    "a gate of many numbers": lambda made: made.row_operation(_native.RowKind.SIGMOID_GATE, 0, 1, 0.0, 0),
    "a softplus gate of many numbers": lambda made: made.row_operation(_native.RowKind.SOFTPLUS_GATE, 0, 1, 0.0, 0),
    "a temperature without parameters": lambda made: made.row_operation(
        _native.RowKind.SCALE_BY_POSITION, 0, -1, 0.0, 0
    ),
    "a sum with another width": lambda made: made.row_operation(_native.RowKind.ADD, 0, 1, 0.0, 0),
    "heads that are too wide": lambda made: attention(made, key_dim=1000),
    "heads that are more than the row": lambda made: attention(made, num_heads=8),
    "heads that do not divide": lambda made: attention(made, num_kv_heads=3),
    "no heads": lambda made: attention(made, num_heads=0, num_kv_heads=0),
    "a short sink": lambda made: attention(made, sinks=3),
    "wide rotations": lambda made: attention(made, q_steps=[(_native.HeadStepKind.ROPE_HALVES, 0, 32, 0.0, 0.0)]),
    "a delta rule of wider heads": lambda made: delta_rule(made, key_dim=1000),
    "a delta rule of more heads": lambda made: delta_rule(made, num_value_heads=4),
    "a delta rule whose heads do not divide": lambda made: delta_rule(made, num_key_heads=3),
    "a delta rule without heads": lambda made: delta_rule(made, num_key_heads=0, num_value_heads=0),
    "a delta rule with fewer decays": lambda made: delta_rule(made, by_channel=True),
    "a delta rule without rates": lambda made: delta_rule(made, rate=7),
    "a gated norm of heads that do not divide": lambda made: gated_norm(made, head_dim=20),
    "a gated norm of no dimensions": lambda made: gated_norm(made, head_dim=0),
    "a gated norm with a wider gate": lambda made: gated_norm(made, gate=1),
    "a gated norm without weights": lambda made: gated_norm(made, weight=-1),
    "heads that cut a weight": lambda made: made.weight(FORMATS["F32"], 64, 32, np.zeros(8192, np.uint8), 3),
    "no rows": lambda made: made.allocate(0, 1),
    "no pages": lambda made: made.allocate(1, 0),
}


@pytest.mark.parametrize("name", RECORDINGS)
def test_an_operation_that_does_not_fit_is_not_recorded(name: str) -> None:
    made = program()
    with pytest.raises((IndexError, ValueError)):
        RECORDINGS[name](made)
    assert made.num_operations == 0


def test_keys_of_a_layer_with_other_heads_are_refused() -> None:
    made = program()
    source = attention(made)
    assert attention(made, k=-1, v=-1, source=source) == source
    with pytest.raises(ValueError, match="heads do not fit"):
        attention(made, k=-1, v=-1, source=source, num_kv_heads=1)


UNNAMED: dict[str, Callable[[Any], Any]] = {
    "a format": lambda made: _native.unpack_row(99, 5, 32, np.zeros(8192, np.uint8), 0, LOGITS),
    "a negative format": lambda made: _native.packed_bytes(-1, 5, 32),
    "a weight's format": lambda made: made.weight(99, 64, 32, np.zeros(8192, np.uint8)),
    "an activation": lambda made: made.glu(0, (-1, 0.0), (0, -1, 1), (0, -1, 1), 9, 0.0),
    "a row operation": lambda made: made.row_operation(8, 0, 0, 0.0, 0),
    "a head step": lambda made: attention(made, q_steps=[(9, -1, 0, 1.0, 0.0)]),
    "a router's score": lambda made: router(num_experts=8, num_chosen=2, score=2),
    "a group choice": lambda made: router(num_experts=8, num_chosen=2, group_choice=7),
    "a cache format": lambda made: _native.Program(_native.isa_levels()[0], 1, 3),
}


@pytest.mark.parametrize("name", UNNAMED)
def test_an_unknown_enum_value_is_refused(name: str) -> None:
    with pytest.raises(TypeError):
        UNNAMED[name](program())


def test_operations_that_fit_are_recorded() -> None:
    made = program()
    made.linear(0, (0, 1e-5), [(0, -1, 1)], 1.0, [1])
    attention(made)
    delta_rule(made)
    gated_norm(made)
    assert made.num_operations == 4


def router(**changes: Any) -> _native.Router:
    numbers = {"renormalise": False, "scale": 1.0, "choice_bias": -1, "expert_scale": -1}
    rest = {"num_groups": 1, "kept_groups": 1, "weighs_input": False}
    enums = {"score": _native.RouterScore.softmax, "group_choice": _native.GroupChoice.max}
    return _native.Router(**(numbers | rest | enums | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"num_chosen": 200},
        {"num_chosen": 0},
        {"num_experts": 2000},
        {"num_groups": 0},
        {"num_groups": 3},
        {"kept_groups": 9},
        {"num_groups": 4, "group_choice": _native.GroupChoice.each, "num_chosen": 6},
    ],
    ids=str,
)
def test_a_router_that_cannot_choose_is_refused(change: dict[str, Any]) -> None:
    router(num_experts=8, num_chosen=2)
    with pytest.raises((IndexError, ValueError)):
        router(**({"num_experts": 8, "num_chosen": 2} | change))


RECORD = _native.packed_bytes(FORMATS["F32"], 32, 32)


def add_experts(made: Any, packed: Any, **changes: Any) -> None:
    """Adds two experts of three matrices [32, 32], which are adjacent in ``packed``."""
    parts = {name: (FORMATS["F32"], 32, 32, i * RECORD, None) for i, name in enumerate(("gate", "up", "down"))}
    numbers = {"x": 0, "norm": (-1, 0.0), "logits": made.buffer(2, False), "out": 0, "stride": 3 * RECORD, "limit": 0.0}
    rest: dict[str, Any] = {
        "count": 2,
        "stored": None,
        "shared": None,
        "shared_gate": -1,
        "factor": 1.0,
        "residuals": [],
        "activation": _native.Activation.silu,
    }
    chooser = router(num_experts=2, num_chosen=1)
    made.experts(**(parts | numbers | rest | {"router": chooser, "packed": packed} | changes))


WRONG_RECORDS: dict[str, dict[str, Any]] = {
    "stride": {"stride": 4 * RECORD},
    "offset": {"up": (FORMATS["F32"], 32, 32, 1 << 34, None)},
    "bias": {"up": (FORMATS["F32"], 32, 32, RECORD, 3 * RECORD)},
    "k": {"up": (FORMATS["F32"], 32, 64, 0, None)},
}


@pytest.mark.parametrize("change", WRONG_RECORDS)
def test_experts_outside_of_their_records_are_refused(change: str) -> None:
    made, packed = program(), np.zeros(6 * RECORD, np.uint8)
    add_experts(made, packed)
    with pytest.raises((IndexError, ValueError)):
        add_experts(made, packed, **WRONG_RECORDS[change])
    assert made.num_operations == 1


def test_a_program_keeps_its_weights() -> None:
    """Weights are not copied: the program keeps references to the arrays, and refuses arrays that need a conversion."""
    made, table, records = program(), np.zeros(8192, np.uint8), np.zeros(6 * RECORD, np.uint8)
    watched = [weakref.ref(table), weakref.ref(records)]
    made.weight(FORMATS["F32"], 64, 32, table)
    add_experts(made, records)
    with pytest.raises(TypeError):
        made.weight(FORMATS["F32"], 64, 32, table.astype(np.int32))
    with pytest.raises(TypeError):
        add_experts(made, records.astype(np.int32))
    del table, records
    gc.collect()
    assert all(held() is not None for held in watched)
    del made
    gc.collect()
    assert all(held() is None for held in watched)


def test_the_bounds_of_descriptions_are_those_of_the_kernels() -> None:
    assert spec.MAX_EXPERTS == _native.MAX_EXPERTS
