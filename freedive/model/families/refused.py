"""Architectures that freedive knows by name and does not run yet -> what they need."""

from __future__ import annotations

from collections.abc import Mapping

from freedive.errors import UserError

_DELTA = "gated delta-rule layers (Gated DeltaNet)"
_KDA = "Kimi delta attention layers"
_MAMBA = "Mamba layers"
_INDEXER = "a sparse-attention indexer"
_STREAMS = "several residual streams (hyper-connections)"
_PER_LAYER = "per-layer embeddings and key-value sharing between layers"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("qwen3_next", "Qwen3NextForCausalLM", "qwen3next"), _DELTA),
    **dict.fromkeys(("qwen3_5", "qwen3_5_text", "Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"), _DELTA),
    **dict.fromkeys(("qwen3_5_moe", "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM"), _DELTA),
    **dict.fromkeys(("Qwen3_5MoeForConditionalGeneration", "qwen35", "qwen35moe"), _DELTA),
    **dict.fromkeys(("qwen4_exp", "Qwen4ExpForCausalLM"), f"{_DELTA} and {_INDEXER}"),
    **dict.fromkeys(("kimi_linear", "KimiLinearForCausalLM", "kimi-linear"), _KDA),
    **dict.fromkeys(("kimi_k3", "KimiK3ForConditionalGeneration", "kimi-k3"), f"{_KDA} and attention residuals"),
    **dict.fromkeys(("glm5_next", "Glm5NextForCausalLM"), f"{_KDA} and {_STREAMS}"),
    **dict.fromkeys(("glm_moe_dsa", "GlmMoeDsaForCausalLM", "glm-dsa"), _INDEXER),
    **dict.fromkeys(("deepseek_v32", "DeepseekV32ForCausalLM", "deepseek32"), _INDEXER),
    **dict.fromkeys(("deepseek_v4", "DeepseekV4ForCausalLM", "deepseek4"), f"compressed attention and {_STREAMS}"),
    **dict.fromkeys(("hy_v4", "HYV4ForCausalLM"), f"{_INDEXER} and {_STREAMS}"),
    **dict.fromkeys(("OpenPanguV2ForCausalLM", "openpangu_v2"), f"{_INDEXER} and {_STREAMS}"),
    **dict.fromkeys(
        ("PanguProMoEV2ForCausalLM",), "heads whose keys and values differ in width, and learned sink keys"
    ),
    **dict.fromkeys(("granitehybrid", "mamba", "MambaForCausalLM", "mamba2", "Mamba2ForCausalLM"), _MAMBA),
    **dict.fromkeys(("jamba", "JambaForCausalLM", "bamba", "BambaForCausalLM"), _MAMBA),
    **dict.fromkeys(("falcon_h1", "FalconH1ForCausalLM", "nemotron_h", "NemotronHForCausalLM"), _MAMBA),
    **dict.fromkeys(("gemma3n", "gemma3n_text", "Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"), _PER_LAYER),
    **dict.fromkeys(("gemma4", "gemma4_text", "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"), _PER_LAYER),
    **dict.fromkeys(("mllama", "mllama_text_model", "MllamaForConditionalGeneration"), "cross-attention to images"),
}
"""Classes and types of config.json, and llama.cpp's names."""


def refusal(name: str, need: str) -> UserError:
    """The error that freedive lacks what the architecture ``name`` needs."""
    return UserError(f"freedive does not run {name} yet: it needs {need}", "Choose another model")
