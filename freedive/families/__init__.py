"""Model families: convert a checkpoint's configuration to a description and naming rules."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from freedive.checkpoint.rules import Rules
from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.families.ant import BAILING_HYBRID, BAILING_MOE_V2, SARVAM_MOE
from freedive.families.arcee import AFMOE
from freedive.families.baidu import ERNIE_4_5, ERNIE_4_5_MOE
from freedive.families.bytedance import SEED_OSS
from freedive.families.config import Config
from freedive.families.deepseek import DEEPSEEK_V2, DEEPSEEK_V3, GLM4_MOE_LITE
from freedive.families.family import Family
from freedive.families.gemma4 import GEMMA4, GEMMA4_UNIFIED
from freedive.families.gguf import marks, read_config
from freedive.families.google import GEMMA, GEMMA2, GEMMA3
from freedive.families.huawei import PANGU_EMBEDDED, PANGU_PRO_MOE
from freedive.families.huggingface import SMOLLM3
from freedive.families.ibm import GRANITE, GRANITE_HYBRID, GRANITE_MOE, GRANITE_MOE_SWA, GRANITE_SWA
from freedive.families.jetbrains import MELLUM
from freedive.families.lg import EXAONE4, EXAONE_MOE
from freedive.families.liquid import LFM2, LFM2_MOE
from freedive.families.llama import LLAMA, MISTRAL, MIXTRAL
from freedive.families.llama4 import LLAMA4
from freedive.families.microsoft import PHI3
from freedive.families.minimax import MINIMAX_M2
from freedive.families.mistral import MINISTRAL3, MISTRAL4
from freedive.families.moonshot import KIMI_LINEAR
from freedive.families.muse import MUSE_GLIMMER
from freedive.families.names import GGUF_EH_PROJ, gguf_rules, hub_rules, text_rules
from freedive.families.olmo import FLEX_OLMO, OLMO2, OLMO3, OLMOE
from freedive.families.openai import GPT_OSS
from freedive.families.parts import FULL
from freedive.families.poolside import LAGUNA
from freedive.families.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from freedive.families.qwen_next import QWEN3_5, QWEN3_5_MOE, QWEN3_NEXT
from freedive.families.rednote import DOTS1
from freedive.families.refused import REFUSED, refusal
from freedive.families.stepfun import STEP3P7
from freedive.families.tencent import HUNYUAN, HUNYUAN_MOE, HY_V3, YOUTU
from freedive.families.upstage import SOLAR_OPEN
from freedive.families.xiaomi import MIMO_V2_FLASH
from freedive.families.zhipu import GLM4, GLM4_MOE
from freedive.files import quote
from freedive.model.description import check
from freedive.model.spec import Attention, ModelSpec

FAMILIES = (
    LLAMA,
    MISTRAL,
    MIXTRAL,
    MINISTRAL3,
    MISTRAL4,
    QWEN2,
    QWEN2_MOE,
    QWEN3,
    QWEN3_MOE,
    QWEN3_NEXT,
    QWEN3_5,
    QWEN3_5_MOE,
    OLMOE,
    OLMO2,
    OLMO3,
    FLEX_OLMO,
    DEEPSEEK_V2,
    DEEPSEEK_V3,
    GLM4_MOE_LITE,
    KIMI_LINEAR,
    BAILING_MOE_V2,
    BAILING_HYBRID,
    MINIMAX_M2,
    EXAONE4,
    EXAONE_MOE,
    PHI3,
    DOTS1,
    SOLAR_OPEN,
    MELLUM,
    AFMOE,
    LAGUNA,
    MIMO_V2_FLASH,
    STEP3P7,
    SARVAM_MOE,
    GPT_OSS,
    SEED_OSS,
    ERNIE_4_5,
    ERNIE_4_5_MOE,
    HUNYUAN,
    HUNYUAN_MOE,
    HY_V3,
    YOUTU,
    PANGU_EMBEDDED,
    PANGU_PRO_MOE,
    GLM4,
    GLM4_MOE,
    GRANITE,
    GRANITE_MOE,
    GRANITE_HYBRID,
    GRANITE_SWA,
    GRANITE_MOE_SWA,
    SMOLLM3,
    GEMMA,
    GEMMA2,
    GEMMA3,
    GEMMA4,
    GEMMA4_UNIFIED,
    LLAMA4,
    MUSE_GLIMMER,
    LFM2,
    LFM2_MOE,
)

_GGUF_ONLY = ("rope_divisors", "tiled_value_heads")
"""Keys that stand for what only a GGUF file says."""

logger = logging.getLogger(__name__)


def describe(checkpoint: Checkpoint) -> tuple[ModelSpec, Rules]:
    """Returns the specification of the decoder in ``checkpoint`` and the rules that make its tensors canonical.

    Raises UserError for an unknown architecture, an unknown key, or impossible values.
    """
    if checkpoint.kind == "gguf":
        family, config = _read_gguf(checkpoint)
        spec = _with_mtp(family, config, checkpoint, GGUF_EH_PROJ)
        return spec, gguf_rules(spec, family.gguf, _num_mtp_layers(config))
    family, config = _read(checkpoint.config)
    spec = _with_mtp(family, config, checkpoint, family.hub.mtp_mark)
    rules = hub_rules(spec, family.hub, _num_mtp_layers(config))
    if not _is_wrapped(checkpoint.config):
        return spec, rules
    logger.warning("The model takes more than text; freedive runs its text part")
    return spec, text_rules(rules, checkpoint.tensors)


def describe_config(values: Mapping[str, Any]) -> ModelSpec:
    """Returns the specification of the decoder whose parsed config.json is ``values``.

    Raises the same errors as :func:`describe`.
    """
    return _spec(*_read(values))


def as_hub(checkpoint: Checkpoint, model: ModelSpec) -> tuple[dict[str, Any], Rules]:
    """Returns the config.json and the naming rules of a Hugging Face folder with the decoder of ``checkpoint``.

    The folder has only the text part and no MTP layers, and ``model`` must not have MTP layers either. For a GGUF file,
    the keys are those that freedive reads, which for some families differ from those of transformers. Raises UserError
    if no config.json can describe the decoder.
    """
    if checkpoint.kind == "gguf":
        family, config = _read_gguf(checkpoint)
        family.spec(config)
        family.spec(config := Config(config.used()))  # drops keys that only the conversion from GGUF metadata read
        values: Mapping[str, Any] = {key: value for key, value in config.used().items() if key not in _GGUF_ONLY}
        absent = dict.fromkeys(family.defaults)  # a GGUF file has no defaults for missing keys
    else:
        (family, values), absent = _chosen(checkpoint.config), {}
    names: dict[str, Any] = {"architectures": [_class_name(family, values)], "model_type": _type_name(family, values)}
    if "num_nextn_predict_layers" in values:
        names["num_nextn_predict_layers"] = 0
    for candidate in ({**values, **names}, {**absent, **values, **names}):
        if describe_config(candidate) == model:
            return candidate, hub_rules(model, family.hub)
    raise UserError(f"No config.json can describe this {family.name} file", "Name the model that it was made from")


def _class_name(family: Family, values: Mapping[str, Any]) -> str:
    """Returns the class name of the text decoder in transformers: the one in config.json, else that of the family."""
    declared = (name for name in _declared(values) if isinstance(name, str))
    return next(name for name in (*declared, *family.architectures) if name.endswith("ForCausalLM"))


def _type_name(family: Family, values: Mapping[str, Any]) -> str:
    """Returns the model_type of the text decoder in transformers, which may differ from that of the whole model."""
    texts = (name for name in family.architectures if name.endswith("_text"))
    return str(values.get("model_type") or next(texts, family.name))


def _spec(family: Family, config: Config) -> ModelSpec:
    spec = family.spec(config)
    config.refuse_unread(family.name, family.ignorable, {**_unused_windows(spec), **family.fixed})
    check(spec)
    return spec


def _unused_windows(spec: ModelSpec) -> dict[str, Any]:
    """Returns the keys about windows, with their only allowed values, that any family may have if no layer has one."""
    if any(isinstance(layer.mixer, Attention) and layer.mixer.window for layer in spec.layers):
        return {}
    return {"layer_types": [FULL] * len(spec.layers), "use_sliding_window": False}


def _with_mtp(family: Family, config: Config, checkpoint: Checkpoint, mark: str) -> ModelSpec:
    """Returns the specification, with an MTP layer if the checkpoint has the tensor ``mark`` of one."""
    spec = _spec(family, config)
    announced = bool(family.hub.mtp_module) or _num_mtp_layers(config) > 0
    if not (family.runs_mtp and announced and mark.format(len(spec.layers)) in checkpoint.tensors):
        return spec
    return replace(spec, mtp=family.mtp_layer(config, spec))


def _num_mtp_layers(config: Config) -> int:
    return config.count("num_nextn_predict_layers", 0, least=0, most=64)


def _read_gguf(checkpoint: Checkpoint) -> tuple[Family, Config]:
    """Returns the family of a GGUF file, and its configuration from metadata and tensors."""
    present, written = {"", *marks(checkpoint)}, (family for family in FAMILIES if family.gguf.architecture)
    known = {family.gguf.architecture: family for family in written if family.gguf.mark in present}
    family = _pick(known, [checkpoint.config.get("general.architecture")])
    return family, read_config(checkpoint, family.gguf)


def _read(values: Mapping[str, Any]) -> tuple[Family, Config]:
    """Returns the family of a config.json, and the configuration of its text part."""
    family, values = _chosen(values)
    return family, Config(values, family.defaults)


def _chosen(values: Mapping[str, Any]) -> tuple[Family, Mapping[str, Any]]:
    """Returns the family of a config.json, and the values of its text part."""
    known = {name: family for family in FAMILIES for name in (*family.architectures, family.name)}
    if not _is_wrapped(values):
        return _pick(known, _declared(values)), values
    text = values["text_config"]
    whole = {
        key: values[key] for key in ("tie_word_embeddings",) if key in values
    }  # this key is outside of text_config
    family = _pick(known, _declared(values)[:-1] + _declared(text) + _declared(values)[-1:])
    return family, {**text, **whole}


def _is_wrapped(values: Mapping[str, Any]) -> bool:
    """Returns whether the language model is the text part of a multimodal model."""
    return isinstance(values.get("text_config"), dict)


def _declared(values: Mapping[str, Any]) -> list[object]:
    """Returns the names of the architecture in config.json: the class first, model_type last."""
    architectures = values.get("architectures")
    first = architectures[:1] if isinstance(architectures, list) else []
    return [*first, values.get("model_type")]


def _pick(known: Mapping[str, Family], declared: Iterable[object]) -> Family:
    names = [name for name in declared if isinstance(name, str)]
    for name in names:
        if name in known:
            return known[name]
        if name in REFUSED:
            raise refusal(name, REFUSED[name])
    if not names:
        raise UserError("The model does not say which architecture it has", "Fetch it again, or choose another model")
    near = difflib.get_close_matches(names[0], known, n=3, cutoff=0.5) or sorted(known)
    raise UserError(
        f"freedive does not know the architecture {quote(names[0])}", f"The nearest known names are {', '.join(near)}"
    )
