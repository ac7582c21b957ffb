"""Tiny models of transformers with a layer of multi-token prediction, as six makers write it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tiny_models import Floats, float_tensor, pack_floats, save

from freedive.checkpoint.dequantize import dequantize
from freedive.checkpoint.open import open_checkpoint
from freedive.checkpoint.rules import canonical_tensors
from freedive.checkpoint.tensor import Checkpoint
from freedive.checkpoint.weight_store import WeightStore
from freedive.families import describe
from freedive.model import spec

IN_MODULE = {"eh_proj": "fc", "enorm": "pre_fc_norm_embedding", "hnorm": "pre_fc_norm_hidden"}
IN_MODULE |= {"shared_head.norm": "norm"}
"""DeepSeek's names of what is around the layer -> those in Qwen's module ``mtp``."""

QWEN = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
"""Models with such a module."""

MIMO, STEP = "mimo_v2_flash", "step3p7"
WINDOWED = (MIMO, STEP)
"""Models whose layer has a window and a dense network, and reads states that no norm has changed."""

GAIN = dict.fromkeys((*QWEN, STEP), 1.0)
"""What is added to the weights of norms."""

LAST_NORM = {
    "bailing_moe_v2": "final_layernorm",
    "bailing_hybrid": "final_layernorm",
    STEP: "transformer.shared_head.norm",
}
"""Other names than ``shared_head.norm`` of the norm after the layer."""

BEYOND: dict[str, Any] = {
    "layer_types": "sliding_attention",
    "mlp_layer_types": "dense",
    "swiglu_limits": 0.125,
    "swiglu_limits_shared": 0.25,
}
"""What Step's lists by layer say of its layer."""


@dataclass
class WithMtp:
    """A model of transformers, its layer for multi-token prediction with the weights ``around`` it, and freedive's
    description and weights."""

    maker: Any
    layer: torch.nn.Module
    around: dict[str, torch.Tensor]
    spec: spec.ModelSpec
    weights: dict[str, Floats]

    @cached_property
    def packed(self) -> WeightStore:
        return pack_floats(self.weights)

    def expected(self, tokens: list[int], following: list[int]) -> Floats:
        """Returns the logits [T, vocab] of the tokens after ``following``, by section 2.2 of DeepSeek-V3's report, in
        torch."""
        model, eps = self.maker.model, self.maker.config.rms_norm_eps
        with torch.no_grad():
            states: list[torch.Tensor] = []
            norm_of_head = model.norm.register_forward_pre_hook(lambda _, args: states.append(args[0]))
            state = model(torch.tensor([tokens])).last_hidden_state
            norm_of_head.remove()
            state = states[0] if self.spec.family in WINDOWED else state
            token = model.embed_tokens(torch.tensor([following]))
            gain = GAIN.get(self.spec.family, 0.0)
            pair = [norm(token, gain + self.around["enorm"], eps), norm(state, gain + self.around["hnorm"], eps)]
            x = torch.cat(pair, -1) @ self.around["eh_proj"].T
            places = torch.arange(len(tokens))[None]
            mask = torch.full((len(tokens), len(tokens)), -torch.inf).triu(1)[None, None]
            if self.spec.family in WINDOWED:
                mask += torch.full_like(mask, -torch.inf).tril(-self.maker.config.sliding_window)
            kind = ("sliding_attention",) if self.spec.family in WINDOWED else ()
            turns = model.rotary_emb(
                x, places.expand(3, 1, -1) if self.spec.family.startswith("qwen3_5") else places, *kind
            )
            x = self.layer(x, attention_mask=mask, position_ids=places, position_embeddings=turns)
            x = norm(x, gain + self.around["shared_head.norm"], eps)
            logits: Floats = self.maker.lm_head(x)[0].numpy()
            return logits


def norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def further_layer(name: str, maker: Any) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Returns a layer shaped like the last one with attention, with other weights, and the norms and projection around
    it, by makers' names."""
    index, last = max((i, layer) for i, layer in enumerate(maker.model.layers) if hasattr(layer, "self_attn"))
    dim, generator = maker.config.hidden_size, torch.Generator().manual_seed(3)
    is_windowed = name in WINDOWED
    layer = type(last)(dense_window(maker.config) if is_windowed else maker.config, layer_idx=index).eval()
    with torch.no_grad():
        if is_windowed:
            for weight in layer.state_dict().values():
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(1.5 * noise / weight.shape[-1] ** 0.5 if weight.ndim > 1 else 1 + 0.3 * noise)
        else:
            for weight, other in zip(layer.state_dict().values(), last.state_dict().values(), strict=True):
                weight.copy_(other.flip(0) if weight.ndim > 1 else other)
    norms = ("enorm", "hnorm", "shared_head.norm")
    around = {key: 1 + 0.3 * torch.randn(dim, generator=generator) for key in norms}
    return layer, {**around, "eh_proj": torch.randn(dim, 2 * dim, generator=generator) / dim**0.5}


def dense_window(config: Any) -> Any:
    """Returns the configuration with a window and a dense network in each layer."""
    changed = copy.deepcopy(config)
    changed.layer_types = ["sliding_attention"] * len(config.layer_types)
    changed.mlp_layer_types = ["dense"] * len(config.mlp_layer_types)
    return changed


def add_module(checkpoint: Checkpoint, layer: torch.nn.Module, around: dict[str, torch.Tensor]) -> None:
    """Adds the layer to ``checkpoint`` as the module ``mtp``, as Qwen does."""
    further = {f"layers.0.{key}": value for key, value in layer.state_dict().items()}
    further |= {f"{IN_MODULE[key]}.weight": value for key, value in around.items()}
    named = {f"mtp.{key}": value.numpy() for key, value in further.items()}
    checkpoint.tensors.update({key: float_tensor(key, value) for key, value in named.items()})


def add_module_of_mimo(checkpoint: Checkpoint, layer: torch.nn.Module, around: dict[str, torch.Tensor]) -> None:
    """Adds the layer twice to ``checkpoint``, as the modules ``model.mtp.layers.0`` and ``1``."""
    names = {"shared_head.norm": "final_layernorm", "post_attention_layernorm.weight": "pre_mlp_layernorm.weight"}
    further = {**layer.state_dict(), **{f"{names.get(key, key)}.weight": value for key, value in around.items()}}
    for index in range(2):
        named = {f"model.mtp.layers.{index}.{names.get(key, key)}": value for key, value in further.items()}
        checkpoint.tensors.update({key: float_tensor(key, value.numpy()) for key, value in named.items()})


def add_layer(
    checkpoint: Checkpoint,
    index: int,
    layer: torch.nn.Module,
    around: dict[str, torch.Tensor],
    last_norm: str,
    beyond: dict[str, Any],
) -> None:
    """Adds the layer to ``checkpoint``, with the copies of embedding and head that such files contain.

    ``beyond`` is added to the configuration's lists by layer.
    """
    around = {last_norm if key == "shared_head.norm" else key: value for key, value in around.items()}
    checkpoint.config["num_nextn_predict_layers"] = 1
    checkpoint.config.update({key: [*checkpoint.config[key], kind] for key, kind in beyond.items()})
    further = {**layer.state_dict(), **{f"{key}.weight": value for key, value in around.items()}}
    further["embed_tokens.weight"] = further["shared_head.head.weight"] = torch.zeros(2, 2)
    named = {f"model.layers.{index}.{key}": value.numpy() for key, value in further.items()}
    checkpoint.tensors.update({key: float_tensor(key, value) for key, value in named.items()})


@cache
def with_mtp(name: str) -> WithMtp:
    """Returns a tiny model with a layer of multi-token prediction, read back from the folder that
    transformers saved."""
    with TemporaryDirectory() as folder:
        maker = save(name, Path(folder))
        layer, around = further_layer(name, maker)
        checkpoint = open_checkpoint(Path(folder))
        if name == MIMO:
            add_module_of_mimo(checkpoint, layer, around)
        elif name in QWEN:
            add_module(checkpoint, layer, around)
        else:
            last_norm, beyond = LAST_NORM.get(name, "shared_head.norm"), BEYOND if name == STEP else {}
            add_layer(checkpoint, len(maker.model.layers), layer, around, last_norm, beyond)
        model, rules = describe(checkpoint)
        tensors = canonical_tensors(checkpoint, model, rules)
        return WithMtp(maker, layer, around, model, {key: dequantize(one).copy() for key, one in tensors.items()})
