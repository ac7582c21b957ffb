"""Tensor names of decoders: canonical names, those of Hugging Face and those of llama.cpp. Families declare exceptions.

In a name, ``{}`` stands for the number of a layer or an expert. The names of a weight and of its bias differ only in
their ends, ``.weight`` and ``.bias``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from freedive.checkpoint.rule_steps import Halve, Permute, Transpose
from freedive.checkpoint.rules import Ignore, Rule, Rules
from freedive.model.spec import Attention, LatentAttention, ModelSpec

Names = Mapping[str, str]
"""Canonical name -> name in the file."""

EXPERT = "layers.{}.ffn.experts.{}"
SHARED = "layers.{}.ffn.shared"


def feed_forward_names(
    ours: str, theirs: str, parts: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Names:
    """Returns the names of gate, up and down of a feed-forward network: ``ours`` are canonical, ``theirs`` the file's.

    ``parts`` are the last parts of the file's names.
    """
    return {
        f"{ours}.{name}": f"{theirs}{part}.weight" for name, part in zip(("gate", "up", "down"), parts, strict=True)
    }


HUB: Names = {
    "embed": "model.embed_tokens.weight",
    "layers.{}.attn.norm": "model.layers.{}.input_layernorm.weight",
    "layers.{}.attn.q": "model.layers.{}.self_attn.q_proj.weight",
    "layers.{}.attn.k": "model.layers.{}.self_attn.k_proj.weight",
    "layers.{}.attn.v": "model.layers.{}.self_attn.v_proj.weight",
    "layers.{}.attn.o": "model.layers.{}.self_attn.o_proj.weight",
    "layers.{}.attn.q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "layers.{}.attn.k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "layers.{}.attn.sinks": "model.layers.{}.self_attn.sinks",
    "layers.{}.attn.q_a": "model.layers.{}.self_attn.q_a_proj.weight",
    "layers.{}.attn.q_a_norm": "model.layers.{}.self_attn.q_a_layernorm.weight",
    "layers.{}.attn.q_b": "model.layers.{}.self_attn.q_b_proj.weight",
    "layers.{}.attn.kv_a": "model.layers.{}.self_attn.kv_a_proj_with_mqa.weight",
    "layers.{}.attn.kv_a_norm": "model.layers.{}.self_attn.kv_a_layernorm.weight",
    "layers.{}.ffn.norm": "model.layers.{}.post_attention_layernorm.weight",
    **feed_forward_names("layers.{}.ffn", "model.layers.{}.mlp."),
    "layers.{}.ffn.router": "model.layers.{}.mlp.gate.weight",
    "layers.{}.ffn.choice_bias": "model.layers.{}.mlp.gate.e_score_correction_bias",
    **feed_forward_names(EXPERT, "model.layers.{}.mlp.experts.{}."),
    **feed_forward_names(SHARED, "model.layers.{}.mlp.shared_experts."),
    "layers.{}.ffn.shared_gate": "model.layers.{}.mlp.shared_expert_gate.weight",
    "layers.{}.mtp.embed_norm": "model.layers.{}.enorm.weight",
    "layers.{}.mtp.state_norm": "model.layers.{}.hnorm.weight",
    "layers.{}.mtp.norm": "model.layers.{}.shared_head.norm.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}

GGUF: Names = {
    "embed": "token_embd.weight",
    "layers.{}.attn.norm": "blk.{}.attn_norm.weight",
    "layers.{}.attn.q": "blk.{}.attn_q.weight",
    "layers.{}.attn.k": "blk.{}.attn_k.weight",
    "layers.{}.attn.v": "blk.{}.attn_v.weight",
    "layers.{}.attn.o": "blk.{}.attn_output.weight",
    "layers.{}.attn.q_norm": "blk.{}.attn_q_norm.weight",
    "layers.{}.attn.k_norm": "blk.{}.attn_k_norm.weight",
    "layers.{}.attn.sinks": "blk.{}.attn_sinks.weight",
    "layers.{}.attn.q_a": "blk.{}.attn_q_a.weight",
    "layers.{}.attn.q_a_norm": "blk.{}.attn_q_a_norm.weight",
    "layers.{}.attn.q_b": "blk.{}.attn_q_b.weight",
    "layers.{}.attn.kv_a": "blk.{}.attn_kv_a_mqa.weight",
    "layers.{}.attn.kv_a_norm": "blk.{}.attn_kv_a_norm.weight",
    "layers.{}.attn.v_b": "blk.{}.attn_v_b.weight",
    "layers.{}.attn.post_norm": "blk.{}.post_attention_norm.weight",
    "layers.{}.ffn.norm": "blk.{}.ffn_norm.weight",
    "layers.{}.ffn.post_norm": "blk.{}.post_ffw_norm.weight",
    **feed_forward_names("layers.{}.ffn", "blk.{}.", ("ffn_gate", "ffn_up", "ffn_down")),
    "layers.{}.ffn.router": "blk.{}.ffn_gate_inp.weight",
    "layers.{}.ffn.choice_bias": "blk.{}.exp_probs_b.bias",
    **feed_forward_names(EXPERT, "blk.{}.", ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")),
    **feed_forward_names(SHARED, "blk.{}.", ("ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp")),
    "layers.{}.ffn.shared_gate": "blk.{}.ffn_gate_inp_shexp.weight",
    "layers.{}.mtp.embed_norm": "blk.{}.nextn.enorm.weight",
    "layers.{}.mtp.state_norm": "blk.{}.nextn.hnorm.weight",
    "layers.{}.mtp.norm": "blk.{}.nextn.shared_head_norm.weight",
    "norm": "output_norm.weight",
    "head": "output.weight",
}

HUB_EH_PROJ, GGUF_EH_PROJ = "model.layers.{}.eh_proj.weight", "blk.{}.nextn.eh_proj.weight"
"""Names of the matrix in an MTP layer that joins embeddings and hidden states."""


@dataclass(frozen=True)
class MtpModule:
    """The names of an MTP layer that is a module of its own: ``layer`` is the prefix of its tensors, and ``parts`` are
    those that have other names than in a layer like DeepSeek's.
    """

    layer: str
    parts: Names = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """The name of a tensor that every such module has."""
        return f"{self.parts.get('eh_proj', f'{self.layer}eh_proj')}.weight"


REDUNDANT = (
    "model.layers.{}.self_attn.rotary_emb.inv_freq",  # computed from the rope settings
    *("rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"),  # read by families/gguf.py
)

VISION = (
    "audio_model",
    "audio_tower",
    "embed_audio",
    "embed_vision",
    "mm_projector",
    "multi_modal_projector",
    "multimodal_projector",
    "vision_adapter",
    "vision_embed_tokens",
    "vision_embedder",
    "vision_model",
    "vision_projection",
    "vision_tower",
    "visual",
)
"""Prefixes of the parts of multimodal models that are not the text part, at the top level or after ``model.``."""

WRAPPERS = {"model.language_model.": "", "language_model.model.": "language_model."}
"""Prefix that replaces ``model.`` in the text part of a multimodal model -> prefix of its other tensors."""


STACKED = (
    Rule("model.layers.{}.mlp.experts.gate_up_proj", (f"{EXPERT}.gate", f"{EXPERT}.up")),
    Rule("model.layers.{}.mlp.experts.down_proj", (f"{EXPERT}.down",)),
)
"""Rules of experts that are one stack of a layer."""
GGUF_STACKED = Rule("blk.{}.ffn_gate_up_exps.weight", (f"{EXPERT}.gate", f"{EXPERT}.up"))


@dataclass(frozen=True)
class Naming:
    """The tensor names of a family that differ from the common names of its file format.

    ``renames`` maps single tensors. ``rules`` returns, for a specification, the rules of tensors that contain several
    weights, need a conversion, or are not read. They precede the common rules: if several rules match a weight, the
    first one whose tensor exists is used. With ``mtp_module``, the MTP layer is a module of its own (Qwen) instead of a
    further layer (DeepSeek).
    """

    renames: Names = field(default_factory=dict)
    rules: Callable[[ModelSpec], Rules] = lambda spec: ()
    mtp_module: MtpModule | None = None

    @property
    def mtp_mark(self) -> str:
        """The name of a tensor that a Hugging Face checkpoint has if the layer with this number is an MTP layer."""
        return self.mtp_module.mark if self.mtp_module else HUB_EH_PROJ


def hub_rules(spec: ModelSpec, naming: Naming, num_mtp_layers: int = 0) -> list[Rule | Ignore]:
    """Returns the rules that make the tensors of a Hugging Face checkpoint canonical.

    MTP layers come after the last layer. Their tensors that are not in the specification, such as copies of the
    embedding and the output head, are not read.
    """
    latents = latent_rules(spec, "model.layers.{}.self_attn.kv_b_proj.weight")
    pair = _embed_and_state(spec, HUB_EH_PROJ)
    rules = [*naming.rules(spec), *_plain(spec, HUB, naming), *STACKED, *latents, pair]
    unread = ("mtp.*", *(f"model.layers.{len(spec.layers) + index}.*" for index in range(num_mtp_layers)))
    in_module = _in_module(rules, len(spec.layers), naming.mtp_module) if naming.mtp_module and spec.mtp else []
    return [*in_module, *rules, *(Ignore(name) for name in (*REDUNDANT, *unread))]


def gguf_rules(spec: ModelSpec, naming: Naming, num_mtp_layers: int = 0) -> list[Rule | Ignore]:
    """Returns the rules that make the tensors of a GGUF file canonical; MTP layers come after the last layer."""
    keys = Rule("blk.{}.attn_k_b.weight", ("layers.{}.attn.k_b",), (Transpose(),))
    latents = latent_rules(spec, "blk.{}.attn_kv_b.weight")
    pair = _embed_and_state(spec, GGUF_EH_PROJ)
    mtp = (f"blk.{len(spec.layers) + index}.*" for index in range(num_mtp_layers))
    unread = [Ignore(name) for name in (*REDUNDANT, *mtp)]
    return [*naming.rules(spec), *_plain(spec, GGUF, naming), GGUF_STACKED, keys, *latents, pair, *unread]


def text_rules(rules: Rules, tensors: Mapping[str, object]) -> list[Rule | Ignore]:
    """Returns ``rules`` for the text part of a multimodal checkpoint; the other parts are not read."""
    unread = [Ignore(f"{prefix}{name}.*") for prefix in ("", "model.") for name in VISION]
    for inside, outside in WRAPPERS.items():
        if HUB["embed"].replace("model.", inside) in tensors:
            return [*(replace(rule, theirs=_wrapped(rule.theirs, inside, outside)) for rule in rules), *unread]
    return [*rules, *unread]


def interleaved_heads(spec: ModelSpec) -> list[Rule]:
    """Returns rules that reorder the rows of q and k, for architectures of llama.cpp that rotate neighbours instead of
    halves.
    """
    attn = next(layer.mixer for layer in spec.layers if isinstance(layer.mixer, Attention))
    names = {name: GGUF[f"layers.{{}}.attn.{name}"] for name in ("q", "k")}
    names |= {f"{name}_bias": _bias(theirs) for name, theirs in names.items()}
    return [Rule(theirs, (f"layers.{{}}.attn.{name}",), (Permute(attn.head_dim),)) for name, theirs in names.items()]


def _plain(spec: ModelSpec, base: Names, naming: Naming) -> list[Rule | Ignore]:
    """Returns the rules of tensors that contain one weight (per expert) unchanged; common names stay valid too."""
    names = {**base, **naming.renames}
    common = {ours: base[ours] for ours in base.keys() & naming.renames if base[ours] not in names.values()}
    head: list[Rule | Ignore] = [Ignore(names["head"])] if spec.tied else []
    return [*head, *(rule for table in (names, common) for rule in _renames(table))]


def _renames(names: Names) -> list[Rule]:
    biases = {f"{ours}_bias": _bias(theirs) for ours, theirs in names.items()}
    return [Rule(theirs, (ours,)) for ours, theirs in {**biases, **names}.items()]


def latent_rules(spec: ModelSpec, theirs: str) -> list[Rule]:
    """Returns the rule of a tensor that contains ``k_b`` and ``v_b``, in this order for each head."""
    attn = next((layer.mixer for layer in spec.layers if isinstance(layer.mixer, LatentAttention)), None)
    return [] if attn is None else [Rule(theirs, ("layers.{}.attn.k_b", "layers.{}.attn.v_b"), blocks=attn.num_heads)]


def _in_module(rules: Rules, index: int, module: MtpModule) -> list[Rule]:
    """Returns the rules of layer ``index`` for a checkpoint in which this layer is ``module``."""
    layer = "model.layers.{}."
    parts = {f"{layer}{theirs}.": f"{name}." for theirs, name in module.parts.items()} | {layer: module.layer}
    found = []
    for rule in rules:
        prefix = next((prefix for prefix in parts if rule.theirs.startswith(prefix)), None)
        if prefix and isinstance(rule, Rule):
            theirs = rule.theirs.replace(prefix, parts[prefix], 1)
            ours = tuple(name.replace("{}", str(index), 1) for name in rule.ours)
            found.append(replace(rule, theirs=theirs, ours=ours))
    return found


def _embed_and_state(spec: ModelSpec, theirs: str) -> Rule:
    """Returns the rule of eh_proj: each of its rows is a row of ``embed_proj``, then a row of ``state_proj``."""
    return Rule(theirs, ("layers.{}.mtp.embed_proj", "layers.{}.mtp.state_proj"), (Halve(),), blocks=spec.hidden_dim)


def _bias(theirs: str) -> str:
    return theirs.removesuffix(".weight") + ".bias"


def _wrapped(theirs: str, inside: str, outside: str) -> str:
    return inside + theirs.removeprefix("model.") if theirs.startswith("model.") else outside + theirs
