"""Tensor names of decoders: canonical, Hugging Face, llama.cpp."""

from __future__ import annotations

from freedive.checkpoint.rules import Ignore, Permute, Rule, Rules
from freedive.model.spec import Model

DECODER = (
    ("embed", "model.embed_tokens.weight", "token_embd.weight"),
    ("layers.{}.attn.norm", "model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight"),
    ("layers.{}.attn.q", "model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight"),
    ("layers.{}.attn.k", "model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight"),
    ("layers.{}.attn.v", "model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight"),
    ("layers.{}.attn.o", "model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight"),
    ("layers.{}.attn.q_bias", "model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias"),
    ("layers.{}.attn.k_bias", "model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias"),
    ("layers.{}.attn.v_bias", "model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias"),
    ("layers.{}.attn.o_bias", "model.layers.{}.self_attn.o_proj.bias", "blk.{}.attn_output.bias"),
    ("layers.{}.attn.q_norm", "model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight"),
    ("layers.{}.attn.k_norm", "model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight"),
    ("layers.{}.ffn.norm", "model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight"),
    ("layers.{}.ffn.gate", "model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight"),
    ("layers.{}.ffn.up", "model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight"),
    ("layers.{}.ffn.down", "model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight"),
    ("layers.{}.ffn.gate_bias", "model.layers.{}.mlp.gate_proj.bias", "blk.{}.ffn_gate.bias"),
    ("layers.{}.ffn.up_bias", "model.layers.{}.mlp.up_proj.bias", "blk.{}.ffn_up.bias"),
    ("layers.{}.ffn.down_bias", "model.layers.{}.mlp.down_proj.bias", "blk.{}.ffn_down.bias"),
    ("norm", "model.norm.weight", "output_norm.weight"),
    ("head", "lm_head.weight", "output.weight"),
)

REDUNDANT = (
    "model.layers.{}.self_attn.rotary_emb.inv_freq",  # follows from the rope settings
    "rope_freqs.weight",  # is part of the description: families.gguf reads it
)

_ROTATED = {"q", "k", "q_bias", "k_bias"}


def rules(spec: Model, kind: str, *, interleaved: bool) -> Rules:
    """How tensors of a checkpoint of ``kind`` become canonical; ``interleaved`` if rows of q and k heads are so."""
    table: list[Rule | Ignore] = [Ignore(name) for name in REDUNDANT]
    permute = Permute(spec.layers[0].attention.head_dim)
    for ours, hugging_face, llama_cpp in DECODER:
        theirs = llama_cpp if kind == "gguf" else hugging_face
        if ours == "head" and spec.tied:
            table.append(Ignore(theirs))
        else:
            steps = (permute,) if interleaved and ours.rpartition(".")[2] in _ROTATED else ()
            table.append(Rule(theirs, (ours,), steps))
    return table
