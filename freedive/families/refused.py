"""Architectures that freedive knows by name but does not run yet, with the features that they need."""

from __future__ import annotations

from collections.abc import Mapping

from freedive.errors import UserError

_NEEDS: Mapping[str, tuple[str, ...]] = {
    "Gated DeltaNet layers": ("olmo_hybrid", "OlmoHybridForCausalLM"),
    "Gated DeltaNet layers and a sparse-attention indexer": (
        *("qwen4_exp", "qwen4_exp_text", "Qwen4ExpForCausalLM", "Qwen4ExpForConditionalGeneration"),
    ),
    "Kimi Delta Attention layers and attention over residuals": (
        *("kimi_k3", "KimiK3ForConditionalGeneration", "kimi-k3"),
    ),
    "Kimi Delta Attention layers and several residual streams": (
        *("glm5_next", "glm5_next_text", "Glm5NextForConditionalGeneration"),
    ),
    "Mamba layers": (
        *("granitehybrid", "mamba", "MambaForCausalLM", "mamba2", "Mamba2ForCausalLM", "jamba", "JambaForCausalLM"),
        *("bamba", "BambaForCausalLM", "falcon_h1", "FalconH1ForCausalLM", "nemotron_h", "NemotronHForCausalLM"),
    ),
    "gated linear recurrences": ("recurrent_gemma", "RecurrentGemmaForCausalLM"),
    "a sparse-attention indexer": (
        *("deepseek_v32", "DeepseekV32ForCausalLM", "deepseek32"),
        *("glm_moe_dsa", "GlmMoeDsaForCausalLM", "glm-dsa"),
    ),
    "a sparse-attention indexer and several residual streams": (
        *("hy_v4", "HYV4ForCausalLM", "openpangu_v2", "OpenPanguV2ForCausalLM"),
    ),
    "attention over compressed keys and several residual streams": (
        *("deepseek_v4", "DeepseekV4ForCausalLM", "deepseek4"),
    ),
    "keys and values of different widths, and learned sink keys": ("PanguProMoEV2ForCausalLM",),
    "embeddings for each layer, and layers that share keys and values": (
        *("gemma3n", "gemma3n_text", "Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    ),
    "cross-attention to images": ("mllama", "mllama_text_model", "MllamaForCausalLM", "MllamaForConditionalGeneration"),
}

REFUSED = {name: need for need, names in _NEEDS.items() for name in names}
"""Name of an architecture (class or type of config.json, or name in llama.cpp) -> the features that it needs."""


def refusal(name: str, need: str) -> UserError:
    """Returns the error that freedive lacks the feature ``need`` of the architecture ``name``."""
    return UserError(f"freedive does not run {name} yet: it needs {need}", "Choose another model")
