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
    "Gated DeltaNet layers with norms of its own": ("lara_mini", "LaraMiniForCausalLM"),
    "Mamba layers": (
        *("granitehybrid", "mamba", "MambaForCausalLM", "mamba2", "Mamba2ForCausalLM", "jamba", "JambaForCausalLM"),
        *("bamba", "BambaForCausalLM", "falcon_h1", "FalconH1ForCausalLM", "nemotron_h", "NemotronHForCausalLM"),
        *("falcon-h1", "falcon_mamba", "FalconMambaForCausalLM", "nemotron_h_moe", "plamo2", "plamo3"),
        *("zamba", "ZambaForCausalLM", "zamba2", "Zamba2ForCausalLM"),
    ),
    "RWKV layers": ("rwkv", "RwkvForCausalLM", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"),
    "xLSTM layers": ("xlstm", "xLSTMForCausalLM"),
    "lightning attention": ("minimax", "MiniMaxForCausalLM", "minimax-01"),
    "gated linear recurrences": ("recurrent_gemma", "RecurrentGemmaForCausalLM"),
    "a sparse-attention indexer": (
        *("deepseek_v32", "DeepseekV32ForCausalLM", "deepseek32"),
        *("glm_moe_dsa", "GlmMoeDsaForCausalLM", "glm-dsa"),
        *("dots3_note", "dots3_note_text", "Dots3NoteForCausalLM", "Dots3NoteForConditionalGeneration", "dots3note"),
    ),
    "a sparse-attention indexer of blocks": (
        *("minimax_m3_vl", "minimax_m3_vl_text", "MiniMaxM3VLForCausalLM", "minimax-m3"),
        "MiniMaxM3SparseForConditionalGeneration",
    ),
    "a sparse-attention indexer and gated norms": ("axk2", "AXK2ForCausalLM"),
    "a sparse-attention indexer and layers that share latents": (
        *("mistral_large4", "mistral_large4_text", "MistralLarge4ForConditionalGeneration"),
    ),
    "a sparse-attention indexer and several residual streams": (
        *("hy_v4", "HYV4ForCausalLM", "hy_v4_vl", "HYV4VLForConditionalGeneration"),
        *("openpangu_v2", "OpenPanguV2ForCausalLM"),
    ),
    "attention over compressed keys and several residual streams": (
        *("deepseek_v4", "DeepseekV4ForCausalLM", "deepseek4"),
    ),
    "keys and values of different widths, and learned sink keys": ("PanguProMoEV2ForCausalLM",),
    "embeddings for each layer, and layers that share keys and values": (
        *("gemma3n", "gemma3n_text", "Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"),
    ),
    "attention gates with a bias of each head": ("beam", "BeamForCausalLM"),
    "attention gates and windows beside short convolutions": ("lfm3", "Lfm3ForCausalLM", "lfm3_vl"),
    "gates on residuals": ("muse_spark", "muse_spark_text", "MuseSparkForConditionalGeneration"),
    "relative position biases": (
        *("inkling", "inkling_text", "InklingForCausalLM", "InklingForConditionalGeneration"),
    ),
    "relative position biases and attention over residuals": (
        *("inkling2", "inkling2_text", "Inkling2ForCausalLM", "Inkling2ForConditionalGeneration"),
        *("inkling2_loop", "inkling2_loop_text", "Inkling2LoopForCausalLM"),
    ),
    "norms after the sum of experts": ("axk1", "AXK1ForCausalLM"),
    "experts weighted by the sigmoid of the chosen logits": ("kolibri1", "Kolibri1ForCausalLM"),
    "sinks beside shared experts": ("flint", "FlintForCausalLM"),
    "convolutions in attention": ("zaya", "ZayaForCausalLM"),
    "experts that return their input": ("longcat_flash", "LongcatFlashForCausalLM"),
    "experts in attention": ("jetmoe", "JetMoeForCausalLM"),
    "layer norms with means and sparsemixer routers": ("phimoe", "PhimoeForCausalLM"),
    "layers that run several times": ("hrm_text", "HrmTextForCausalLM"),
    "differential attention": ("diffllama", "DiffLlamaForCausalLM"),
    "masks that depend on the input": ("doge", "DogeForCausalLM"),
    "patches of bytes in place of tokens": ("blt", "BltForCausalLM"),
    "multipliers of latent attention": ("minicpm3", "MiniCPM3ForCausalLM"),
    "feed-forward networks without gates": (
        *("apertus", "ApertusForCausalLM", "apertus1p5_text", "Apertus1p5TextForCausalLM"),
        *("arcee", "ArceeForCausalLM", "nanochat", "NanoChatForCausalLM"),
    ),
    "layer norms with means": (
        *("bloom", "BloomForCausalLM", "codegen", "CodeGenForCausalLM", "codeshell", "cohere", "CohereForCausalLM"),
        *("command-r", "cohere2", "Cohere2ForCausalLM", "cohere2_moe", "Cohere2MoeForCausalLM", "cohere2moe"),
        *("dbrx", "DbrxForCausalLM", "falcon", "FalconForCausalLM", "gpt2", "GPT2LMHeadModel", "gptj"),
        *("GPTJForCausalLM", "gpt_bigcode", "GPTBigCodeForCausalLM", "starcoder", "gpt_neo", "GPTNeoForCausalLM"),
        *("gpt_neox", "GPTNeoXForCausalLM", "gptneox", "jais", "jais2", "Jais2ForCausalLM", "mpt", "MptForCausalLM"),
        *("nemotron", "NemotronForCausalLM", "olmo", "OlmoForCausalLM", "opt", "OPTForCausalLM", "orion"),
        *("persimmon", "PersimmonForCausalLM", "phi", "PhiForCausalLM", "phi2", "stablelm", "StableLmForCausalLM"),
        *("starcoder2", "Starcoder2ForCausalLM"),
    ),
    "a description of its own": (  # close to a family that runs, but nobody has compared it yet
        *("arctic", "baichuan", "bailingmoe", "bailingmoe3", "chatglm", "cwm", "CwmForCausalLM", "deepseek", "exaone"),
        *("glm", "GlmForCausalLM", "grok", "grovemoe", "helium", "HeliumForCausalLM", "hyperclovax"),
        *("HyperCLOVAXForCausalLM", "internlm2", "internlm3", "iquestcoder", "maincoder", "maple", "minicpm"),
        *("ministral", "MinistralForCausalLM", "nanbeige", "plamo", "plm", "qwen", "sarvam_mla", "smallthinker"),
        *("spark2_5", "talkie", "vaultgemma", "VaultGemmaForCausalLM", "xverse"),
    ),
    "cross-attention to images": ("mllama", "mllama_text_model", "MllamaForCausalLM", "MllamaForConditionalGeneration"),
}

REFUSED = {name: need for need, names in _NEEDS.items() for name in names}
"""Name of an architecture (class or type of config.json, or name in llama.cpp) -> the features that it needs."""


def refusal(name: str, need: str) -> UserError:
    """Returns the error that freedive lacks the feature ``need`` of the architecture ``name``."""
    return UserError(f"freedive does not run {name} yet: it needs {need}", "Choose another model")
