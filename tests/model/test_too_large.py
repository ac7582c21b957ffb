"""Descriptions of impossibly large models are refused in milliseconds, before any list is built."""

from __future__ import annotations

import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from descriptions import SHAPES
from test_families_deepseek import K2, V3
from test_families_mixtures import QWEN3_30B
from test_families_openai import GPT_OSS_20B

from freedive.commands.describe import decoder_facts
from freedive.errors import UserError
from freedive.families import describe_config
from freedive.model.description import check, from_json, to_json

PUBLISHED = {"DeepSeek-V3": V3, "Kimi-K2": K2, "Qwen3-30B-A3B": QWEN3_30B, "gpt-oss-20b": GPT_OSS_20B}

HUGE: dict[str, tuple[dict[str, Any], str]] = {
    "experts of a layer": ({"num_experts": 16384}, "num_experts is 16384, not a whole number from 1 to 1024"),
    "experts in all": ({"num_experts": 1024, "num_hidden_layers": 1000}, "num_experts make 1024000 in all layers"),
}


@pytest.mark.parametrize("name", HUGE)
def test_more_experts_than_exist_are_refused_before_they_are_listed(name: str, tmp_path: Path) -> None:
    change, words = HUGE[name]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(QWEN3_30B | change))
    with pytest.raises(UserError):  # the first call imports modules
        decoder_facts(path)
    tracemalloc.start()
    begun = time.process_time()
    with pytest.raises(UserError, match=words):
        decoder_facts(path)
    seconds, peak = time.process_time() - begun, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seconds < 1
    assert peak < 16 << 20


MODELS = {name: describe_config(values) for name, values in PUBLISHED.items()} | SHAPES


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_exists_comes_back_from_its_description(name: str) -> None:
    check(MODELS[name])
    assert from_json(json.loads(json.dumps(to_json(MODELS[name])))) == MODELS[name]
