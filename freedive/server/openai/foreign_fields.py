"""Request fields of other servers with OpenAI's API, and how this server treats them."""

from __future__ import annotations

LABELS = frozenset(
    {
        "cache_prompt",
        "client_metadata",
        "id_slot",
        "metadata",
        "models",
        "priority",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "provider",
        "request_id",
        "route",
        "safety_identifier",
        "service_tier",
        "session_id",
        "store",
        "usage",
        "verbosity",
    }
)
"""Ignored fields that label a request, choose among servers, or only advise."""

WITHOUT_EFFECT = frozenset(
    {
        "dry_allowed_length",
        "dry_base",
        "dry_penalty_last_n",
        "dry_sequence_breakers",
        "dynatemp_exponent",
        "guided_decoding_backend",
        "include_reasoning",
        "mirostat_eta",
        "mirostat_tau",
        "n_keep",
        "parse_tool_calls",
        "penalize_nl",
        "reasoning_format",
        "repeat_last_n",
        "return_progress",
        "separate_reasoning",
        "timings_per_token",
        "xtc_threshold",
    }
)
"""Ignored fields that tune features which do not exist here, or that concern how an answer is displayed."""

OLLAMA_OPTIONS = frozenset(
    {"keep_alive", "num_batch", "num_ctx", "num_gpu", "num_keep", "num_thread", "use_mlock", "use_mmap"}
)
"""Ignored options of Ollama about how to run a model, as its own ``/v1`` ignores them; Open WebUI sends them to any
server."""

NEUTRAL: dict[str, tuple[object, ...]] = {
    "allowed_token_ids": ([],),
    "bad_words": ([], ""),
    "best_of": (1,),
    "detokenize": (True,),
    "documents": ([],),
    "dry_multiplier": (0,),
    "dynatemp_range": (0,),
    "early_stopping": (False,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logits_processors": ([],),
    "lora": ([],),
    "min_keep": (0,),
    "min_tokens": (0,),
    "mirostat": (0,),
    "mm_processor_kwargs": ({},),
    "n_indent": (0,),
    "n_probs": (0,),
    "no_repeat_ngram_size": (0,),
    "plugins": ([],),
    "post_sampling_probs": (False,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "return_tokens": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "smoothing_factor": (0,),
    "spaces_between_special_tokens": (True, False),
    "stop_token_ids": ([],),
    "t_max_predict_ms": (0, -1),
    "tfs": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "top_n_sigma": (0, -1),
    "transforms": ([],),
    "truncate_prompt_tokens": (),
    "typical": (1,),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "xtc_probability": (0,),
}
"""Fields of other servers that are not supported, and their neutral values, which are accepted."""
