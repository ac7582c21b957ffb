"""The text part of Muse Glimmer with an output head, which transformers has only in the multimodal model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.models.muse_glimmer.configuration_muse_glimmer import MuseGlimmerTextConfig
from transformers.models.muse_glimmer.modeling_muse_glimmer import MuseGlimmerPreTrainedModel, MuseGlimmerTextModel


class MuseGlimmerForCausalLM(MuseGlimmerPreTrainedModel):
    config_class = MuseGlimmerTextConfig
    config: MuseGlimmerTextConfig  # type: ignore[assignment]

    def __init__(self, config: MuseGlimmerTextConfig) -> None:
        super().__init__(config)
        self.model = MuseGlimmerTextModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids: Any, **options: Any) -> CausalLMOutputWithPast:
        out = self.model(input_ids, **options)
        cap = self.config.final_logit_softcapping
        logits = self.lm_head(out.last_hidden_state) * self.config.output_multiplier
        return CausalLMOutputWithPast(logits=torch.tanh(logits / cap) * cap)
