"""The settings of a training run: a preset in TOML, changed by dotted settings such as ``pretrain.steps=500``."""

from __future__ import annotations

import json
import tomllib
import typing
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from freedive.errors import UserError
from freedive.json_object import Json
from freedive.train.run.settings import apply, build

LEAST_VOCABULARY, MOST_VOCABULARY = 256 + 7, 1 << 16
"""The bytes and the marks of chats (train.data.chat_tokenizer) are always there; a token takes two bytes on disk."""


@dataclass(frozen=True)
class Shape:
    """A decoder of DeepSeek-V3's kind: latent attention, a dense first layer, then mixtures with shared experts.

    ``num_experts`` 0 makes all layers dense; ``mtp`` adds one that predicts the token after the next. Heads have
    ``nope_dim`` + ``rope_dim`` = ``value_dim`` dimensions, since torch's fast attention wants keys and values of one
    width.
    """

    vocab_size: int
    hidden_dim: int
    num_layers: int
    num_heads: int
    q_rank: int
    kv_rank: int
    dense_dim: int
    max_context: int
    num_experts: int = 0
    num_chosen: int = 0
    num_shared: int = 1
    expert_dim: int = 0
    nope_dim: int = 32
    rope_dim: int = 32
    mtp: bool = False

    def __post_init__(self) -> None:
        if not LEAST_VOCABULARY <= self.vocab_size <= MOST_VOCABULARY:
            raise UserError(
                f"model.vocab_size is {self.vocab_size}", f"Choose from {LEAST_VOCABULARY} to {MOST_VOCABULARY} tokens"
            )

    @property
    def value_dim(self) -> int:
        return self.nope_dim + self.rope_dim

    def hub_config(self, eos_id: int, bos_id: int) -> Json:
        """The model's config.json."""
        sparse = self.num_experts > 0
        return {
            "architectures": ["DeepseekV3ForCausalLM"],
            "model_type": "deepseek_v3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_dim,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_heads,
            "q_lora_rank": self.q_rank,
            "kv_lora_rank": self.kv_rank,
            "qk_nope_head_dim": self.nope_dim,
            "qk_rope_head_dim": self.rope_dim,
            "v_head_dim": self.value_dim,
            "intermediate_size": self.dense_dim,
            "first_k_dense_replace": 1 if sparse else self.num_layers,
            "moe_layer_freq": 1,
            "n_routed_experts": self.num_experts if sparse else 2,  # which no layer has
            "num_experts_per_tok": self.num_chosen if sparse else 1,
            "n_shared_experts": self.num_shared,
            "moe_intermediate_size": self.expert_dim if sparse else self.dense_dim,
            "n_group": 1,
            "topk_group": 1,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.0,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "max_position_embeddings": self.max_context,
            "tie_word_embeddings": False,
            "attention_bias": False,
            "num_nextn_predict_layers": int(self.mtp),
            "bos_token_id": bos_id,
            "eos_token_id": eos_id,
        }


@dataclass(frozen=True)
class Stage:
    """How weights are trained on one kind of data.

    ``lr`` grows over the first ``warmup`` of the steps, stays, and falls over the last ``decay`` to ``lr_end`` of
    itself. ``micro_tokens`` go through the model at once, ``step_tokens`` into an update. ``balance_rate`` moves the
    router's bias, ``balance_loss`` weighs the sequence-wise loss, ``mtp_loss`` that of multi-token prediction
    (DeepSeek-V3, sections 2.1.2 and 2.2).
    """

    steps: int
    step_tokens: int
    micro_tokens: int
    lr: float
    warmup: float = 0.02
    decay: float = 0.3
    lr_end: float = 0.05
    weight_decay: float = 0.1
    clip: float = 1.0
    balance_rate: float = 1e-3
    balance_loss: float = 1e-4
    mtp_loss: float = 0.3
    save_every: int = 100
    seed: int = 0


@dataclass(frozen=True)
class Reinforcement:
    """GRPO: ``num_samples`` answers to each of ``num_prompts`` tasks are one update.

    Tasks of whose answers all or none are right teach nothing; up to ``refills`` times others take their place.

    The ratio of new to old probabilities is cut at 1 - ``clip_low`` and 1 + ``clip_high``. ``reward``: ``correct``, or
    ``random``, which is to change nothing. Gradients are mostly noise here, which makes Muon's steps as long as any:
    with a ``momentum`` of 0.95 they would go far in one direction, and ``beta`` times their divergence from the policy
    before training, in nats a token, keeps them from adding up.
    """

    steps: int
    lr: float
    num_prompts: int = 16
    num_samples: int = 16
    micro_tokens: int = 8192
    beta: float = 0.0
    clip_low: float = 0.2
    clip_high: float = 0.28
    clip: float = 1.0
    momentum: float = 0.5
    max_divergence: float = 1e-3
    refills: int = 1
    reward: str = "correct"
    eval_every: int = 20
    num_eval: int = 200
    save_every: int = 20
    seed: int = 0


