"""The facts that a server reports about models that are not loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from freedive.commands.about import about, capabilities
from freedive.hub.sources import resolve
from freedive.server.model_info import ModelInfo


def test_a_model_is_described_by_its_files() -> None:
    facts = about("nano", resolve("nano"))
    assert (facts.family, facts.max_context, facts.format) == ("deepseek_v3", 512, "Q8_0")
    assert 8.3e6 < facts.num_params < 8.5e6
    assert facts.capabilities == ("completion", "embedding", "thinking")
    assert "messages" in facts.template


def test_what_cannot_be_run_can_do_nothing(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    assert about("broken", broken) == about("gone", tmp_path / "gone.gguf") == ModelInfo(capabilities=())


HERMES = "{{ tools }} <tool_call>\\n{}\\n</tool_call> {{ messages }}"


@pytest.mark.parametrize(
    ("source", "tokens", "expected"),
    [
        ("{{ messages }}", [], ["completion", "embedding"]),
        (HERMES, ["<tool_call>", "</tool_call>"], ["completion", "embedding", "tools"]),
        ("{{ messages }} {{ enable_thinking }}", ["<think>", "</think>"], ["completion", "embedding", "thinking"]),
        (
            "{{ messages }}",
            ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
            ["completion", "embedding", "insert"],
        ),
    ],
)
def test_capabilities_follow_from_template_and_vocabulary(source: str, tokens: list[str], expected: list[str]) -> None:
    assert list(capabilities(source, tokens)) == expected
