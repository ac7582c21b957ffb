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
"""The least is all bytes and the special tokens of chats (train.data.chat_tokenizer); at most two bytes hold a token on
disk."""


@dataclass(frozen=True)
class Shape:
    """A decoder like DeepSeek-V3: latent attention, a dense first layer, then mixtures with shared experts.

    ``num_experts`` 0 makes all layers dense; ``mtp`` adds a layer that predicts the token after the next. ``nope_dim``
    + ``rope_dim`` = ``value_dim``, since torch's fast attention needs keys and values of equal width.
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
        """Returns the model's config.json."""
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
            "n_routed_experts": self.num_experts if sparse else 2,  # no layer has any
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

    ``lr`` rises during the share ``warmup`` of the steps, stays, and falls during the last share ``decay`` to
    ``lr_end`` times itself. A micro-batch has ``micro_tokens``, an update ``step_tokens``. ``balance_rate`` is the step
    of the router's choice bias; ``balance_loss`` is the weight of the sequence-wise balance loss, ``mtp_loss`` that of
    multi-token prediction (DeepSeek-V3, sections 2.1.2 and 2.2).
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
    """Settings of GRPO: one update uses ``num_samples`` answers to each of ``num_prompts`` tasks.

    A task of which all answers or none are correct teaches nothing; others replace it in up to ``refills`` further
    rounds.

    The ratio of new to old probabilities is clipped at 1 - ``clip_low`` and 1 + ``clip_high``. ``reward`` is
    ``correct``, or ``random`` for a control run that should learn nothing. Gradients are mostly noise here, but Muon's
    updates have a fixed size: a ``momentum`` of 0.95 would move the weights far in one direction, and ``beta`` times
    the divergence from the policy before training, in nats per token, keeps such updates from adding up.
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
    Its ``model`` (empty: its only one) answers each of ``num_tasks`` tasks, or all prompts, ``num_samples`` times;
    ``instruction`` is the system message. ``key`` names the environment variable that holds the API key, if the server
    needs one. Correct answers become the data of ``steps`` of fine-tuning with the settings of ``sft``, except those
    that are set here.

    ``kind`` ``on_policy``: the teacher is a folder or GGUF file with the run's own vocabulary. In each of ``steps`` the
    student answers ``num_prompts`` prompts ``num_samples`` times and learns the teacher's distribution at every token.
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
    """The data of a run: ``text`` names files or folders of JSONL, Parquet or plain text; synthetic data replaces what
    they lack.

    Without documents, pretraining reads ``num_stories`` stories and ``num_solutions`` solved tasks; without chats,
    fine-tuning reads ``num_chats`` chats about stories and ``num_tasks`` tasks. Both also read ``num_conversations`` of
    several turns. So a run on documents alone still learns to chat, and what reinforcement builds on. ``held_out`` is
    the share of both kinds for evaluation.
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
    """All settings of a run.

    ``precision`` is that of products' factors: ``float32``, ``bfloat16``, or ``auto``, which is resolved when a run
    begins.
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
"""The preset for fine-tuning existing models (train.finetune.config); all other presets are a :class:`Run`."""


def preset(name: str, settings: Sequence[str] = ()) -> Run:
    """Returns the preset ``name`` with dotted ``settings``.

    Raises UserError for a name that is unknown, a value of a wrong type, or one that is missing.
    """
    presets = sorted(path.name.removesuffix(".toml") for path in PRESETS.iterdir() if path.name.endswith(".toml"))
    presets.remove(TUNE)
    if name not in presets:
        raise UserError(f"There is no preset {name!r}", f"Choose one of {', '.join(presets)}")
    return typing.cast(Run, build(Run, preset_values(name, settings), ""))


def changed(run: Run, settings: Sequence[str]) -> Run:
    """Returns ``run`` with dotted ``settings``. Raises UserError as :func:`preset` does."""
    values = asdict(run)
    for setting in settings:
        apply(values, setting)
    return typing.cast(Run, build(Run, values, ""))


def write_run(run: Any, path: Path) -> None:
    """Writes the settings of a run as JSON."""
    path.write_text(json.dumps(asdict(run), indent=2) + "\n", "utf-8")


def read_run(path: Path) -> Run:
    """Reads a file that :func:`write_run` has written."""
    return typing.cast(Run, build(Run, json.loads(path.read_text("utf-8")), ""))


def preset_values(name: str, settings: Sequence[str]) -> Json:
    """Returns the values in the file of the preset ``name``, changed by dotted ``settings``."""
    values = tomllib.loads((PRESETS / f"{name}.toml").read_text("utf-8"))
    for setting in settings:
        apply(values, setting)
    return values
