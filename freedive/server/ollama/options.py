"""The ``options`` of Ollama's requests: sampling settings and limits."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from freedive.engine.sampling import Sampling
from freedive.server.request_body import RequestBody, Text, listed

RUNNING = frozenset(
    {
        "embedding_only",
        "f16_kv",
        "logits_all",
        "low_vram",
        "main_gpu",
        "num_batch",
        "num_gpu",
        "num_gqa",
        "num_thread",
        "numa",
        "rope_frequency_base",
        "rope_frequency_scale",
        "use_mlock",
        "use_mmap",
        "vocab_only",
    }
)
"""Options about how to run a model, which the server's operator sets; they do not change the answer."""

WITHOUT_OBJECT = frozenset({"draft_num_predict", "mirostat_eta", "mirostat_tau", "num_keep"})
"""Options of features that do not exist here: mirostat, a separate draft model, truncation of a full context."""

UNUSED = frozenset({"mirostat", "penalize_newline", "repeat_last_n", "tfs_z", "typical_p"})
"""Options that user interfaces send, and that Ollama itself no longer uses with most models."""


class Options(RequestBody):
    """The options of a request. ``num_predict`` below 1 means no limit; ``seed`` -1 means a random seed."""

    ignored = RUNNING | WITHOUT_OBJECT | UNUSED
    called: ClassVar = {
        "max_context": "num_ctx",
        "max_tokens": "num_predict",
        "repetition_penalty": "repeat_penalty",
    }

    num_predict: int | None = None
    num_ctx: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: Annotated[int | None, AfterValidator(lambda seed: None if seed == -1 else seed)] = None
    stop: Annotated[list[Text], BeforeValidator(listed, json_schema_input_type=str | list[str])] = Field(
        default_factory=list
    )
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None

    @model_validator(mode="after")
    def _can_be_honoured(self) -> Options:
        Sampling(**self.sampling())
        return self

    def sampling(self) -> dict[str, Any]:
        """Returns the fields of Sampling that the options set."""
        limit = self.num_predict if self.num_predict and self.num_predict > 0 else None
        penalty = {} if self.repeat_penalty is None else {"repetition_penalty": self.repeat_penalty}
        return self.given(max_tokens=limit, stop=tuple(self.stop), **penalty)
