"""Small figures of numbers with their intervals, which take on the colours of the page."""

from __future__ import annotations

import html
from collections.abc import Mapping

import numpy as np

from scmoe.claim import Sentence

LABELS, WIDTH, ROW = 172, 340, 21  # of the drawing, in pixels: a phone shows it as it is
COLOUR = "var(--pst-color-primary, #0a5f96)"  # of the page's theme; elsewhere the book's blue
ACCENT = f'style="stroke:{COLOUR};fill:{COLOUR}"'


def draw(
    rows: Mapping[str, tuple[float, float, float]], axis: str, alt: str, glue: str = ""
) -> Sentence:
    """Draw a dot and its 95 % interval for each row, on one axis with a line at 0.

    `rows` are label -> number, low, high, the ends NaN where they are not known; `alt` is what
    somebody who cannot see it should know, `glue` a name under which other pages can show it.
    """
    values = np.array(list(rows.values()), float)
    left, right = min(np.nanmin(values), 0), max(np.nanmax(values), 0)
    height = ROW * len(rows)

    def x(value: float) -> float:
        return round(LABELS + 18 + (WIDTH - LABELS - 42) * (value - left) / (right - left), 1)

    marks = [f'<path d="M{x(0)} 0V{height + 4}" stroke="currentColor" opacity=".5"/>']
    for i, (name, (value, low, high)) in enumerate(rows.items()):
        y = ROW * (i + 0.5)
        marks.append(f'<text x="{LABELS}" y="{y + 4}" text-anchor="end">{html.escape(name)}</text>')
        if np.isfinite(low + high):
            marks.append(f'<path d="M{x(low)} {y}H{x(high)}" {ACCENT} stroke-width="2"/>')
        marks.append(f'<circle cx="{x(value)}" cy="{y}" r="4.5" {ACCENT}/>')
    for value in {left, 0, right}:
        number = f"{value:.2g}".replace("-", "−")
        if value == 0 or abs(x(value) - x(0)) > 40:
            marks.append(
                f'<text x="{x(value)}" y="{height + 17}" text-anchor="middle">{number}</text>'
            )
    marks.append(f'<text x="0" y="{height + 17}">{html.escape(axis)}</text>')
    drawing = (
        f'<svg class="intervals" role="img" aria-label="{html.escape(alt)}" width="{WIDTH}" '
        f'viewBox="0 0 {WIDTH} {height + 22}" fill="currentColor" stroke="none" font-size="12">'
        f"{''.join(marks)}</svg>"
    )
    return Sentence(drawing, glue, "text/html")
