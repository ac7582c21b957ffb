"""The int8 key-value cache: its content, its error, its size, and the models without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import tiny
from weights import LEVELS, Floats

import freedive
from freedive.checkpoint.packed import FORMATS, pack
from freedive.checkpoint.tensor import Tensor
from freedive.engine.kvcache import pages_for
from freedive.errors import UserError
from freedive.model.batch import Batch
from freedive.native import _native
from freedive.ops.native import NUMBER_BYTES, NativeRunner

TOKENS, HEADS, KV_HEADS = 300, 6, 2
MAX_KL = 2e-3
TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text("utf-8")[:1200]


def attend(level: str, q: Floats, k: Floats, v: Floats, kv_heads: int) -> Floats:
    """Computes one sequence's causal attention over an int8 cache with the kernels; q, k and v are [tokens, heads *
    dim]."""
    tokens, dim = len(k), k.shape[1] // kv_heads
    program = _native.Program(level, 2, _native.CacheFormat.int8)
    held = [pack(Tensor("", x.shape, "F32", x.view(np.uint8))) for x in (q, k, v)]
    buffers = [program.buffer(x.shape[1], False) for x in (q, k, v)]
    for packed, buffer in zip(held, buffers, strict=True):
        rows, width = packed.shape
        program.embed(program.weight(FORMATS["F32"], rows, width, packed.data), buffer)
    out, result = program.buffer(q.shape[1], False), program.buffer(q.shape[1], True)
    program.attention(
        q=buffers[0],
        k=buffers[1],
        v=buffers[2],
        out=out,
        source=-1,
        num_heads=q.shape[1] // dim,
        num_kv_heads=kv_heads,
        key_dim=dim,
        value_dim=dim,
        scale=dim**-0.5,
        softcap=0.0,
        window=0,
        chunk=0,
        sinks=-1,
        q_steps=[],
        k_steps=[],
        v_steps=[],
    )
    program.select(out, result)
    program.allocate(tokens, pages_for(tokens))
    ids, one = np.arange(tokens, dtype=np.int32), np.array([tokens], np.int32)
    pages = np.arange(pages_for(tokens), dtype=np.int32)[None]
    return program.step(ids, one, one * 0, pages, ids, one, 0, program.num_operations, result)


def exact_attention(q: Floats, k: Floats, v: Floats, kv_heads: int) -> Floats:
    """Computes the same in float64, by the definition."""
    tokens, dim = len(k), k.shape[1] // kv_heads
    queries, keys, values = (x.astype(np.float64).reshape(tokens, -1, dim).transpose(1, 0, 2) for x in (q, k, v))
    group = len(queries) // kv_heads
    scores = queries @ keys.repeat(group, 0).transpose(0, 2, 1) * dim**-0.5
    scores[:, np.triu(np.ones((tokens, tokens), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = weights / weights.sum(-1, keepdims=True) @ values.repeat(group, 0)
    return mixed.transpose(1, 0, 2).reshape(tokens, -1).astype(np.float32)


def nmse(got: Floats, expected: Floats) -> float:
    return float(((got - expected) ** 2).sum() / (expected**2).sum())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("dim", [24, 64, 128])
def test_attention_is_near_the_exact_one(level: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    q, k, v = (rng.standard_normal((TOKENS, h * dim), np.float32) for h in (HEADS, KV_HEADS, KV_HEADS))
    assert nmse(attend(level, 3 * q, k, v, KV_HEADS), exact_attention(3 * q, k, v, KV_HEADS)) < 5e-4


def test_a_large_dimension_affects_only_its_group_of_32() -> None:
    """Keys of some models have dimensions a hundred times as large as others, so every 32 dimensions have a scale."""
    rng, dim = np.random.default_rng(5), 128
    q, k, v = (rng.standard_normal((TOKENS, h * dim), np.float32) for h in (HEADS, KV_HEADS, KV_HEADS))
    k.reshape(TOKENS, KV_HEADS, dim)[:, :, 7] += 100
    assert nmse(attend("", q, k, v, KV_HEADS), exact_attention(q, k, v, KV_HEADS)) < 1e-2


@pytest.mark.parametrize("scale", [0, 1e-38, 1e-28, 3e-7, 1, 3e6, 1e36])
def test_a_token_alone_gets_its_value_back_within_half_a_step(scale: float) -> None:
    """A step is the 127th part of the largest number, and up to the 128th part more. 1e-30 becomes zero."""
    v = np.random.default_rng(1).standard_normal((1, 64)).astype(np.float32) * np.float32(scale)
    step = float(np.abs(v).max()) / 127 * (1 + 1 / 128)
    np.testing.assert_allclose(attend("", 0 * v, v, v, 1), v, rtol=0, atol=max(step / 2 * 1.0001, 1e-30))


def test_the_cache_takes_about_half(smollm2_path: Path) -> None:
    sizes = {}
    for name in ("f16", "int8"):
        with freedive.load(str(smollm2_path), cache_tokens=64, cache_format=name) as model:
            sizes[name] = model.runner.page_bytes
    assert sizes["f16"] == 2 * 32 * 30 * 2 * 3 * 64
    assert sizes["int8"] / sizes["f16"] == pytest.approx(0.5 + (1 / 32 + 1 / 64) / 2, abs=1e-9)


def test_a_limit_in_bytes_limits_the_pages() -> None:
    llama = tiny("llama")
    for name in NUMBER_BYTES:
        sizes = {"num_threads": 1, "max_rows": 8, "num_pages": 1000, "cache_format": name}
        pages = NativeRunner(llama.spec, llama.packed, **sizes, max_cache_bytes=10**6).num_pages
        page_bytes = NativeRunner(llama.spec, llama.packed, **sizes).page_bytes
        assert pages == 10**6 // page_bytes < 1000


def test_the_real_model_changes_little(smollm2_path: Path) -> None:
    """Compares the mean KL of next tokens, in nats, with that of a half-float cache."""
    logits = []
    for name in ("f16", "int8"):
        with freedive.load(str(smollm2_path), cache_tokens=512, cache_format=name, precision="exact") as model:
            tokens = model.tokenizer.encode(TEXT)
            logits.append(model.runner.step(Batch.whole([tokens], wants_all=True)).astype(np.float64))
    p, q = (x - x.max(1, keepdims=True) for x in logits)
    p, q = (x - np.log(np.exp(x).sum(1, keepdims=True)) for x in (p, q))
    assert 0 < (np.exp(p) * (p - q)).sum(1).mean() < MAX_KL
    assert (p.argmax(1) == q.argmax(1)).mean() > 0.96


def test_models_that_cache_latents_have_none() -> None:
    model = tiny("deepseek_v3")
    with pytest.raises(UserError, match=r"no int8 cache\. Choose cache_format f16"):
        NativeRunner(model.spec, model.packed, num_threads=1, max_rows=8, num_pages=1, cache_format="int8")
