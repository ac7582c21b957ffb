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
        *("starcoder2", "Starcoder2ForCausalLM", "biogpt", "BioGptForCausalLM", "cohere_compass_text"),
        *("CohereCompassForCausalLM", "ctrl", "CTRLLMHeadModel", "fuyu", "FuyuForCausalLM", "gpt-sw3"),
        *("gpt_neox_japanese", "GPTNeoXJapaneseForCausalLM", "kosmos_2_text_model", "kosmos_2_5_text_model"),
        *("modernbert-decoder", "ModernBertDecoderForCausalLM", "openai-gpt", "OpenAIGPTLMHeadModel", "xglm"),
        "XGLMForCausalLM",
    ),
    "a description of its own": (  # close to a family that runs, but nobody has compared it yet
        *("arctic", "baichuan", "bailingmoe", "chatglm", "cwm", "CwmForCausalLM", "deepseek", "exaone"),
        *("glm", "GlmForCausalLM", "grok", "grovemoe", "helium", "HeliumForCausalLM", "hyperclovax"),
        *("HyperCLOVAXForCausalLM", "internlm2", "internlm3", "iquestcoder", "maincoder", "maple", "minicpm"),
        *("ministral", "MinistralForCausalLM", "nanbeige", "plamo", "plm", "qwen", "sarvam_mla", "smallthinker"),
        *("aria_text", "AriaTextForCausalLM", "chameleon", "cosmos3_edge_text", "deepseek2-ocr", "deepseek_ocr2_text"),
        *("emu3", "emu3_text_model", "Emu3ForCausalLM", "ernie4_5_vl_moe_text", "glm4v_moe_text", "glm4v_text"),
        *("glm_ocr_text", "granite4_vision_text", "granite_docling_text", "hunyuan_vl", "hunyuan_vl_text"),
        *("molmo2_text", "paddleocr", "paddleocr_vl_text", "qwen2_5_omni", "qwen2_5_omni_text", "qwen2_5_vl"),
        *("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl_text", "qwen2_vl", "Qwen2VLForConditionalGeneration"),
        *("qwen2_vl_text", "qwen2vl", "qwen3_omni_moe", "qwen3_omni_moe_text", "qwen3_vl_moe_text", "qwen3_vl_text"),
        *("qwen3vl", "qwen3vlmoe", "unlimited_ocr_text", "voxtral_realtime_text"),
        *("spark2_5", "talkie", "vaultgemma", "VaultGemmaForCausalLM", "xverse"),
    ),
    "cross-attention to images": (
        *("mllama", "mllama_text_model", "MllamaForCausalLM", "MllamaForConditionalGeneration", "idefics"),
        "IdeficsForVisionText2Text",
    ),
    "cross-attention to proteins": ("evolla", "EvollaForProteinText2Text"),
    "experts for images": ("cogvlm",),
    "adapters for images and speech": ("phi4_multimodal", "Phi4MultimodalForCausalLM"),
    "norms inside branches": ("bitnet", "BitNetForCausalLM"),
    "normed weights and layers that run several times": ("dory", "DoryForCausalLM"),
    "layers without attention": ("deci",),
    "layers of different widths": ("openelm",),
    "attention by distance": ("refact", "cpmant", "CpmAntForCausalLM"),
    "attention to hashed tokens": ("reformer", "ReformerModelWithLMHead"),
    "attention in both directions": (
        *("bert", "BertLMHeadModel", "blip", "BlipForConditionalGeneration", "blip_text_model"),
        *("bert-generation", "BertGenerationDecoder", "big_bird", "BigBirdForCausalLM", "camembert"),
        *("CamembertForCausalLM", "data2vec-text", "Data2VecTextForCausalLM", "electra"),
        *("ElectraForCausalLM", "ernie", "ErnieForCausalLM", "git", "GitForCausalLM", "megatron-bert"),
        *("MegatronBertForCausalLM", "rembert", "RemBertForCausalLM", "roberta", "RobertaForCausalLM"),
        *("roberta-prelayernorm", "RobertaPreLayerNormForCausalLM", "roc_bert", "RoCBertForCausalLM"),
        *("roformer", "RoFormerForCausalLM", "xlm", "XLMWithLMHeadModel", "xlm-roberta"),
        *("XLMRobertaForCausalLM", "xlm-roberta-xl", "XLMRobertaXLForCausalLM", "xlnet"),
        *("XLNetLMHeadModel", "xmod", "XmodForCausalLM", "eurobert", "gemma-embedding", "jina-bert-v2"),
        *("jina-bert-v3", "llama-embed", "modern-bert", "neo-bert", "nomic-bert", "nomic-bert-moe"),
    ),
    "an encoder beside the decoder": (
        *("bart", "BartForCausalLM", "bigbird_pegasus", "BigBirdPegasusForCausalLM", "blenderbot"),
        *("BlenderbotForCausalLM", "blenderbot-small", "BlenderbotSmallForCausalLM", "canary"),
        *("CanaryForConditionalGeneration", "cohere_asr", "CohereAsrForConditionalGeneration", "dia"),
        *("DiaForConditionalGeneration", "encoder-decoder", "EncoderDecoderModel", "florence2"),
        *("Florence2ForConditionalGeneration", "fsmt", "FSMTForConditionalGeneration", "led"),
        *("LEDForConditionalGeneration", "longt5", "LongT5ForConditionalGeneration", "m2m_100"),
        *("M2M100ForConditionalGeneration", "marian", "MarianForCausalLM", "mbart", "MBartForCausalLM"),
        *("moonshine", "MoonshineForConditionalGeneration", "moonshine_streaming"),
        *("MoonshineStreamingForConditionalGeneration", "mt5", "MT5ForConditionalGeneration", "mvp"),
        *("MvpForCausalLM", "nllb-moe", "NllbMoeForConditionalGeneration", "pegasus", "PegasusForCausalLM"),
        *("pegasus_x", "PegasusXForConditionalGeneration", "pix2struct"),
        *("Pix2StructForConditionalGeneration", "plbart", "PLBartForCausalLM", "pop2piano"),
        *("Pop2PianoForConditionalGeneration", "pp_formulanet", "PPFormulaNetForConditionalGeneration"),
        *("prophetnet", "ProphetNetForCausalLM", "seamless_m4t", "SeamlessM4TForSpeechToText"),
        *("seamless_m4t_v2", "SeamlessM4Tv2ForSpeechToText", "speech-encoder-decoder"),
        *("SpeechEncoderDecoderModel", "speech_to_text", "Speech2TextForConditionalGeneration", "speecht5"),
        *("SpeechT5ForSpeechToText", "switch_transformers", "SwitchTransformersForConditionalGeneration"),
        *("t5", "T5ForConditionalGeneration", "t5gemma", "T5GemmaForConditionalGeneration", "t5gemma2"),
        *("T5Gemma2ForConditionalGeneration", "trocr", "TrOCRForCausalLM", "udop"),
        *("UdopForConditionalGeneration", "umt5", "UMT5ForConditionalGeneration", "vision-encoder-decoder"),
        *("VisionEncoderDecoderModel", "whisper", "WhisperForCausalLM", "t5encoder"),
    ),
    "text that is denoised instead of predicted": (
        *("diffusion_gemma", "DiffusionGemmaForBlockDiffusion", "dream", "llada", "llada-moe", "rnd1"),
    ),
    "sound or actions in place of text": (
        *("kyutai_speech_to_text", "KyutaiSpeechToTextForConditionalGeneration", "moshi"),
        *("MoshiForCausalLM", "musicgen", "MusicgenForCausalLM", "musicgen_melody"),
        *("MusicgenMelodyForCausalLM", "pi0", "PI0ForConditionalGeneration", "vibevoice"),
        *("VibeVoiceForConditionalGeneration", "wavtokenizer-dec"),
    ),
    "the language model that it belongs to": ("clip",),
    "the model that it drafts for": (
        *("gemma4_assistant", "Gemma4AssistantForCausalLM", "gemma4_unified_assistant"),
        *("Gemma4UnifiedAssistantForCausalLM", "muse_glimmer_assistant", "MuseGlimmerAssistantModel"),
    ),
}

REFUSED = {name: need for need, names in _NEEDS.items() for name in names}
"""Name of an architecture (class or type of config.json, or name in llama.cpp) -> the features that it needs."""


def refusal(name: str, need: str) -> UserError:
    """Returns the error that freedive lacks the feature ``need`` of the architecture ``name``."""
    return UserError(f"freedive does not run {name} yet: it needs {need}", "Choose another model")
