"""The commands bench and doctor with the real model, and the arithmetic of the comparisons."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.file import BLOCKS
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.packed import FORMATS, pack
from freedive.checkpoint.rules import canonical_tensors
from freedive.checkpoint.tensor import Tensor
from freedive.commands.trace import OperationSummary, average
from freedive.commands.trace import print_tables as print_trace
from freedive.errors import UserError
from freedive.families import describe, describe_config
from freedive.model.params import params
from freedive.model.size import size
from freedive.ops.trace import Operation, Work
from freedive.text.tokenizer import Tokenizer

BENCH = Path(__file__).parent.parent / "bench"
sys.path.insert(0, str(BENCH))

import random_models  # noqa: E402
from engines import OURS, THEIRS  # noqa: E402
from kernels import random_blocks  # noqa: E402
from measure import Contestant, Found, compete, in_turns  # noqa: E402
from peers import left_behind  # noqa: E402
from quality import Closeness  # noqa: E402
from random_models import random_model  # noqa: E402
from report import accuracy, markdown, print_tables, summary  # noqa: E402
from roofline import Cost, Limits, expected_unique  # noqa: E402
from shapes import SHAPES  # noqa: E402
from weights import unpack  # noqa: E402
from workers import Worker, peer_python  # noqa: E402
from workloads import Comparison, Workload  # noqa: E402


def freedive(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "freedive", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | variables)


NANO_ON_DISK = ("nano", "--memory", "102MiB", "--prompt", "70", "--gen", "5", "--batch", "2", "--repeats", "2")
"""Nano with a memory that holds a part of its experts."""


def test_bench_reports_what_experts_on_disk_cost() -> None:
    done = freedive("bench", *NANO_ON_DISK, "--json", COLUMNS="200")
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    for phase in ("prefill", "decode"):
        assert 0 <= results[f"{phase}_hit_rate"]["low"] <= results[f"{phase}_hit_rate"]["high"] <= 1
        assert 0 < results[f"{phase}_read_mib_per_token"]["high"] < 8
        assert results[f"{phase}_stall_ms_per_token"]["low"] >= 0
    table = freedive("bench", *NANO_ON_DISK, COLUMNS="200").stdout
    assert "reading: experts found in memory, %" in table
    assert "writing: waiting for the disk, ms a token" in table


def test_trace_shows_where_experts_wait_for_the_disk() -> None:
    done = freedive("bench", *NANO_ON_DISK, "--trace", "--json")
    assert done.returncode == 0, done.stderr
    for step in json.loads(done.stdout)["steps"].values():
        [experts] = [each for each in step["operations"] if each["kind"] == "experts"]
        assert len(experts["hit_rates"]) == experts["count"] > 1
        assert all(0 <= rate <= 1 for rate in experts["hit_rates"].values())
        assert experts["stalled_s"] == step["stalled_s"] < experts["seconds"]
    text = freedive("bench", *NANO_ON_DISK, "--trace", COLUMNS="200").stdout
    assert "ms of these for the disk" in text
    assert "and were in memory by layer: 1: " in text


def test_bench_reports_every_figure_with_its_spread(smollm2_path: Path) -> None:
    sizes = ("--prompt", "40", "--gen", "3", "--batch", "2", "--repeats", "2")
    done = freedive("bench", str(smollm2_path), *sizes, "--json", "--threads", "1")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["conditions"]["threads"] == 1
    assert report["peak_memory_bytes"] > smollm2_path.stat().st_size
    results = report["results"]
    assert set(results) == {
        *("prefill_tokens_per_s", "decode_tokens_per_s", "batch_decode_tokens_per_s", "first_token_s", "startup_s")
    }
    assert all(0 < spread["low"] <= spread["median"] <= spread["high"] for spread in results.values())
    # The first token cannot come before all 40 prompt tokens are computed.
    assert results["first_token_s"]["high"] >= 40 / results["prefill_tokens_per_s"]["low"] * 0.999


def test_bench_refuses_what_does_not_fit_the_context_in_one_line(smollm2_path: Path) -> None:
    done = freedive("bench", str(smollm2_path), "--prompt", "9000", "--gen", "2", "--repeats", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: The prompt has 9000 tokens")
    assert done.stderr.count("\n") == 1


TRACE = ("--trace", "--prompt", "40", "--gen", "3", "--batch", "2", "--repeats", "1")


def test_a_trace_shows_where_the_time_of_each_step_goes(smollm2_path: Path, tmp_path: Path) -> None:
    picture = tmp_path / "pictures" / "trace.svg"
    done = freedive("bench", str(smollm2_path), *TRACE, "--threads", "1", "--picture", str(picture))
    assert done.returncode == 0, done.stderr
    for words in (
        "reading 40 tokens",
        "writing a token after 40",
        "writing 2 answers",
        "ffn.gate+up",
        "GB/s",
        "100.0%",
    ):
        assert words in done.stdout
    assert "<svg" in picture.read_text("utf-8")


def test_a_trace_adds_up(smollm2_path: Path) -> None:
    done = freedive("bench", str(smollm2_path), *TRACE, "--json")
    report = json.loads(done.stdout)
    assert report["conditions"]["bandwidth_gb_per_s"] > 0.1
    for step in report["steps"].values():
        for key in ("count", "seconds", "bytes", "macs"):
            assert step[key] == pytest.approx(sum(each[key] for each in step["operations"]))
        assert sum(each["kind"] == "head" for each in step["operations"]) == 1
        assert [each["count"] for each in step["operations"] if each["kind"] == "ffn.down"] == [30]
    assert 90e6 < report["steps"]["writing a token after 40"]["bytes"] < 110e6  # the model, and a short cache


def test_a_trace_shows_every_figure_whole_however_long_a_name_is(capsys: pytest.CaptureFixture[str]) -> None:
    name = "attn.in_q+in_k+in_v+in_beta+in_decay+in_gate"
    print_trace({"reading": [OperationSummary(name, 123456, 7.654321, 5e10, 4e11)]}, 48)
    shown = capsys.readouterr().out
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert all(figure in shown for figure in ("123456", "7654.321", "100.0%", "6.5", "14%", "0.105"))
    rows = shown.splitlines()
    rules = [index for index, row in enumerate(rows) if row.strip().startswith("──")]
    assert "".join(row.split()[0] for row in rows[rules[0] + 1 : rules[1]]) == name


def test_a_trace_that_does_not_fit_is_refused_in_one_line(smollm2_path: Path) -> None:
    done = freedive("bench", str(smollm2_path), *TRACE, "--batch", "16", "--cache-tokens", "64")
    assert done.returncode == 1
    assert done.stderr.startswith("error: A trace needs 512 tokens of cache, but there are 64")
    assert done.stderr.count("\n") == 1


def test_the_slower_half_of_the_steps_does_not_count() -> None:
    steps = [[Operation("head", None, seconds, Work(8, 2))] for seconds in (9.0, 1.0, 3.0, 7.0)]
    (share,) = average(steps)
    assert (share.count, share.seconds, share.gb_per_s, share.tops) == (1, 2.0, 4e-9, 2e-12)


def test_every_kernel_is_measured_where_a_level_and_a_format_are_chosen(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "kernels.py"), "--quick", "--megabytes", "1", "--output", "out/kernels.json"]
    choice = ("--isa", "scalar", "--kernel", "linear", "--format", "MXFP4")
    done = subprocess.run([*command, *choice], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "out" / "kernels.json").read_text("utf-8"))["figures"]
    assert {each["case"] for each in figures} == {"MXFP4"}
    assert [each["point"] for each in figures] == ["1", "2", "4", "8", "16", "48"] * 2
    for each in figures:  # 32 packed weights take 18 bytes
        assert each["tops"] * 1e12 / (2 * int(each["point"])) / 32 * 18 == pytest.approx(
            each["gb_per_s"] * 1e9, rel=0.01
        )
    assert "weights in cache" in done.stdout


def test_random_weights_are_finite_in_every_format() -> None:
    for format in FORMATS:
        block = BLOCKS[format][0]
        data = random_blocks(format, 32, 4 * block, np.random.default_rng(0))
        assert np.isfinite(unpack(pack(Tensor("w", (32, 4 * block), format, data)))).all()


def test_doctor_shows_the_machine() -> None:
    report = json.loads(freedive("doctor", "--json", FREEDIVE_ISA="scalar").stdout)
    assert report["isa"] == "scalar"
    assert report["isa"] in report["isa_levels"]
    assert set(report["bandwidth"]) == {"1", str(report["threads"])}
    assert all(0.1 < speed < 10_000 for speed in report["bandwidth"].values())
    assert 0 < report["memory_budget"] < report["memory_available"] <= report["memory_total"]


def test_doctor_says_when_the_forced_level_is_not_there() -> None:
    done = freedive("doctor", FREEDIVE_ISA="avx9")
    assert done.returncode == 1
    assert "avx9" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "bandwidth" in done.stdout


def test_doctor_traces_the_smallest_model_that_is_here(smollm2_path: Path, tmp_path: Path) -> None:
    steps = json.loads(freedive("doctor", "--trace", "--json").stdout)["steps"]
    assert [step["kind"] for step in steps.values()] == ["step"] * 3
    done = freedive("doctor", "--trace", FREEDIVE_HOME=str(tmp_path))
    assert done.stderr == "error: There is no model here to trace. Fetch one: freedive pull smollm2\n"


def test_closeness_agrees_with_torch() -> None:
    generator = np.random.default_rng(0)
    reference = generator.normal(0, 3, (7, 500)).astype(np.float32)
    other = reference + generator.normal(0, 0.3, reference.shape).astype(np.float32)
    p, q = (torch.log_softmax(torch.tensor(logits).double(), 1) for logits in (reference, other))
    expected = torch.nn.functional.kl_div(q, p, reduction="none", log_target=True).sum(1)
    found = Closeness.of(reference, other)
    np.testing.assert_allclose(found.kl, expected.numpy(), rtol=1e-9)
    assert Closeness.joined([found, Closeness.of(reference, reference)]).report()["positions"] == 14


def test_equal_logits_are_as_close_as_can_be() -> None:
    logits = np.eye(4, dtype=np.float32) * 50
    assert Closeness.of(logits, logits + 3).report() == {
        **dict.fromkeys(("mean_kl", "p99_kl", "max_kl"), pytest.approx(0, abs=1e-12)),
        "top1": 1.0,
        "positions": 4,
    }


def test_the_prompts_are_twenty_and_neither_short_nor_long(smollm2_path: Path) -> None:
    tokenizer = Tokenizer.from_gguf(open_checkpoint(smollm2_path).config)
    prompts = json.loads((BENCH / "prompts.json").read_text("utf-8"))
    assert len(prompts) == 20
    assert all(30 <= len(tokenizer.encode(text)) <= 120 for text in prompts.values())


def test_a_ratio_above_one_means_that_freedive_is_better() -> None:
    assert Comparison("tokens/s", [200.0], [100.0]).ratios == [2.0]
    assert Comparison("s", [0.5], [1.0]).ratios == [2.0]
    assert Comparison("MB", [300.0], [150.0]).ratios == [0.5]


def test_a_speed_counts_the_tokens_read_or_those_written_after_the_first() -> None:
    assert Workload("", 1, 512, 1).speed(0.5, 0.0) == 1024
    assert Workload("", 8, 16, 129).speed(9.9, 2.0) == 512


def test_the_order_of_engines_alternates() -> None:
    assert [in_turns([OURS, THEIRS], turn)[0] for turn in range(4)] == [OURS, THEIRS, OURS, THEIRS]


def test_peer_comparison_joins_groups_and_names_engines_that_failed(capsys: pytest.CaptureFixture[str]) -> None:
    work, model = "decode 128 after 16", describe_config(SHAPES["qwen3-moe"].config)
    units, about = {work: "tokens/s"}, {"version": "1", "settings": "fast"}
    first = Found(
        {OURS: about, THEIRS: about}, units, {work: {OURS: [300, 250, 200], THEIRS: [100, 125, 100]}}, {}, 50.0
    )
    second = Found({OURS: about, "b": about}, units, {work: {OURS: [210.0], "b": [200.0]}}, {}, 50.0)
    costs = dict.fromkeys((OURS, THEIRS, "b"), Cost(model, 1e8, 0.0, 1e9))
    row = summary(model, [first, second], costs, Limits(1e11, {"int8 x": 1e12}))
    faults = {"c": {"start": "RuntimeError: no"}}
    models = {"m": row | {"faults": faults, "file_bytes": 1}}
    report = {"date": "d", "cpu": "c", "threads": 2, "load_before": 3.0, "models": models}
    print_tables(report)
    shown = capsys.readouterr().out
    assert "(200-300)" in shown
    assert "2.00 (2.00-3.00)" in shown
    assert "1.05 (1.05-1.05)" in shown
    assert "load 3.0" in shown
    assert "m: c cannot start: RuntimeError: no" in shown
    text = markdown(report)
    assert "| m | 2.00, 1.05 |" in text
    assert f"| m | {work}, tokens/s | 250 (" in text


def test_accuracy_table_has_a_row_for_every_precision() -> None:
    figures = {"mean_kl": 1.3e-3, "p99_kl": 1e-2, "max_kl": 3e-2, "top1": 0.982}
    text = accuracy({"model": "m", "cpu": "c", "all": {"freedive exact": figures, "freedive fast": figures}})
    assert "| freedive exact | 1.3e-03 | 1.0e-02 | 3.0e-02 | 98.2% |" in text
    assert "| freedive fast | " in text


def test_nothing_is_measured_where_no_peer_starts() -> None:
    class Works:
        def call(self, job: str, **arguments: object) -> dict[str, int]:
            assert job == "about", "more than a start"
            return {"vocab_size": 9, "max_context": 9}

        def __exit__(self, *_: object) -> None:
            pass

    def refuses() -> Worker:
        raise UserError("no")

    peer = Contestant("a", refuses)
    assert compete([Contestant("freedive", Works), peer], 1, 0.0, random.Random(0), alone=False) is None
    assert peer.faults == {"start": "no"}


def test_an_engine_that_is_slow_or_did_not_start_is_not_measured_again() -> None:
    def found(ratio: float, fault: str) -> dict[str, object]:
        row = {"unit": "tokens/s", "ratios": {"vLLM bf16": {"median": ratio}, "llama.cpp": {"median": 9.0}}}
        return {"results": {"w": row}, "faults": {"vLLM int4": {fault: "no"}}}

    assert left_behind({"qwen3-moe Q4_0": found(1.9, "prefill 512"), "smollm2": found(9.0, "start")}) == {}
    reasons = left_behind({"qwen3-moe Q4_0": found(4.0, "start")})
    assert list(reasons) == ["vLLM int4", "vLLM bf16"]
    assert "25%" in reasons["vLLM bf16"]


def test_the_bytes_of_a_step_are_those_of_the_weights_that_it_reads_and_of_its_cache() -> None:
    model = describe_config(SHAPES["qwen3-moe"].config)
    table = params(model)
    cost = Cost.of(model, {name: float(param.size) for name, param in table.items()})  # one byte for each weight
    one, batch = Workload("", 1, 16, 129), Workload("", 8, 16, 129)
    cache = 7 * 2 * 4 * 128 * 2 * one.context
    shared = size(model).active - model.hidden_dim - 7 * 8 * 3 * 2048 * 768
    assert cost.step_bytes(one, 8) == pytest.approx(size(model).active - model.hidden_dim + cache)
    assert cost.step_bytes(batch, 50) == pytest.approx(shared + 7 * 50 * 3 * 2048 * 768 + 8 * cache)
    assert cost.token_operations == 2 * (size(model).active - table["embed"].shape[1] - table["head"].size)
    assert expected_unique(model, 1) == pytest.approx(8)
    assert 51 < expected_unique(model, 8) < 52


@pytest.mark.parametrize("name", SHAPES)
def test_a_random_model_has_the_same_weights_in_every_form_and_none_of_them_leans(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES[name]
    few: dict[str, object] = dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "expert_count"), 4)
    few |= {"vocab_size": 512, "num_hidden_layers": 2, "num_experts_per_tok": 2, "expert_used_count": 2}
    few |= {"full_attention_interval": 2, "top_k_experts": 2}
    layers = shape.config["num_hidden_layers"]

    def fewer(key: str, value: object) -> object:
        return value[-2:] if isinstance(value, list) and len(value) == layers else few.get(key, value)

    config, metadata = (
        {key: fewer(key, value) for key, value in values.items()} for values in (shape.config, shape.metadata)
    )
    monkeypatch.setitem(SHAPES, name, replace(shape, config=config, metadata=metadata))
    monkeypatch.setattr(random_models, "FOLDER", tmp_path)
    for form in (*shape.formats, *shape.folders):
        checkpoint = open_checkpoint(random_model(name, form))
        model, rules = describe(checkpoint)
        assert params(model) == params(describe_config(config))
        weights = canonical_tensors(checkpoint, model, rules)
        for part in ("layers.1.ffn.experts.3.down", "layers.1.attn.o"):
            values = dequantize(weights[part])
            assert abs(values.mean()) < 0.1 * values.std()
            assert 0.5 < values.std() * values.shape[1] ** 0.5 < 2


def test_a_machine_multiplies_faster_the_narrower_the_numbers() -> None:
    limits = Limits.measured(1)
    assert 1e9 < limits.peak("fp32") <= 1.1 * max(limits.peak("bf16"), limits.peak("int8"), limits.peak("fp32"))
    assert limits.bandwidth > 1e8


def test_a_worker_that_ends_tells_why_in_one_line(tmp_path: Path) -> None:
    script = tmp_path / "broken.py"
    script.write_text("raise RuntimeError('it lacks a kernel')")
    with Worker(sys.executable, script) as worker, pytest.raises(UserError, match="RuntimeError: it lacks a kernel"):
        worker.call("about")


def test_a_worker_answers_in_order_whatever_else_it_prints(tmp_path: Path) -> None:
    script = tmp_path / "twice.py"
    script.write_text(
        f"import sys; sys.path.insert(0, {str(BENCH / 'jobs')!r})\n"
        "from jobs import Jobs, serve\n"
        "class Twice(Jobs):\n"
        "    def twice(self, x):\n"
        "        print('noise')\n"
        "        return 2 * x\n"
        "serve(Twice)\n"
    )
    with Worker(sys.executable, script) as worker:
        assert [worker.call("twice", x=x) for x in (1, [2], "3")] == [2, [2, 2], "33"]
        assert worker.call("peak_memory") > 1_000_000


def test_a_worker_that_has_ended_is_a_clear_error(tmp_path: Path) -> None:
    script = tmp_path / "ends.py"
    script.write_text("")
    with Worker(sys.executable, script) as worker, pytest.raises(UserError, match="has ended"):
        worker.call("anything")


def test_a_python_without_the_peer_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no llama-cpp-python"):
        peer_python(tmp_path / "python")
