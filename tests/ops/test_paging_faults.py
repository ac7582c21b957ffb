"""Experts on a disk that is slow, hangs, or changes: clear errors, and no wrong answer."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import wait_until
from slow_disk import slow_disk
from test_paging import flip, logits, model, resident, runner
from test_same_bits import assert_same_bits
from tiny_models import Floats, take_steps

from freedive.checkpoint.packed import PackedExperts
from freedive.checkpoint.weight_store import WeightStore, open_store, write_store
from freedive.errors import Unavailable, UserError
from freedive.model.batch import ChangedWeights
from freedive.ops.native import NativeRunner
from freedive.ops.paging import Paging


def few(paged: NativeRunner) -> list[Floats]:
    """Returns the logits of two tokens, which need few experts, and none of those that are read before a step."""
    return take_steps(paged, [[2, 3]], [[(0, 2)]], [[0]])


@pytest.fixture
def store(tmp_path: Path) -> Callable[[str], tuple[WeightStore, Path]]:
    def made(name: str) -> tuple[WeightStore, Path]:
        path = tmp_path / f"{name}.fdv"
        write_store(path, model(name)[1])
        return open_store(path), path

    return made


HANG_S = 20
"""Seconds that a read takes on a disk that hangs: far longer than everything that does not wait for it."""

Made = Callable[[str], tuple[WeightStore, Path]]


def test_change_that_keeps_the_time_of_modification_is_noticed(store: Made) -> None:
    """Some programs that copy files write into a file and then set its old time."""
    weights, path = store("gpt_oss")
    paged = runner("gpt_oss", weights, Paging(0))
    before = path.stat()
    assert_same_bits(logits("gpt_oss", paged), resident("gpt_oss", "exact"))
    flip(path, weights)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(ChangedWeights, match="expert cannot be read: it differs from its checksum"):
        logits("gpt_oss", paged)


def test_experts_take_no_more_memory_than_they_are_given(store: Made) -> None:
    """A step needs two records of each size, which is all that may exceed the given memory."""
    weights, _ = store("uneven")
    experts = [packed for packed in weights.values() if isinstance(packed, PackedExperts)]
    least, whole = 2 * sum({packed.stride for packed in experts}), sum(packed.data.nbytes for packed in experts)
    for given in (0, least, least + 5000, whole // 2, whole - 1, whole, 2 * whole):
        cache = runner("uneven", weights, Paging(given)).expert_cache()
        assert cache
        assert cache.slots_bytes <= max(least, min(given, whole))
    assert cache.slots_bytes == whole


@pytest.mark.faults
def test_first_step_finds_memory_while_the_disk_still_fills_it(store: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, path = store("many experts")
    with slow_disk(path) as delay:
        read_dense = WeightStore.without_mapping
        monkeypatch.setattr(WeightStore, "without_mapping", lambda self, _: (read_dense(self), delay(0.5))[0])
        paged = runner("many experts", weights, Paging(0, num_readers=4))
        found = few(paged)
    assert_same_bits(found, few(runner("many experts", weights)))


def test_slow_disk_that_reads_on_fails_no_step(store: Made) -> None:
    """Ten threads wait for ten records at once: the last one arrives after the timeout."""
    weights, path = store("many experts")
    with slow_disk(path) as delay:
        paged = runner("many experts", weights, Paging(1 << 20, num_readers=1, timeout_s=2), num_threads=10)
        delay(0.25)
        found = few(paged)
    assert_same_bits(found, few(runner("many experts", weights)))


def test_hanging_disk_fails_the_step_and_holds_up_no_one(store: Made) -> None:
    """After that, the same step succeeds when the disk answers again, and a model can be dropped while it hangs."""
    weights, path = store("qwen3_moe")
    with slow_disk(path) as delay:
        paged, dropped = (runner("qwen3_moe", weights, Paging(0, timeout_s=0.3)) for _ in range(2))
        delay(HANG_S)
        for each in (paged, dropped, dropped):
            with pytest.raises(Unavailable, match="expert cannot be read: the disk did not answer for 0 s"):
                logits("qwen3_moe", each)
        begun = time.monotonic()
        del each, dropped
        assert time.monotonic() - begun < HANG_S / 2
    again: list[list[Floats]] = []

    def answers() -> bool:
        with contextlib.suppress(Unavailable):  # records that no step needs any more are still read
            again.append(logits("qwen3_moe", paged))
        return bool(again)

    wait_until(answers)
    assert_same_bits(again[0], resident("qwen3_moe", "exact"))


def test_store_that_is_replaced_while_it_is_loaded_is_not_mixed_with_the_new_one(store: Made) -> None:
    """Another process may pack the model again meanwhile; weights beside experts have no checksum that is verified."""
    weights, path = store("qwen3_moe")
    other = path.with_suffix(".new")
    other.write_bytes(path.read_bytes())
    other.replace(path)
    with pytest.raises(UserError, match="another file has replaced it"):
        runner("qwen3_moe", weights, Paging(0))
