"""A mixture whose experts are copies of a real dense model's feed-forward gives the dense model's answers.

For any routing the weights of the chosen experts sum to 1. So this tests router, grouped products and combination on
real text with real outliers.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import Floats, float_tensor

from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors
from freedive.checkpoint.tensor import Tensor
from freedive.checkpoint.weight_store import pack_model
from freedive.engine.kvcache import pages_for
from freedive.families import describe
from freedive.model import spec
from freedive.model.batch import Batch
from freedive.model.params import params
from freedive.ops.native import NativeRunner
from freedive.text.tokenizer import Tokenizer

TEXT = """DeepSeek showed that a small team with few means can overtake the giants.
深度求索 published 671,000,000,000 weights.
def route(logits): return np.argsort(-logits)[:8]  # the router of a mixture chooses eight experts
"""
QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"

ROUTERS = {
    "two of four by softmax": spec.Router(4, 2, renormalise=True),
    "three of four by sigmoid, with a bias for the choice": spec.Router(
        4, 3, score="sigmoid", choice_bias=True, renormalise=True
    ),
    "one of each of two groups": spec.Router(4, 2, num_groups=2, group_choice="each", renormalise=True),
    "one of four": spec.Router(4, 1, renormalise=True),
    "one, by its input": spec.Router(4, 1, weighs_input=True, renormalise=True),
}

Dense = tuple[spec.ModelSpec, dict[str, Tensor], Tokenizer]


@pytest.fixture(scope="module")
def dense(smollm2_path: Path) -> Dense:
    checkpoint = open_checkpoint(smollm2_path)
    model, rules = describe(checkpoint)
    return model, canonical_tensors(checkpoint, model, rules), Tokenizer.from_gguf(checkpoint.config)


def mixture(model: spec.ModelSpec, tensors: dict[str, Tensor], router: spec.Router) -> NativeRunner:
    """Returns the model with every feed-forward copied to all experts, and random routers."""
    rng = np.random.default_rng(0)
    layers = []
    for layer in model.layers:
        assert isinstance(layer.ffn, spec.FeedForward)
        layers.append(replace(layer, ffn=spec.Experts(router, layer.ffn)))
    mixed = replace(model, layers=tuple(layers))
    weights = {}
    for name, param in params(mixed).items():
        if name.endswith((".router", ".choice_bias")):
            weights[name] = float_tensor(name, rng.standard_normal(param.shape).astype(np.float32))
        else:
            weights[name] = tensors[re.sub(r"experts\.\d+\.", "", name)]
    return run(mixed, weights)


def run(model: spec.ModelSpec, weights: dict[str, Tensor]) -> NativeRunner:
    packed = pack_model(weights, num_threads=2)
    return NativeRunner(model, packed, num_threads=2, max_rows=128, num_pages=8, cache_format="f32")


def logits(runner: NativeRunner, tokens: list[int], start: int = 0) -> Floats:
    """Returns the logits of ``tokens`` from position ``start`` on, in one request."""
    count, end = len(tokens), start + len(tokens)
    one = np.array([count], np.int32)
    pages = np.arange(pages_for(end), dtype=np.int32)[None]
    return runner.step(
        Batch(
            np.array(tokens, np.int32), one, np.array([start], np.int32), pages, np.arange(count, dtype=np.int32), one
        )
    )


def answer(runner: NativeRunner, prompt: list[int], length: int) -> list[int]:
    tokens = [int(logits(runner, prompt)[-1].argmax())]
    while len(tokens) < length:
        tokens.append(int(logits(runner, tokens[-1:], len(prompt) + len(tokens) - 1)[-1].argmax()))
    return tokens


@pytest.mark.parametrize("name", ROUTERS)
def test_copies_of_the_feed_forward_answer_as_the_dense_model(name: str, dense: Dense) -> None:
    model, tensors, tokenizer = dense
    plain, mixed = run(model, tensors), mixture(model, tensors, ROUTERS[name])
    text, question = tokenizer.encode(TEXT), tokenizer.encode(QUESTION)
    expected, got = logits(plain, text), logits(mixed, text)
    if ROUTERS[name].num_chosen == 1:  # the weight is 1, so nothing is rounded again
        np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(got, expected, atol=1e-2)  # of logits up to 25: sums are rounded differently
    np.testing.assert_array_equal(got.argmax(-1), expected.argmax(-1))
    chosen = np.concatenate([routes.experts for routes in mixed.routes()])
    assert set(np.unique(chosen)) == {0, 1, 2, 3}
    words = answer(plain, question, 12)
    assert "Paris" in tokenizer.decode(words)
    assert answer(mixed, question, 12) == words
