"""The benchmark of models larger than memory: its random models, its cgroup, and its report."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.errors import UserError
from freedive.families import describe, describe_config

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import random_models  # noqa: E402
from cgroup import ROOT, memory_group  # noqa: E402
from disk import direct_speed, read_ahead  # noqa: E402
from engines import OURS, THEIRS  # noqa: E402
from memory import Usage  # noqa: E402
from memory_report import draw, markdown, summary  # noqa: E402
from random_models import layers_for, random_model  # noqa: E402
from record_routing import summary as summarised  # noqa: E402
from routing import RECORD, RECORDED, UNIFORM, ZIPF, log_frequencies, routed, top_share  # noqa: E402
from shapes import SHAPES  # noqa: E402
from workers import Worker  # noqa: E402

WIDTH, EXPERTS, CHOSEN = 256, 64, 4


def chosen(routing: str, layer: int, count: int = CHOSEN) -> np.ndarray:
    """Returns how often each expert is chosen by a router that reads the normed embeddings."""
    tensors = [
        routed("token_embd.weight", (2000, WIDTH), routing),
        routed(f"blk.{layer}.ffn_gate_inp.weight", (EXPERTS, WIDTH), routing),
    ]
    embeddings, router = (dequantize(tensor) for tensor in tensors if tensor)
    normed = embeddings / np.sqrt((embeddings**2).mean(1, keepdims=True))
    best = np.argsort(normed @ router.T, 1)[:, -count:]
    return np.bincount(best.ravel(), minlength=EXPERTS)


def test_routers_choose_experts_equally_often_or_by_zipfs_law() -> None:
    uniform, zipf, other = chosen(UNIFORM, 0), chosen(ZIPF, 0), chosen(ZIPF, 1)
    assert 0.25 < top_share([uniform.tolist()], 0.25) < 0.32
    assert 0.6 < top_share([zipf.tolist()], 0.25) < 0.85
    assert (zipf > 0).mean() > 0.9  # tokens still differ
    assert abs(np.corrcoef(zipf, other)[0, 1]) < 0.5  # layers prefer different experts


def test_recorded_frequencies_are_built_in() -> None:
    """Shares of tokens that choose an expert, as recorded with another number of experts, come out of the weights."""
    recorded = json.loads(RECORD.read_text("utf-8"))
    shares = np.array(recorded["frequencies"])
    assert (np.diff(shares) <= 0).all()
    assert shares.sum() == pytest.approx(recorded["chosen"], rel=1e-3)
    counts = chosen(RECORDED, 0, EXPERTS * recorded["chosen"] // len(shares))  # the same part is chosen
    part = sum(shares[: len(shares) // 4]) / shares.sum()
    assert top_share([counts.tolist()], 0.25) == pytest.approx(part, abs=0.08)
    np.testing.assert_allclose(np.exp(log_frequencies(ZIPF, 4)), [1, 1 / 2, 1 / 3, 1 / 4])


def test_a_record_of_routing_has_frequencies_and_repetition() -> None:
    first = np.array([[0, 1], [0, 2], [0, 1], [2, 0]])
    found = summarised([[first], [first[:1]]], [4])
    assert found["frequencies"] == [1, 0.6, 0.4, 0]
    assert found["repeats"] == pytest.approx(0.5)
    assert found["independent"] == pytest.approx((1 + 0.36 + 0.16) / 2)
    assert (found["tokens"], found["chosen"]) == (5, 2)


def test_a_share_counts_the_most_frequent_experts_of_each_layer() -> None:
    assert top_share([[4, 0, 0, 0], [1, 1, 1, 1]], 0.25) == 5 / 8


@pytest.mark.parametrize("name", ["qwen3-moe", "gpt-oss"])
def test_a_shape_has_more_layers_and_a_file_of_the_size_that_was_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = describe_config(SHAPES[name].with_layers(9).config)
    assert len(deep.layers) == 9
    assert deep.layers[:6] == describe_config(SHAPES[name].config).layers[:6]
    few = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "hidden_size": 256, "vocab_size": 512}
    counts = {"expert_count": 4, "expert_used_count": 2}
    shape = SHAPES[name]
    config = {key: few.get(key, value) for key, value in shape.config.items()}
    metadata = {key: counts.get(key, value) for key, value in shape.metadata.items()}
    monkeypatch.setitem(SHAPES, name, replace(shape, config=config, metadata=metadata))
    monkeypatch.setattr(random_models, "FOLDER", tmp_path)
    form = shape.formats[0]
    num_layers = layers_for(name, form, 40e6)
    path = random_model(name, form, num_layers, ZIPF)
    model, _ = describe(open_checkpoint(path))
    assert len(model.layers) == num_layers
    one = random_model(name, form, num_layers + 1, ZIPF).stat().st_size - path.stat().st_size
    assert abs(path.stat().st_size - 40e6) < 0.6 * one + 3e6  # and the vocabulary


def test_a_form_that_cannot_have_a_given_routing_is_refused() -> None:
    for name, form in (("qwen3-moe", "BF16"), ("gemma4", "Q4_0")):
        with pytest.raises(UserError, match="cannot have zipf routing"):
            random_model(name, form, 0, ZIPF)


may_limit = pytest.mark.skipif(
    not (os.access(ROOT / "memory", os.W_OK) or os.access(ROOT / "cgroup.subtree_control", os.W_OK)),
    reason="only root can make a cgroup",
)

GREEDY = "import sys; data = bytearray(int(sys.argv[1])); data[::4096] = b'x' * len(data[::4096]); print(len(data))"


@may_limit
def test_a_process_in_the_group_has_its_memory_and_no_more() -> None:
    with memory_group(100 << 20) as group:
        small, large = (
            subprocess.run(
                list(map(str, group.entering(sys.executable, "-c", GREEDY, size))), capture_output=True, text=True
            )
            for size in (20 << 20, 200 << 20)
        )
        assert small.stdout.strip() == str(20 << 20)
        assert large.returncode == -9
        assert 90 << 20 < group.peak <= 100 << 20
    assert not group.path.exists()


def test_without_a_cgroup_there_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No memory cgroup can be made"), memory_group(1 << 30, tmp_path / "none"):
        pass


def test_usage_counts_what_a_worker_has_read(tmp_path: Path) -> None:
    script, data = tmp_path / "reads.py", tmp_path / "data"
    data.write_bytes(bytes(8 << 20))
    os.sync()
    script.write_text(
        f"import os, sys; sys.path.insert(0, {str(BENCH / 'jobs')!r})\n"
        "from jobs import Jobs, serve\n"
        "class Reads(Jobs):\n"
        "    def read(self, path):\n"
        "        file = os.open(path, os.O_RDONLY)\n"
        "        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "        return len(os.read(file, 1 << 30))\n"
        "serve(Reads)\n"
    )
    with Worker(sys.executable, script) as worker:
        before = Usage.of(worker)
        assert worker.call("read", path=str(data)) == 8 << 20
        used = Usage.of(worker).since(before)
    assert used.read_bytes in (0, 8 << 20)  # 0 on a file system in memory
    assert used.hits == used.misses == 0


def test_the_speed_of_a_disk_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(8 << 20))
    try:
        assert direct_speed(file, 0.05) > 1e6
    except OSError:
        pytest.skip("this file system has no direct reads")
    with read_ahead(file, 0):
        pass


def test_a_report_has_ratios_of_rounds_in_which_both_ran(tmp_path: Path) -> None:
    row = "decode 256 after 16"
    ours = [{row: 6.0, f"{row}: read": 10.0, "peak memory": 100.0}, {row: 8.0, f"{row}: read": 20.0}]
    values = {OURS: ours, THEIRS: [{row: 2.0, f"{row}: read": 90.0, "peak memory": 200.0}, None]}
    found = summary(values, {THEIRS: "killed"})
    assert found["results"][row]["ratios"][THEIRS]["values"] == [3.0]
    assert found["results"]["peak memory"]["ratios"][THEIRS]["median"] == 2.0
    assert found["results"][f"{row}: read"]["ratios"] == {}
    model = {"file_bytes": 4e9, "disk_bytes_per_s": 2e9, "top_shares": {"25%": 0.6}, "budgets": {"50%": found}}
    report = {"cpu": "c", "threads": 2, "date": "d", "models": {"m": model}}
    text = markdown(report)
    assert f"| {row}, tokens/s | 7, 2 (3.00; 3.00-3.00) |" in text
    assert f"| {row}: read, MB/token | 15, 90 |" in text
    assert "llama.cpp fails at 50%: killed" in text
    draw(report, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
