"""Keys of config.json that do not change the computation of any family."""

from __future__ import annotations

from collections.abc import Mapping

_FILE = (
    *("_commit_hash", "_name_or_path", "architectures", "auto_map", "model_type", "transformers_version"),
    *("dtype", "torch_dtype", "transformers.js_config", "unsloth_fixed", "unsloth_version"),
    "quantization_config",  # the storage of tensors, which checkpoint/quantized reads
)
_TRAINING = (
    *("attention_dropout", "aux_loss_alpha", "ep_size", "finetuned", "gradient_checkpointing", "initializer_range"),
    *("neftune_noise_alpha", "output_router_logits", "pretraining_tp", "router_aux_loss_coef", "router_jitter_noise"),
    *("seq_aux", "tp_plan", "base_model_tp_plan", "base_model_pp_plan"),
)
_TRANSFORMERS = (  # how transformers runs a model and what it returns
    *("_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "attn_implementation"),
    *("_experts_implementation", "_experts_implementation_internal", "experts_implementation"),
    *("cache_implementation", "chunk_size_feed_forward", "is_decoder", "output_attentions", "output_hidden_states"),
    *("output_scores", "return_dict", "return_dict_in_generate", "tf_legacy_loss", "tie_encoder_decoder"),
    *("torchscript", "use_bfloat16", "use_cache", "use_return_dict"),
)
_CLASSIFIERS = (*("finetuning_task", "id2label", "label2id", "num_labels", "problem_type", "task_specific_params"),)
_GENERATION = (  # generation_config.json is used instead
    *("bad_words_ids", "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping"),
    *("encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "forced_bos_token_id"),
    *("forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length", "min_p"),
    *("no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "penalty_alpha"),
    *("remove_invalid_values", "repetition_penalty", "suppress_tokens", "temperature", "top_k", "top_p", "typical_p"),
)
_TEXT = (  # the tokenizer files are used instead
    *("bos_token_id", "decoder_start_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "unk_token_id"),
    *("prefix", "tokenizer_class"),
)
_OTHERS = (
    "num_nextn_predict_layers",  # the tensors show whether MTP layers exist
    "original_max_position_embeddings",  # read only by the scalings of rotary embeddings that need it
)

HARMLESS = frozenset((*_FILE, *_TRAINING, *_TRANSFORMERS, *_CLASSIFIERS, *_GENERATION, *_TEXT, *_OTHERS))
"""Keys that are harmless with any value, mostly those that PretrainedConfig of transformers adds to every model."""

HARMLESS_VALUES: Mapping[str, object] = {
    **dict.fromkeys(("attention_bias", "bias", "mlp_bias", "qkv_bias", "use_bias"), False),
    **dict.fromkeys(("add_cross_attention", "is_encoder_decoder"), False),
    "pruned_heads": {},
}
"""Keys that are harmless only with this value. Missing and unexpected bias tensors are refused by naming rules."""

SECTION_HARMLESS = frozenset({"finetuned"})
"""Keys that are harmless in a section, such as ``rope_scaling``."""
