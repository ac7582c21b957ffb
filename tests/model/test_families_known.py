"""The models that freedive supports, by name; others are refused with the reason or with similar names."""

from __future__ import annotations

from typing import Any

import gguf
import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_families_deepseek import GLM_FLASH, K2, K25, MOONLIGHT, V2, V2_LITE, V3
from test_families_mixtures import MIXTRAL_8X7B, OLMOE_7B, QWEN3_30B, QWEN15_MOE
from tiny_configs import TINY
from tiny_models import maker_class
from transformers.models.auto import modeling_auto

from freedive.checkpoint.tensor import Checkpoint
from freedive.errors import UserError
from freedive.families import FAMILIES, describe, describe_config
from freedive.families.refused import REFUSED


def refusal(config: dict[str, Any], kind: str = "safetensors") -> str:
    with pytest.raises(UserError) as caught:
        describe(Checkpoint(kind, config, {}))
    return str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_a_known_model_that_cannot_run_is_refused_with_the_reason(name: str) -> None:
    said = f"freedive does not run {name} yet: it needs {REFUSED[name]}"
    assert said in refusal({"model_type": name, "hidden_size": 64})
    assert said in refusal({"architectures": [name], "model_type": "llama"})
    assert said in refusal({"architectures": ["New"], "model_type": "new", "text_config": {"model_type": name}})
    assert said in refusal({"general.architecture": name}, kind="gguf")


def test_no_name_is_both_run_and_refused_and_none_is_taken_twice() -> None:
    names = [name for family in FAMILIES for name in (family.name, *family.architectures)]
    in_gguf = [(family.gguf.architecture, family.gguf.mark) for family in FAMILIES if family.gguf.architecture]
    assert len(names) == len(set(names))
    assert len(in_gguf) == len(set(in_gguf))
    assert not REFUSED.keys() & {*names, *(architecture for architecture, _ in in_gguf)}


@pytest.mark.matrix
def test_refused_classes_exist_in_transformers_where_it_has_their_type() -> None:
    types = set(transformers.CONFIG_MAPPING)
    classes = {name for name in REFUSED if name.endswith(("ForCausalLM", "ForConditionalGeneration"))}
    beyond = {name for name in classes if not hasattr(transformers, name)}
    assert beyond == {"KimiK3ForConditionalGeneration", "OpenPanguV2ForCausalLM", "PanguProMoEV2ForCausalLM"}
    assert {"deepseek_v32", "deepseek_v4", "gemma3n", "hy_v4"} <= types & REFUSED.keys()


WRITE_TEXT: dict[str, str | tuple[str, ...]] = {
    **modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    **modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
}
"""The classes of transformers that write text, by type. Its other models see, hear or compare."""

NAMED = {name for family in FAMILIES for name in (family.name, *family.architectures)} | REFUSED.keys()


@pytest.mark.parametrize("kind", sorted(WRITE_TEXT))
def test_every_model_of_transformers_that_writes_text_is_known_or_refused_by_name(kind: str) -> None:
    """The type of a multimodal model may be unknown, if that of its text part is known."""
    config = transformers.CONFIG_MAPPING[kind]
    text = kind if kind in NAMED else config().get_text_config().model_type
    assert text in NAMED
    classes = WRITE_TEXT[kind] if kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and text == kind else ()
    assert NAMED.issuperset((classes,) if isinstance(classes, str) else classes)


def test_every_architecture_of_llama_cpp_is_known_or_refused_by_name() -> None:
    read = {family.gguf.architecture for family in FAMILIES}
    assert read | REFUSED.keys() >= set(gguf.MODEL_ARCH_NAMES.values())
    assert len(gguf.MODEL_ARCH_NAMES) > 100


@pytest.mark.parametrize("name", TINY)
def test_both_the_class_and_the_type_of_a_configuration_are_known(name: str) -> None:
    kind = maker_class(name)
    known = {name: family for family in FAMILIES for name in (family.name, *family.architectures)}
    assert known[kind.__name__] is known[kind.config_class.model_type]


@pytest.mark.parametrize(
    ("declared", "nearest"),
    [
        ("Qwen9MoeForCausalLM", "Qwen3MoeForCausalLM"),
        ("DeepseekV9ForCausalLM", "DeepseekV3ForCausalLM"),
        ("mixtrall", "mixtral"),
    ],
)
def test_an_unknown_architecture_names_the_nearest_known_ones(declared: str, nearest: str) -> None:
    said = refusal({"architectures": [declared]})
    assert f"does not know the architecture '{declared}'" in said
    assert nearest in said.partition("names are ")[2]


def test_the_class_goes_before_the_type() -> None:
    assert describe_config({**V3, "model_type": "kimi_k2"}).family == "deepseek_v3"
    assert describe_config({**QWEN3_30B, "model_type": "mixtral"}).family == "qwen3_moe"
    assert describe_config({**QWEN3_30B, "architectures": None}).family == "qwen3_moe"
    assert describe_config({**QWEN3_30B, "architectures": ["Qwen3MoeForSomething"]}).family == "qwen3_moe"


def test_a_configuration_alone_is_described_as_with_its_tensors() -> None:
    for config in (V3, K25, QWEN3_30B):
        assert describe_config(config) == describe(Checkpoint("safetensors", config, {}))[0]


# --- random configurations ----------------------------------------------------------------------------------------

CONFIGS = (V2, V2_LITE, V3, MOONLIGHT, K2, K25, GLM_FLASH, QWEN15_MOE, QWEN3_30B, MIXTRAL_8X7B, OLMOE_7B)
ANY_NUMBER = st.integers() | st.floats() | st.sampled_from([0, 1, 2, 3, 2**31, 2**64])
ANY_JSON = st.recursive(
    st.none() | st.booleans() | ANY_NUMBER | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


@settings(max_examples=600, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(CONFIGS), st.data())
def test_any_change_of_a_published_configuration_is_described_or_refused(
    config: dict[str, Any], data: st.DataObject
) -> None:
    keys = data.draw(st.lists(st.sampled_from(sorted(config)), min_size=1, max_size=3))
    changes = {key: data.draw(ANY_JSON) for key in keys}
    said = ""
    try:
        assert describe_config({**config, **changes}).layers
    except UserError as error:
        said = str(error)
    assert not said or said.isprintable()


def test_a_switch_that_one_family_has_is_unknown_to_the_others() -> None:
    """Some switches change nothing that a tensor would show."""
    for switch in ("moe_router_use_sigmoid", "norm_type", "qk_norm", "group_limited_greedy", "is_llama_config"):
        with pytest.raises(UserError, match=f"{switch} = .*unknown to freedive for qwen3_moe"):
            describe_config({**QWEN3_30B, switch: True})
