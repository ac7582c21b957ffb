"""The text part of Step 3.7 with an output head, which transformers has only as a part of the multimodal model."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.step3p7.configuration_step3p7 import Step3p7TextConfig
from transformers.models.step3p7.modeling_step3p7 import Step3p7PreTrainedModel, Step3p7TextModel


class Step3p7ForCausalLM(Step3p7PreTrainedModel):
    config_class = Step3p7TextConfig
    config: Step3p7TextConfig  # type: ignore[assignment]

    def __init__(self, config: Step3p7TextConfig) -> None:
        super().__init__(config)
        self.model = Step3p7TextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Any, **options: Any) -> CausalLMOutputWithPast:
        out = self.model(input_ids, **options)
        return CausalLMOutputWithPast(logits=self.lm_head(out.last_hidden_state))
