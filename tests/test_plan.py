"""``freedive plan``: what it predicts for a model, and the ranking of the catalogue."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from descriptions import with_layers
from typer.testing import CliRunner

from freedive import machine
from freedive.cli import app
from freedive.commands import forecast as forecasting
from freedive.commands import plan as planning
from freedive.commands.estimate import estimated_sizes, experts_in_memory, memory_bytes
from freedive.commands.forecast import Described, forecast
from freedive.commands.plan import rank
from freedive.config import EngineConfig
from freedive.errors import Unavailable
from freedive.hub.catalogue import catalogue
from freedive.model.params import ExpertParams, Param
from freedive.model.spec import Attention, Experts, FeedForward, Layer, Router
from freedive.model.speed import MachineSpeed

GB = 10**9
ON = MachineSpeed(memory=20e9, disk=2e9, products=1e12)
ATTENTION = Attention(num_heads=8, num_kv_heads=4, head_dim=64, rope=None, scale=0.1)
MIXTURE = replace(
    with_layers(*[Layer(ATTENTION, Experts(Router(64, 4), FeedForward(512)))] * 8),
    hidden_dim=1024,
    vocab_size=8192,
    max_context=8192,
)


def stored(name: str, entry: Param | ExpertParams) -> float:
    """Experts of 4 MiB: 2 GiB in 8 layers; one dense weight has 100 MiB, the others nothing."""
    return 4 << 20 if isinstance(entry, ExpertParams) else 100 << 20 if name == "head" else 0


MODEL = Described(3 * GB, MIXTURE, stored)


@pytest.fixture(autouse=True)
def calm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with known speeds and 16 GB of free memory, and an empty cache."""
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path))
    monkeypatch.setattr(planning, "measure_machine", lambda threads, record_bytes: ON)
    monkeypatch.setattr(machine, "available_memory", lambda: 16 * GB)


def plan(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_model_here_is_planned() -> None:
    found = json.loads(plan("nano", "--json", "--context", "256"))
    assert found["family"] == "deepseek_v3"
    assert not found["memory"]["paged"]
    assert found["weights"]["experts"] == found["memory"]["slots"] > found["weights"]["routed_per_token"] > 0
    assert found["speed"]["worst"] == found["speed"]["usual"] > 100
    assert set(found["speed"]["first_token_s"]) == {"512", "2048"}
    whole = json.loads(plan("nano", "--json"))
    assert whole["memory"]["cache"] == 2 * found["memory"]["cache"]
    text = plan("nano")
    assert "resident" in text
    assert "first token" in text


def test_a_budget_that_is_too_small_is_an_error() -> None:
    result = CliRunner().invoke(app, ["plan", "nano", "--memory", "50MB"])
    assert result.exit_code == 1
    assert "Give it at least --memory" in result.output


def test_paging_is_predicted_with_its_worst_case_and_the_budget_of_twice_the_speed() -> None:
    config = EngineConfig(memory="1GiB", max_batch=4)
    found = forecast(MODEL, config, ON, 2)
    assert found.plan.paged
    assert found.speed.worst < found.speed.usual < found.resident.worst
    assert found.speed.first_token_s[512] > found.resident.first_token_s[512]
    assert found.doubling is not None
    twice = forecast(MODEL, replace(config, memory=f"{found.doubling >> 10}k", cache_tokens=8192), ON, 2)
    assert twice.speed.worst == pytest.approx(2 * found.speed.worst, rel=0.25)
    slow = forecast(MODEL, config, replace(ON, disk=1e12), 2)
    assert slow.doubling is None


def test_the_lines_say_what_is_paged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "described", lambda model: MODEL)
    text = " ".join(plan("any", "--memory", "1GiB").split())
    assert "download 3.0 GB" in text
    assert "are in memory, the others are read from disk" in text
    assert "(uniform routing, the worst case)" in text
    found = forecast(MODEL, EngineConfig(memory="1GiB"), ON, machine.physical_cores())
    assert found.doubling
    doubling = re.search(r"with --memory ([\d.]+)GiB", text)
    assert doubling
    assert found.doubling <= float(doubling[1]) * 2**30 <= found.doubling + 0.1 * 2**30 + 1


