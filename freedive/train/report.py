"""One page that tells how a run went: curves, experts' loads, samples, times. It needs nothing beside itself."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from freedive import machine
from freedive.train.config import Run

WIDTH, HEIGHT = 720, 220
MAX_POINTS = 400

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 760px; margin: 2rem auto; padding: 0 1rem; color: #222 }
svg { width: 100%; height: auto } table { border-collapse: collapse } td, th { padding: .2rem .8rem; text-align: left }
blockquote { border-left: 3px solid #d62728; margin: 1rem 0; padding: 0 1rem; white-space: pre-wrap }
text { font: 11px system-ui, sans-serif; fill: #555 }
"""

Rows = Sequence[Mapping[str, Any]]


def write_report(root: Path, run: Run, told: Mapping[str, str]) -> Path:
    """Write ``root``/report.html from the metrics there; ``told`` are samples: what was asked, and the answer."""
    parts = [f"<h1>{html.escape(root.name)}</h1>", f"<p>{html.escape(machine.cpu_name())}</p>"]
    for stage in ("pretrain", "sft"):
        if rows := _rows(root / f"{stage}.jsonl"):
            parts += [f"<h2>{stage}</h2>", _summary(rows), curve([row["loss"] for row in rows], "loss, nats a token")]
            parts += [_heat_maps(rows)]
    if rows := _rows(root / "rl.jsonl"):
        parts += ["<h2>rl</h2>", curve([row["right"] for row in rows], "answers that are right, while learning")]
        parts += [curve([row["answer_tokens"] for row in rows], "tokens of an answer")]
        found = {"before": rows[0].get("before", {})} | {
            f"step {row['step']}": row["pass"] for row in rows if "pass" in row
        }
        parts += _table("Held-out tasks, first answer right", found)
    if rows := _rows(root / "distill.jsonl"):
        parts += ["<h2>distill</h2>", curve([row["loss"] for row in rows], "loss, nats a token")]
        if "loss_of_answer" in rows[0]:
            parts += [curve([row["loss_of_answer"] for row in rows], "from the teacher, nats an answer")]
        parts += _table("The teacher's answers", _read(root / "distill.json"))
    parts += _table("Held-out text", _read(root / "eval.json"))
    if told:
        parts += ["<h2>Samples</h2>", *(_sample(asked, answer) for asked, answer in told.items())]
    parts += _table("Seconds", _read(root / "seconds.json"))
    parts += ["<h2>Settings</h2>", f"<pre>{html.escape(json.dumps(asdict(run), indent=2))}</pre>"]
    path = root / "report.html"
    page = f"<!doctype html><meta charset='utf-8'><title>{html.escape(root.name)}</title><style>{STYLE}</style>"
    path.write_text(page + "\n".join(parts) + "\n", "utf-8")
    return path


def curve(values: Sequence[float], label: str) -> str:
    """A line over its steps, as SVG."""
    step = max(1, len(values) // MAX_POINTS)
    shown = [sum(part) / len(part) for part in (values[i : i + step] for i in range(0, len(values), step))]
    low, high = min(shown), max(shown)
    scale = (HEIGHT - 40) / ((high - low) or 1.0)
    across = (WIDTH - 60) / max(1, len(shown) - 1)
    points = " ".join(f"{50 + i * across:.1f},{HEIGHT - 20 - (v - low) * scale:.1f}" for i, v in enumerate(shown))
    return (
        f"<svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{html.escape(label)}'>"
        f"<text x='50' y='12'>{html.escape(label)}</text><text x='0' y='24'>{high:.3g}</text>"
        f"<text x='0' y='{HEIGHT - 16}'>{low:.3g}</text>"
        f"<text x='{WIDTH - 60}' y='{HEIGHT - 4}'>step {len(values)}</text>"
        f"<polyline points='{points}' fill='none' stroke='#d62728' stroke-width='1.5'/></svg>"
    )


def _heat_maps(rows: Rows) -> str:
    """Of each mixture: how the load of every expert (down) moved with the steps (across)."""
    layers = len(rows[-1]["loads"])
    return "".join(_heat_map([row["loads"][layer] for row in rows], layer) for layer in range(layers))


def _heat_map(loads: Sequence[Sequence[float]], layer: int) -> str:
    step = max(1, len(loads) // 60)
    shown, num_experts = loads[::step], len(loads[0])
    width, height = (WIDTH - 60) / len(shown), 6
    cells = "".join(
        f"<rect x='{50 + x * width:.1f}' y='{18 + y * height}' width='{width + 0.3:.1f}' height='{height}' "
        f"fill='hsl(0 70% {100 - min(90, 25 * load * num_experts):.0f}%)'/>"
        for x, column in enumerate(shown)
        for y, load in enumerate(column)
    )
    label = f"load of each expert, mixture {layer + 1}: white none, rose its share, red more"
    return f"<svg viewBox='0 0 {WIDTH} {24 + num_experts * height}'><text x='50' y='12'>{label}</text>{cells}</svg>"


def _summary(rows: Rows) -> str:
    last = rows[-1]
    speed = sorted(row["tokens_per_s"] for row in rows)[len(rows) // 2]
    worst = max(last["max_violation"], default=0.0)
    return (
        f"<p>{last['step']} steps; loss {last['loss']:.3f}, {last['bits_per_byte']:.3f} bits a byte; "
        f"{speed:,.0f} tokens/s; the fullest expert has {1 + worst:.2f} times its share.</p>"
    )


def _table(title: str, values: Mapping[str, Any]) -> list[str]:
    cells = (
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(_in_words(value))}</td></tr>" for key, value in values.items()
    )
    return [f"<h2>{title}</h2>", "<table>", *cells, "</table>"] if values else []


def _in_words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key.replace('_', ' ')} {_in_words(each)}" for key, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _sample(asked: str, answer: str) -> str:
    return f"<p><b>{html.escape(asked)}</b></p><blockquote>{html.escape(answer)}</blockquote>"


def _rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def _read(path: Path) -> Mapping[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.exists() else {}
