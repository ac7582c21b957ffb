"""Charts as SVG text, for a page that stands alone."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 720, 220
LEFT, TOP, BOTTOM = 56, 20, 24
COLORS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd")
MAX_POINTS, MAX_COLUMNS = 400, 60

Line = Sequence[tuple[float, float]]
"""Points (x, y), sorted by x."""


def curves(title: str, lines: Mapping[str, Line], low: float | None = None, high: float | None = None) -> str:
    """Draws named lines over the training steps as SVG; ``low`` and ``high`` bound the y axis if given."""
    lines = {name: _thinned(line) for name, line in lines.items() if line}
    if not lines:
        return ""
    points = [point for line in lines.values() for point in line]
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    low = min(y for _, y in points) if low is None else low
    high = max(y for _, y in points) if high is None else high

    def place(x: float, y: float) -> str:
        across = (x - first) / ((last - first) or 1.0)
        up = (y - low) / ((high - low) or 1.0)
        return f"{LEFT + across * (WIDTH - LEFT - 8):.1f},{HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM):.1f}"

    drawn = []
    for index, (name, line) in enumerate(lines.items()):
        color = COLORS[index % len(COLORS)]
        path = " ".join(place(x, y) for x, y in line)
        drawn.append(f"<polyline points='{path}' fill='none' stroke='{color}' stroke-width='1.5'/>")
        if len(lines) > 1:
            drawn.append(_text(LEFT + 8 + 150 * index, TOP + 12, name, color))
    for part in (0.0, 0.5, 1.0):
        y = HEIGHT - BOTTOM - part * (HEIGHT - TOP - BOTTOM)
        drawn.append(f"<line x1='{LEFT}' x2='{WIDTH - 8}' y1='{y:.0f}' y2='{y:.0f}' stroke='#ddd'/>")
        drawn.append(_text(2, y + 4, f"{low + part * (high - low):.3g}"))
    ends = _text(LEFT, HEIGHT - 6, f"{first:g}") + _text(WIDTH - 90, HEIGHT - 6, f"step {last:g}")
    return _svg(HEIGHT, title, "".join(drawn) + ends)


def heat_map(title: str, columns: Sequence[Sequence[float]], cell: int = 6) -> str:
    """Draws the load of each expert (down) over time (across): white is none, rose an even share, red more."""
    shown = columns[:: max(1, len(columns) // MAX_COLUMNS)]
    width, num = (WIDTH - LEFT) / len(shown), len(shown[0])
    cells = "".join(
        f"<rect x='{LEFT + x * width:.1f}' y='{TOP + y * cell}' width='{width + 0.3:.1f}' height='{cell}' "
        f"fill='hsl(0 70% {100 - min(90, 25 * share * num):.0f}%)'/>"
        for x, column in enumerate(shown)
        for y, share in enumerate(column)
    )
    return _svg(TOP + num * cell + 4, title, cells)


def _thinned(line: Line) -> Line:
    """Averages neighbouring points so that at most MAX_POINTS remain."""
    step = -(-len(line) // MAX_POINTS)
    parts = [line[begin : begin + step] for begin in range(0, len(line), step)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _svg(height: float, title: str, inside: str) -> str:
    return (
        f"<svg viewBox='0 0 {WIDTH} {height:.0f}' role='img' aria-label='{html.escape(title, quote=True)}'>"
        f"{_text(LEFT, 12, title)}{inside}</svg>"
    )


def _text(x: float, y: float, text: str, color: str = "#555") -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' fill='{color}'>{html.escape(text)}</text>"