def test_the_catalogue_is_ranked_for_this_machine() -> None:
    rows = json.loads(plan("--json"))
    classes = [row["class"] for row in rows]
    assert classes == sorted(classes, key=["fast", "usable", "possible", "too large"].index)
    assert {row["name"] for row in rows} == {entry.name for entry in catalogue().values() if entry.runs}
    found = {row["name"]: row for row in rows}
    assert found["nano"]["class"] == "fast"
    assert found["qwen3-30b-a3b"]["paged"]
    assert found["smollm2"]["paged"] is False
    more = {row["name"]: row for row in rank(ON, 400 * GB)}
    assert all(not row["paged"] for row in more.values() if row["download_bytes"] < 300 * GB)
    assert more["qwen3-30b-a3b"]["speed"]["worst"] >= found["qwen3-30b-a3b"]["speed"]["usual"]
    assert "qwen3-30b-a3b" in plan("--memory", "8G")


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["plan", *arguments])
    assert result.exit_code == 1, result.output
    return result.output


def test_a_context_is_refused_as_a_load_would_refuse_it() -> None:
    assert "the model reads at most" in refused("nano", "--context", "1000000")
    assert "freedive plan MODEL --context 4096" in refused("--context", "4096")


def test_a_model_of_the_catalogue_without_its_files_is_estimated_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(ref: str) -> Described:
        raise Unavailable(f"{ref} cannot be fetched", "Check the network")

    monkeypatch.setattr(planning, "described", unreachable)
    assert "Check the network; freedive plan, without a model, estimates it" in refused("qwen3-30b-a3b")
    assert refused("hf:owner/name").endswith("Check the network\n")


def test_a_folder_with_a_configuration_alone_is_planned_and_shown(tmp_path: Path) -> None:
    config = {"model_type": "olmoe", "architectures": ["OlmoeForCausalLM"], "hidden_size": 64, "vocab_size": 512}
    config |= {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config |= {"num_experts": 8, "num_experts_per_tok": 2, "max_position_embeddings": 4096, "norm_topk_prob": False}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert json.loads(plan(str(tmp_path), "--json"))["family"] == "olmoe"
    assert "names no format, so each has 16 bits" in " ".join(plan(str(tmp_path)).split())
    shown = CliRunner().invoke(app, ["show", str(tmp_path)])
    assert "2 of 8 experts of 32" in shown.output


def test_tables_that_are_read_by_row_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_table(name: str, entry: Param | ExpertParams) -> float:
        return 300_000_000 if name == "embed" else stored(name, entry)

    monkeypatch.setattr(planning, "described", lambda model: replace(MODEL, stored=with_table))
    text = " ".join(plan("any", "--memory", "1GiB").split())
    assert "104.9 MB dense, 300.0 MB of embeddings, of which a token reads a row, 2.1 GB experts" in text


def test_list_and_plan_agree_on_what_fits() -> None:
    rows = {row["name"]: row for row in rank(ON, 16 * GB)}
    for name, row in rows.items():
        entry = catalogue()[name]
        slots, fits = experts_in_memory(entry, 16 * GB), memory_bytes(1e9 * entry.gigabytes) <= 16 * GB
        assert fits == (row["class"] != "too large" and not row["paged"])
        assert (slots is None) == (row["class"] == "too large")
        assert row["paged"] == (slots is not None and not fits)


def test_estimates_of_the_catalogue_add_up() -> None:
    entry = next(entry for entry in catalogue().values() if entry.active < entry.total and entry.gigabytes > 1)
    sizes = estimated_sizes(entry)
    assert sizes.total == pytest.approx(entry.gigabytes * GB, rel=0.01)
    read = (sizes.dense + sizes.routed) / sizes.total
    assert read == pytest.approx(entry.active / entry.total, rel=0.05)


def test_the_machine_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecasting.tracing, "bandwidth", lambda threads: 10.0)
    on = forecasting.measure_machine(1, 1 << 20)
    assert on.memory == 10e9
    assert on.disk > 1e6
    assert on.products > 1e8
