"""Makes docs/families.md from test results: ``python tests/families_table.py results.xml >docs/families.md``.

The tests write properties into the JUnit file: the family, the kind of comparison, the measured distance.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tiny_models import TINY, tiny

from freedive.families import FAMILIES
from freedive.families.family import Family
from freedive.model.spec import DeltaRule, Experts, FeedForward, LatentAttention, Layer, Mixer, ModelSpec, ShortConv

HEAD = """# Families

Made by `make families` from the results of the tests. Each row compares tiny random models with every trait of the
family, with transformers in float32 (Pangu Pro MoE with a reference of its own): whole prompts, uneven chunks, token by
token and ragged batches, at every instruction-set level of the machine. Figures are the largest distance of any logit;
a test fails beyond 1e-4, or beyond 5e-4 with the delta rule, which transformers computes by chunks of 64 tokens.
"works" means that all tests of a family ran and passed. GGUF files under llama.cpp's names give the logits of the
same model's safetensors. Packed: the models in bf16, int8 and int4 at every level, as the error against exact
arithmetic on the same weights.

| family | models | traits | reference | torch | native | GGUF | packed | |
|---|---|---|---|---|---|---|---|---|
"""

KINDS = ("reference", "torch", "native", "gguf", "packed")


@dataclass
class Result:
    """The results of one kind of tests of a family."""

    num_tests: int = 0
    failed: bool = False
    distance: float = 0.0

    def __str__(self) -> str:
        if not self.num_tests:
            return ""
        if self.failed:
            return "fails"
        return f"{self.distance:.0e}".replace("e-0", "e-") if self.distance else "equal"


def main(results: Path) -> None:
    seen = read(results)
    print(HEAD + "\n".join(row(family, seen) for family in FAMILIES))


def read(results: Path) -> Mapping[tuple[str, str], Result]:
    """Returns the results by (name of a tiny configuration, kind)."""
    seen: dict[tuple[str, str], Result] = defaultdict(Result)
    for case in ElementTree.parse(results).iter("testcase"):
        noted = {entry.get("name", ""): entry.get("value", "") for entry in case.iter("property")}
        if "family" in noted:
            result = seen[noted["family"], noted["kind"]]
            result.num_tests += 1
            result.failed |= case.find("failure") is not None or case.find("error") is not None
            result.distance = max(result.distance, float(noted.get("distance", 0)))
    return seen


def row(family: Family, seen: Mapping[tuple[str, str], Result]) -> str:
    """Returns one row of the table: the family, and its test results."""
    names = [name for name in TINY if tiny(name).spec.family == family.name]
    columns = {kind: total([seen.get((name, kind), Result()) for name in names]) for kind in KINDS}
    needed = [columns[kind] for kind in ("reference", "torch", "native")] + [columns["gguf"]] * bool(
        family.gguf.architecture
    )
    works = all(result.num_tests and not result.failed for result in needed)
    return f"| {about(family)} | {' | '.join(map(str, columns.values()))} | {'works' if works else ''} |"


def about(family: Family) -> str:
    """Returns the columns that follow from the description alone."""
    specs = [tiny(name).spec for name in TINY if tiny(name).spec.family == family.name]
    words = list(dict.fromkeys(trait for spec in specs for trait in traits(spec)))
    name = f"{family.name}, GGUF {family.gguf.architecture}" if family.gguf.architecture else family.name
    return f"{name} | {family.models} | {', '.join(words)}"


def total(results: list[Result]) -> Result:
    return Result(
        sum(result.num_tests for result in results),
        any(result.failed for result in results),
        max((result.distance for result in results), default=0.0),
    )


def traits(spec: ModelSpec) -> Iterator[str]:
    for layer in spec.layers:
        yield from mixer_traits(layer.mixer)
        yield from feeder_traits(layer.ffn)
        yield from (name for name, has in layer_traits(layer).items() if has)
    scales = (spec.embed_scale, spec.residual_scale, spec.logit_scale)
    yield from (["normed embeddings"] if spec.embed_norm else [])
    yield from (["multipliers"] if scales != (1, 1, 1) else [])
    yield from (["capped logits"] if spec.logit_softcap else [])
    yield from (["inputs of layers"] if spec.token_input else [])


def layer_traits(layer: Layer) -> Mapping[str, object]:
    return {
        "norms after branches": layer.post_norms and layer.pre_norms,
        "norms only after branches": layer.post_norms and not layer.pre_norms,
        "scaled layers": layer.out_scale,
    }


def mixer_traits(attn: Mixer) -> Iterator[str]:
    if isinstance(attn, ShortConv):
        yield "short convolutions"
        return
    if isinstance(attn, DeltaRule):
        yield f"delta rule with decay by {attn.decay}"
        return
    if isinstance(attn, LatentAttention):
        yield "MLA" if attn.q_rank else "MLA without query latents"
        yield from ["no rope in MLA"] * (attn.rope is None) + ["output gate of heads"] * attn.output_gate
        yield from ["temperature"] * (attn.temperature is not None)
        return
    yield "GQA"
    order = " after rope" if attn.norm_after_rope else ""
    kinds = {"": "", "head": "norms of q and k heads", "full": "norms of q and k", "l2": "weightless norms of q and k"}
    found = {
        "no rope in some layers": attn.rope is None,
        "partial rope": attn.rope and (attn.rope.dim < attn.head_dim or 0 in attn.rope.inv_freq),
        "interleaved rope": attn.rope and attn.rope.interleaved,
        "windows": attn.window,
        "chunks": attn.chunk,
        "biases": attn.qkv_bias or attn.out_bias,
        kinds[attn.qk_norm] + order: attn.qk_norm,
        "clipped q, k, v": attn.clip,
        "capped scores": attn.softcap,
        "sinks": attn.sinks,
        "narrower values": attn.v_head_dim < attn.head_dim,
        "output gate": attn.output_gate and not attn.gate_by_head,
        "output gate of heads": attn.output_gate and attn.gate_by_head,
        "values from keys": attn.values == "keys",
        "norms of value heads": attn.v_norm,
        "keys and values of other layers": attn.kv_layer >= 0,
        "temperature": attn.temperature,
    }
    yield from (name for name, has in found.items() if has)


def feeder_traits(ffn: FeedForward | Experts) -> Iterator[str]:
    if isinstance(ffn, FeedForward):
        return
    router = ffn.router
    found = {
        f"experts by {router.score}": True,
        "renormalised": router.renormalise,
        "bias for choice": router.choice_bias,
        "groups": router.kept_groups < router.num_groups and router.group_choice != "each",
        "equally many of each group": router.group_choice == "each",
        "weighted inputs": router.weighs_input,
        "biases of experts": ffn.expert.bias,
        "clamped gate and up": ffn.expert.limit,
        "shared experts": ffn.shared and not ffn.shared_gate,
        "gated shared expert": ffn.shared_gate,
        "norms of branches": ffn.branch_norms,
    }
    yield from (name for name, has in found.items() if has)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
