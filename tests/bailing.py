"""Ling 2 and Sarvam's model of 30B in torch: the decoder of GLM-4.5, to which transformers maps the latter."""

from __future__ import annotations

from transformers import Glm4MoeForCausalLM
from transformers.models.sarvam_moe.configuration_sarvam_moe import SarvamMoEConfig


class SarvamMoEForCausalLM(Glm4MoeForCausalLM):
    config_class = SarvamMoEConfig


class BailingMoeV2Config(SarvamMoEConfig):
    model_type = "bailing_moe_v2"


class BailingMoeV2ForCausalLM(Glm4MoeForCausalLM):
    config_class = BailingMoeV2Config
