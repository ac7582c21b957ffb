"""A folder as on a model hub: configuration, safetensors, tokenizer and recommended sampling, from load to text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny_models import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import freedive
from freedive.api import recommended
from freedive.text.request import ChatInput

ADVICE = {"do_sample": True, "temperature": 0.3, "top_k": 7, "eos_token_id": 2}


@pytest.fixture(params=["llama", "qwen2", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny random model of the family, whose tokens are the words w0 ... w127."""
    monkeypatch.setenv("FREEDIVE_HOME", str(tmp_path / "home"))
    folder = tmp_path / "model"
    save(request.param, folder)
    words = Tokenizer(models.WordLevel({f"▁w{index}": index for index in range(128)}, unk_token="▁w0"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="▁w2")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}w5"
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(ADVICE))
    return folder


def test_greedy_answers_equal_transformers(folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    maker = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    prompt = [9, 30, 77, 5]
    expected = maker.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=2, pad_token_id=0
    )
    with freedive.load(str(folder), cache_tokens=256) as model:
        assert model.prepare(ChatInput([{"role": "user", "content": "w9 w30 w77"}])).tokens == prompt
        generation = model.engine.submit(prompt, model.sampling(temperature=0, max_tokens=20))
        tokens = [token for output in generation for token in output.token_ids]
    assert tokens == expected[0, len(prompt) :].tolist()


def test_a_system_message_in_the_middle_becomes_a_user_message_if_the_template_refuses_it(folder: Path) -> None:
    strict = """{% for m in messages %}{% if m.role == "system" and not loop.first %}{{ raise_exception("no") }}
    {%- endif %}{{ m.content }} {% endfor %}w5"""
    (folder / "chat_template.jinja").write_text(strict)
    messages = [
        {"role": role, "content": text} for role, text in (("system", "w9"), ("user", "w30"), ("system", "w77"))
    ]
    with freedive.load(str(folder), cache_tokens=256) as model:
        assert model.prepare(ChatInput(messages)).tokens == [9, 30, 77, 5]


def test_recommended_sampling_is_the_default(folder: Path) -> None:
    with freedive.load(str(folder), cache_tokens=256) as model:
        assert (model.sampling().temperature, model.sampling().top_k) == (0.3, 7)
        assert (model.sampling(temperature=1.5).temperature, model.sampling(temperature=1.5).top_k) == (1.5, 7)


@pytest.mark.parametrize(
    "advice",
    [
        {"temperature": None, "top_k": -2, "top_p": None, "min_p": None, "repetition_penalty": None},
        {"temperature": -0.5, "top_k": True, "top_p": "1", "repetition_penalty": float("inf")},
    ],
)
def test_invalid_recommended_sampling_is_ignored(advice: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({**advice, "min_p": 0.1}))
    assert recommended(str(tmp_path), tmp_path) == {"min_p": 0.1}
