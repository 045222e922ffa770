"""Curves of a run as SVG: what was noted at every step."""

from __future__ import annotations

from collections.abc import Sequence

from ..leaderboard.tables import fixed
from .document import escaped

WIDE, HIGH, LEFT, RIGHT, TOP, BOTTOM = 460, 220, 56, 12, 24, 36
POINTS = 400  # more of them fall on one pixel


def curve(title: str, steps: Sequence[float], values: Sequence[float], across: str = "step") -> str:
    """A line over the steps, or points where there are few. Both sequences: at least one finite number."""
    every = max(1, len(steps) // POINTS)
    shown = list(zip(steps, values, strict=True))[::every]
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) * 0.06
    low, high = low - room, high + room
    first, last = min(steps), max(max(steps), min(steps) + 1)

    def at(step: float, value: float) -> tuple[float, float]:
        x = LEFT + (WIDE - LEFT - RIGHT) * (step - first) / (last - first)
        return x, HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * (value - low) / (high - low)

    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in shown))
    dots = "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in (at(*p) for p in shown)) * (len(shown) < 40)
    middle = (LEFT + WIDE - RIGHT) / 2
    caption = f"{title}: from {fixed(values[0], 4)} to {fixed(values[-1], 4)}"
    return (
        f'<svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{escaped(caption)}">'
        f'<text class="title" x="8" y="16">{escaped(title)}</text>{_grid(low, high, first, last)}'
        f'<g class="curve"><polyline points="{path}"/>{dots}</g>'
        f'<text class="title" x="{middle}" y="{HIGH - 6}" text-anchor="middle">{escaped(across)}</text>'
        "</svg>"
    )


def _grid(low: float, high: float, first: float, last: float) -> str:
    """Four lines across with their values, and the first and the last step below."""
    parts = []
    for part in range(4):
        value = low + (high - low) * (part + 0.25) / 3.5
        y = HIGH - BOTTOM - (HIGH - TOP - BOTTOM) * (part + 0.25) / 3.5
        parts.append(f'<path class="tick" d="M{LEFT} {y:.1f}H{WIDE - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    for x, anchor, step in ((LEFT, "start", first), (WIDE - RIGHT, "end", last)):
        parts.append(f'<text x="{x}" y="{HIGH - BOTTOM + 16}" text-anchor="{anchor}">{step:g}</text>')
    return "".join(parts)