TRACES, ON_POLICY = "traces", "on_policy"


@dataclass(frozen=True)
class Distillation:
    """Learning from a ``teacher``, on the run's own tasks or on ``prompts``: files of {"prompt", "answer", "task"}.

    ``kind`` ``traces``: the teacher is the address of an OpenAI-compatible server, such as http://localhost:8000/v1.
    Its ``model`` (empty: the only one there) answers each of ``num_tasks`` tasks or all prompts ``num_samples`` times,
    told what ``instruction`` says; ``key`` names the environment variable with the key, if it wants one. Answers that
    are right become the data of ``steps`` of fine-tuning, which go as ``sft`` sets but for what is set here.

    ``kind`` ``on_policy``: the teacher is a folder or GGUF with the run's own vocabulary. In each of ``steps`` the
    model itself answers ``num_prompts`` of the prompts ``num_samples`` times, and is drawn to what the teacher would
    have said at every token.
    """

    steps: int = 100
    lr: float = 1e-4
    kind: str = TRACES
    teacher: str = ""
    model: str = ""
    key: str = "FREEDIVE_TEACHER_KEY"
    prompts: tuple[str, ...] = ()
    num_tasks: int = 1000
    num_prompts: int = 16
    num_samples: int = 4
    instruction: str = "Think between <think> and </think>. Then write the answer alone, without any other word."
    temperature: float = 1.0
    max_tokens: int = 1024
    num_parallel: int = 8
    micro_tokens: int = 8192
    clip: float = 1.0
    momentum: float = 0.95
    save_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (TRACES, ON_POLICY):
            raise UserError(f"distill.kind is {self.kind!r}", f"Choose {TRACES} or {ON_POLICY}")


@dataclass(frozen=True)
class Data:
    """``text``: files or folders of JSONL, Parquet or plain text. What they hold none of is made up on the spot:

    Instead of documents, ``num_stories`` and ``num_solutions`` of tasks to read; instead of chats, ``num_chats`` and
    ``num_tasks`` in which an assistant tells and solves; and with either, ``num_conversations`` of several turns. So a
    run on nothing but documents still learns to chat, and what reinforcement builds on. ``held_out`` of either are for
    evaluation.
    """

    text: tuple[str, ...] = ()
    num_stories: int = 12_000
    num_solutions: int = 30_000
    num_chats: int = 4_000
    num_tasks: int = 16_000
    num_conversations: int = 16_000
    held_out: float = 0.01
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """Everything that a run depends on.

    ``precision`` is that of products' factors: ``float32``, ``bfloat16``, or ``auto``, which a run's folder settles.
    """

    model: Shape
    pretrain: Stage
    sft: Stage
    rl: Reinforcement
    distill: Distillation = field(default_factory=Distillation)
    data: Data = field(default_factory=Data)
    precision: str = "auto"


PRESETS = files("freedive.train") / "presets"
TUNE = "tune"
"""The preset for models of others (train.finetune.config); all others are of :class:`Run`."""


def preset(name: str, settings: Sequence[str] = ()) -> Run:
    """The preset ``name`` with dotted ``settings``. UserError names what is unknown, of a wrong kind, or missing."""
    presets = sorted(path.name.removesuffix(".toml") for path in PRESETS.iterdir() if path.name.endswith(".toml"))
    presets.remove(TUNE)
    if name not in presets:
        raise UserError(f"There is no preset {name!r}", f"Choose of {', '.join(presets)}")
    return typing.cast(Run, build(Run, preset_values(name, settings), ""))


def changed(run: Run, settings: Sequence[str]) -> Run:
    """``run`` with dotted ``settings``. UserError as for :func:`preset`."""
    values = asdict(run)
    for setting in settings:
        apply(values, setting)
    return typing.cast(Run, build(Run, values, ""))


def write_run(run: Any, path: Path) -> None:
    """As JSON."""
    path.write_text(json.dumps(asdict(run), indent=2) + "\n", "utf-8")


def read_run(path: Path) -> Run:
    """What :func:`write_run` has written."""
    return typing.cast(Run, build(Run, json.loads(path.read_text("utf-8")), ""))


def preset_values(name: str, settings: Sequence[str]) -> Json:
    """What the file of the preset ``name`` says, changed by dotted ``settings``."""
    values = tomllib.loads((PRESETS / f"{name}.toml").read_text("utf-8"))
    for setting in settings:
        apply(values, setting)
    return values
