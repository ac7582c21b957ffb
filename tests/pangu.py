"""Huawei's openPangu in torch, which transformers does not have: Llama with biases, and a mixture of grouped experts.

Written from the paper (Tang et al. 2025, Pangu Pro MoE, section 2) and the names and numbers of the published files.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaMLP


class PanguEmbeddedConfig(LlamaConfig):
    model_type = "PanguEmbedded"
    attention_bias: bool = True


class PanguEmbeddedForCausalLM(LlamaForCausalLM):
    config_class = PanguEmbeddedConfig


class PanguProMoEConfig(LlamaConfig):
    model_type = "PanguProMoE"
    attention_bias: bool = True
    moe_intermediate_size: int = 32
    shared_expert_intermediate_size: int = 48
    num_experts: int = 8
    num_experts_per_tok: int = 4


class FeedForward(LlamaMLP):
    def __init__(self, config: PanguProMoEConfig, width: int) -> None:
        nn.Module.__init__(self)
        self.gate_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, config.hidden_size, bias=False)
        self.act_fn = nn.functional.silu


class Experts(nn.ModuleList):
    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Computes experts for x [T, hidden]; the experts of each token and their weights are [T, num_chosen]."""
        rows = []
        for row, experts, shares in zip(x, chosen, weights, strict=True):
            rows.append(sum(share * self[expert](row) for expert, share in zip(experts, shares, strict=True)))
        return torch.stack(rows)


class MixtureOfGroupedExperts(nn.Module):
    """The best expert of each group, weighted by its softmax over all experts and by a scale of its own."""

    def __init__(self, config: PanguProMoEConfig) -> None:
        super().__init__()
        self.num_groups = config.num_experts_per_tok
        self.gate = nn.Linear(config.hidden_size, config.num_experts, bias=False)
        self.router_scale = nn.Parameter(torch.ones(1, config.num_experts))
        width = config.moe_intermediate_size
        self.experts = Experts(FeedForward(config, width) for _ in range(config.num_experts))
        self.shared_expert = FeedForward(config, config.shared_expert_intermediate_size)

    def forward(self, hidden: Tensor) -> Tensor:
        x = hidden.flatten(0, -2)
        scores = self.gate(x).softmax(-1).unflatten(-1, (self.num_groups, -1))
        weights, best = scores.max(-1)
        chosen = best + torch.arange(self.num_groups) * scores.shape[-1]
        routed = self.experts(x, chosen, weights * self.router_scale[0, chosen])
        return (routed + self.shared_expert(x)).view_as(hidden)


class PanguProMoEForCausalLM(LlamaForCausalLM):
    config_class = PanguProMoEConfig

    def __init__(self, config: PanguProMoEConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.mlp = MixtureOfGroupedExperts(config)
