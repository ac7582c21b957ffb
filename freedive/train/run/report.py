"""The report of a run as one self-contained HTML page: curves, expert loads, samples, durations, hashes."""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from freedive import machine
from freedive.train.run.charts import curves, heat_map
from freedive.train.run.config import Run
from freedive.train.run.progress import Row, read_rows

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem; color: #222 }
svg { width: 100%; height: auto } table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: left }
blockquote { border-left: 3px solid #d62728; margin: .5rem 0 1rem; padding: 0 1rem; white-space: pre-wrap }
text { font: 11px system-ui, sans-serif } pre { overflow-x: auto }
"""

SUPERVISED = ("pretrain", "sft", "distill")
REINFORCED = {"rl": "rewards for right answers", "control": "random rewards"}
HASHED = ("tokenizer/tokenizer.json", "data/*/manifest.json", "model/model.safetensors", "*.gguf")


DEAD = 0.01
"""The part of an even share of the tokens below which an expert counts as dead."""


def write_report(root: Path, run: Run, samples: Mapping[str, str]) -> Path:
    """Writes ``root``/report.html from the metrics files; ``samples`` are answers of the model by prompt."""
    parts = [f"<h1>{html.escape(root.name)}</h1>", f"<p>{html.escape(machine.cpu_name())}</p>"]
    for stage in SUPERVISED:
        if rows := read_rows(root / f"{stage}.jsonl"):
            parts += _supervised(stage, rows) if "loads" in rows[-1] else _on_policy(stage, rows)
    parts += _table("Answers of the teacher", _read(root / "distill.json"))
    parts += _reinforced({name: read_rows(root / f"{stage}.jsonl") for stage, name in REINFORCED.items()})
    parts += _table("Held out", _read(root / "eval.json"))
    if samples:
        parts += ["<h2>Samples</h2>", *(_sample(asked, answer) for asked, answer in samples.items())]
    parts += _table("Seconds", _read(root / "seconds.json"))
    parts += _table("SHA-256", dict(_hashes(root)))
    parts += ["<h2>Settings</h2>", f"<pre>{html.escape(json.dumps(asdict(run), indent=2))}</pre>"]
    path = root / "report.html"
    head = f"<!doctype html><meta charset='utf-8'><title>{html.escape(root.name)}</title><style>{STYLE}</style>"
    path.write_text(head + "\n".join(parts) + "\n", "utf-8")
    return path


def _supervised(stage: str, rows: Sequence[Row]) -> list[str]:
    last = rows[-1]
    speed = sorted(row["tokens_per_s"] for row in rows)[len(rows) // 2]
    summary = (
        f"{last['step']} steps; loss {last['loss']:.3f}, {last['bits_per_byte']:.3f} bits a byte; {speed:,.0f} tokens/s"
    )
    return [
        f"<h2>{stage}</h2>",
        f"<p>{summary}{_balance(last['loads'])}.</p>",
        curves("loss, nats a token", {"loss": [(row["step"], row["loss"]) for row in rows]}),
        *(
            heat_map(f"load of each expert, mixture {layer + 1}", [row["loads"][layer] for row in rows])
            for layer in range(len(last["loads"]))
        ),
        *(_sample(f"after step {row['step']}", row["sample"]) for row in rows if "sample" in row),
    ]


def _balance(loads: Sequence[Sequence[float]]) -> str:
    """Describes how evenly the experts of all mixtures are used."""
    times = [share * len(layer) for layer in loads for share in layer]
    if not times:
        return ""
    dead = sum(each < DEAD for each in times)
    return (
        f"; the fullest expert has {max(times):.2f} times its share, the emptiest {min(times):.2f}; "
        f"{dead or 'none'} of {len(times)} {'is' if dead < 2 else 'are'} dead"
    )


def _on_policy(stage: str, rows: Sequence[Row]) -> list[str]:
    titles = {"loss": "nats a token from the teacher", "loss_of_answer": "nats an answer from the teacher"}
    lines = ({title: [(row["step"], row[key]) for row in rows]} for key, title in titles.items())
    return [f"<h2>{stage}</h2>", *(curves(title, line) for line in lines for title in line)]


def _reinforced(runs: Mapping[str, Sequence[Row]]) -> list[str]:
    runs = {name: rows for name, rows in runs.items() if rows}
    if not runs:
        return []

    def over_steps(key: str) -> dict[str, list[tuple[float, float]]]:
        return {name: [(row["step"], row[key]) for row in rows] for name, rows in runs.items()}

    passed = {name: list(_passed(rows)) for name, rows in runs.items()}
    means = {name: [(step, sum(by.values()) / len(by)) for step, by in found] for name, found in passed.items()}
    return [
        "<h2>rl</h2>",
        curves("held-out tasks: first answer right", means, 0.0, 1.0),
        curves("training tasks: answers that are right", over_steps("right"), 0.0, 1.0),
        curves("tokens of an answer", over_steps("answer_tokens"), 0.0),
        *(
            line
            for name, found in passed.items()
            for line in _table(f"Held-out tasks, first answer right: {name}", {f"step {at}": by for at, by in found})
        ),
    ]


def _passed(rows: Sequence[Row]) -> Iterable[tuple[int, Mapping[str, float]]]:
    """Yields each step after which held-out tasks were evaluated, with the share of correct answers by kind."""
    for row in rows:
        if "before" in row:
            yield row["step"] - 1, row["before"]
        if "pass" in row:
            yield row["step"], row["pass"]


def _hashes(root: Path) -> Iterable[tuple[str, str]]:
    for pattern in HASHED:
        for path in sorted(root.glob(pattern)):
            with path.open("rb") as file:
                yield str(path.relative_to(root)), hashlib.file_digest(file, "sha256").hexdigest()


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    cells = (
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(_in_words(value))}</td></tr>" for key, value in values.items()
    )
    return [f"<h2>{html.escape(title)}</h2>", "<table>", *cells, "</table>"] if values else []


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_in_words(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sample(asked: str, answer: str) -> str:
    return f"<p><b>{html.escape(asked)}</b></p><blockquote>{html.escape(answer)}</blockquote>"


def _read(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
