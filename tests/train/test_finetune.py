"""Fine-tuning of existing models: computed as in transformers, with an adapter that PEFT applies in the same way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from others import (
    FAMILIES,
    SETTINGS,
    batch,
    our_loss,
    their_loss,
    theirs,
)
from safetensors.torch import load_file
from typer.testing import CliRunner

import freedive
from freedive.cli import app
from freedive.errors import UserError
from freedive.model.batch import Batch
from freedive.model.params import params
from freedive.ops.torch import TorchRunner
from freedive.text.template import ChatTemplate
from freedive.text.tokenizer import Tokenizer
from freedive.train.data.shards import Shards, Stream, write_shards
from freedive.train.finetune import config as finetune_config
from freedive.train.finetune import run as finetune
from freedive.train.finetune.base_model import open_base_model
from freedive.train.finetune.lora import Tuned, adapters
from freedive.train.finetune.targets import TARGETS, counts, target_params
from freedive.train.finetune.trainer import FinetuneTrainer
from freedive.train.model.net import Weights, stacked_params, unstacked
from freedive.train.run.folder import RunFolder


@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_transformers(name: str, folders: Any, tmp_path: Path) -> None:
    base, maker, given = open_base_model(str(folders(name))), theirs(folders(name), name), batch()
    weights = base.weights()
    for name_, weight in weights.items():
        weight.requires_grad_(not name_.endswith("choice_bias"))
    ours, expected = our_loss(base, weights, given), their_loss(maker, given)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-3)
    ours.backward()
    expected.backward()
    moved = maker_step(maker)
    maker.save_pretrained(tmp_path)  # so that gradients have the names of the folder, whatever the modules are called
    after = open_base_weights(tmp_path, folders(name))
    for each, weight in weights.items():
        if weight.grad is None:
            continue
        found = (weight.detach() - after[each]) / moved
        torch.testing.assert_close(found, weight.grad, rtol=2e-2, atol=2e-3 * float(weight.grad.abs().max() + 1e-3))


def maker_step(maker: Any) -> float:
    """Makes one step along their gradients; returns its length."""
    with torch.no_grad():
        for parameter in maker.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    return 1.0


def open_base_weights(folder: Path, text: Path) -> Weights:
    for path in text.iterdir():
        if not (folder / path.name).exists():
            shutil.copy(path, folder)
    return open_base_model(str(folder)).weights()


@pytest.mark.parametrize("name", FAMILIES)
def test_adapters_change_nothing_at_first_and_merge_to_what_they_compute(name: str, folders: Any) -> None:
    base, given = open_base_model(str(folders(name))), batch()
    weights, table = base.weights(), stacked_params(base.model)
    targets = [part for part in TARGETS if part != "norms" and not (part == "head" and base.model.tied)]
    present = {count.part for count in counts(base.model, {})}
    wanted = target_params(base.model, [part for part in targets if part in present], low_rank=True)
    trained = adapters(wanted, 4, seed=0)
    tuned = Tuned(table, weights, trained, 2.0)
    plain = our_loss(base, weights, given)
    assert torch.equal(our_loss(base, tuned, given), plain)
    for value in trained.values():
        value += 0.05 * torch.randn(value.shape, generator=torch.Generator().manual_seed(1))
        value.requires_grad_()
    changed = our_loss(base, tuned, given)
    changed.backward()
    assert all(value.grad is not None and value.grad.abs().max() > 0 for value in trained.values())
    torch.testing.assert_close(our_loss(base, tuned.merge(), given), changed, rtol=1e-3, atol=1e-2)
    assert not torch.equal(plain, changed)


def tuned(folder: Path, data: Path, root: Path, *settings: str) -> Path:
    finetune.perform("tune", str(folder), [f"data.text={data}", *SETTINGS, *settings], root)
    return root


def rows(root: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "tune.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss"])
@pytest.mark.parametrize("rank", [0, 4])
def test_it_learns_and_transformers_reads_the_model(
    name: str, rank: int, folders: Any, data: Path, tmp_path: Path
) -> None:
    lr = "3e-2" if rank else "3e-3"
    root = tuned(folders(name), data, tmp_path / "run", f"tune.rank={rank}", f"tune.lr={lr}", "tune.steps=12")
    found = [row["loss"] for row in rows(root)]
    assert np.mean(found[-3:]) < 0.8 * np.mean(found[:3])
    tokens = np.random.default_rng(0).integers(3, 300, 40)
    with torch.no_grad():
        expected = theirs(root / "model", name)(torch.from_numpy(tokens)[None]).logits[0].numpy()
        before = theirs(folders(name), name)(torch.from_numpy(tokens)[None]).logits[0].numpy()
    assert np.abs(expected - before).max() > 1
    given = Batch.whole([tokens], wants_all=True)
    np.testing.assert_allclose(logits_in_training(root, folders(name), given), expected, atol=2e-3)
    with freedive.load(str(root / "model"), precision="exact") as model:
        np.testing.assert_allclose(model.runner.step(given), expected, atol=5e-2)  # its cache has half floats
        assert model.template.render([{"role": "user", "content": "Hi"}]).endswith("<|assistant|>")


def logits_in_training(root: Path, folder: Path, given: Batch) -> np.ndarray:
    """Returns the logits of the weights in the last checkpoint."""
    context = finetune.FinetuneContext(finetune_config.read_run(root / "config.json"), RunFolder(root))
    trainer = context.trainer()
    with torch.no_grad():
        weights = dict(unstacked({name: value.detach() for name, value in trainer.tuned.merge().items()}))
    return TorchRunner(trainer.model, weights).step(given)


@pytest.mark.parametrize("rank", [0, 4])
def test_a_stopped_run_resumes_to_the_same_bits(
    rank: int, folders: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"tune.rank={rank}", "tune.lr=1e-3", "tune.merge=false")
    whole = tuned(folders("qwen3_moe"), data, tmp_path / "whole", *settings)
    advance = FinetuneTrainer.advance

    def fail(self: FinetuneTrainer) -> Any:
        if self.step == 3:  # one step is lost
            raise KeyboardInterrupt
        return advance(self)

    monkeypatch.setattr(FinetuneTrainer, "advance", fail)
    with pytest.raises(KeyboardInterrupt):
        tuned(folders("qwen3_moe"), data, tmp_path / "parted", *settings)
    monkeypatch.undo()
    finetune.perform("tune", str(folders("qwen3_moe")), [], tmp_path / "parted")
    assert [row["loss"] for row in rows(tmp_path / "parted")] == [row["loss"] for row in rows(whole)]
    ends = [
        load_file(root / "checkpoints/tune/step_000006/weights.safetensors") for root in (whole, tmp_path / "parted")
    ]
    assert all(torch.equal(value, ends[1][each]) for each, value in ends[0].items())
    assert not (whole / "model").exists()
    finetune.perform("merge", str(folders("qwen3_moe")), [], whole)
    assert (whole / "model" / "model.safetensors").exists()


def test_only_targets_are_trained(folders: Any, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("tune.rank=0", "tune.lr=1e-3", "tune.targets=router,norms")
    root = tuned(folders("deepseek_v3"), data, tmp_path / "run", *settings)
    before, after = (open_base_model(str(each)).weights() for each in (folders("deepseek_v3"), root / "model"))
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"router", "norm", "q_a_norm", "kv_a_norm"}
    told = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.endswith("%")}
    assert told["norms"][0] == told["norms"][1]
    assert told["attention"][1:] == ["0", "0.00%"]
    assert int(told["router"][0].replace(",", "")) == 2 * (16 * 64 + 16)
    assert int(told["router"][1].replace(",", "")) == 2 * 16 * 64  # all but the choice biases


@pytest.mark.parametrize("name", FAMILIES)
def test_counts_are_those_of_the_parameters(name: str, folders: Any) -> None:
    base = open_base_model(str(folders(name)))
    wanted = target_params(base.model, ["attention", "ffn", "experts"], low_rank=True)
    adapted = adapters(wanted, 4, 0)
    found = counts(base.model, adapted)
    assert sum(count.total for count in found) == sum(param.size for param in params(base.model).values())
    assert sum(count.trained for count in found) == sum(value.numel() for value in adapted.values())
    assert {count.part for count in found if count.trained} <= {"attention", "ffn", "experts"}


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        (("tune.targets=brain",), "names 'brain', which is no part"),
        (("tune.targets=norms",), "only tune.rank=0 trains them"),
        (("tune.targets=head",), "The output head is the embedding"),
        (("tune.targets=router",), "The model has no router"),
        (("tune.rank=-1",), "tune.rank is -1"),
        (("tune.rank=low",), "tune.rank is 'low'. Give it a whole number"),
        (("tune.merge=1",), "tune.merge is 1. Give it true or false"),
        (("tune.context=4096",), "tune.context is 4096. The model takes 2 to 1024 tokens"),
        (("model.vocab_size=3",), "and no setting"),
        (("data.text=nowhere",), "nowhere does not exist"),
    ],
)
def test_impossible_settings_are_refused(
    settings: tuple[str, ...], what: str, folders: Any, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=what):
        tuned(folders("llama"), data, tmp_path / "run", *settings)
    assert not (tmp_path / "run" / "config.json").exists()  # so that the next call may change them


def test_a_folder_keeps_its_settings_and_its_model(folders: Any, data: Path, tmp_path: Path) -> None:
    root = tuned(folders("llama"), data, tmp_path / "run", "tune.steps=1", "tune.merge=false")
    with pytest.raises(UserError, match="begun with other settings"):
        tuned(folders("llama"), data, root, "tune.steps=2")
    with pytest.raises(UserError, match="begun with other settings"):
        finetune.perform("tune", str(folders("qwen3")), [], root)


def test_nothing_to_merge_or_to_learn_is_an_error(folders: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Name files or folders with data\.text"):
        finetune.perform("tune", str(folders("llama")), [], tmp_path / "run")
    silent = tmp_path / "silent.jsonl"
    silent.write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n')
    with pytest.raises(UserError, match="Nothing that the assistant says"):
        tuned(folders("llama"), silent, tmp_path / "run")
    with pytest.raises(UserError, match="holds nothing trained"):
        finetune.perform("merge", str(folders("llama")), [], tmp_path / "run")


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3"])
def test_packed_documents_do_not_attend_to_each_other(name: str, folders: Any, tmp_path: Path) -> None:
    base, source = open_base_model(str(folders(name))), np.random.default_rng(0)
    made = [source.integers(3, 300, size).tolist() for size in (9, 30, 2, 9, 17)]
    (tmp_path / "tokenizer").write_text("")
    write_shards(tmp_path, [(tokens, [1] * len(tokens)) for tokens in made], 1, tmp_path / "tokenizer", 1 << 17)
    batch = Stream(Shards(tmp_path, tmp_path / "tokenizer"), seed=0).take(sum(map(len, made)) - len(made), 20)
    assert batch.lengths.tolist() == [1, 8, 8, 9, 16, 20]  # the longest is cut into two
    weights = base.weights()
    with torch.no_grad():
        together = our_loss(base, weights, batch)
        alone = [our_loss(base, weights, each) for each in batch.split(1)]
    assert len(alone) == len(batch.lengths)
    torch.testing.assert_close(together, sum(alone), rtol=1e-5, atol=1e-3)


def test_the_tokenizer_of_a_gguf_file_becomes_one_of_a_folder(smollm2_path: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    base = open_base_model(str(smollm2_path))
    base.write_text(tmp_path)
    maker = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": "Hello, 123 <|im_end|>  好的\n"}, {"role": "assistant", "content": "Hi"}]
    text = base.template.render(messages)
    assert maker.apply_chat_template(messages, add_generation_prompt=True, tokenize=False) == text
    ours = Tokenizer.from_folder(tmp_path)
    assert maker.encode(text, add_special_tokens=False) == base.tokenizer.encode(text) == ours.encode(text)
    assert ours.stop_ids == base.tokenizer.stop_ids
    assert ChatTemplate.from_folder(tmp_path, ours).render(messages) == text


@pytest.mark.parametrize(
    ("command", "stage"),
    [(["finetune"], "tune"), (["train", "tune"], "tune"), (["merge"], "merge"), (["train", "merge"], "merge")],
    ids=str,
)
def test_commands_have_their_names_and_the_old_ones(
    command: list[str], stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []
    monkeypatch.setattr(finetune, "perform", lambda *given: done.append(given))
    result = CliRunner().invoke(app, [*command, "some-model", "tune.rank=4", "--run", "folder"])
    assert (result.exit_code, done) == (0, [(stage, "some-model", ["tune.rank=4"], Path("folder"))])
