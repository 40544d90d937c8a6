"""A chart as inline SVG: it needs no file, no script and no font of its own, and takes its colours from the page."""

from __future__ import annotations

from html import escape

from training.checks.finding import Chart

_WIDTH = 640
_NAMES = 200
"""Width kept for names beside lying bars; a longer name is cut, its whole is in the chart's table."""
_MAX_NAME = 28
_BAR, _GAP = 7, 8
_HEIGHT, _FOOT, _HEAD = 170, 24, 18


def svg(chart: Chart) -> str:
    """Draw the chart. A screen reader reads its title; the figures of several series are in the table beside it."""
    height, body = _bars(chart) if chart.kind == "bars" else _columns(chart)
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" role="img" '
        f'aria-label="{escape(chart.title)}">{"".join(body)}</svg>'
    )


def number(value: float) -> str:
    """Write a figure: whole numbers whole, others with three digits that count."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 1000 else f"{value:.3g}"


def _bars(chart: Chart) -> tuple[int, list[str]]:
    largest, most = _largest(chart), len(chart.series)
    row_height = max(_BAR * most + _GAP, 16)
    room = _WIDTH - _NAMES - 60
    body = []
    for row, name in enumerate(chart.names):
        top = row * row_height
        middle = top + row_height / 2 + 4
        body.append(f'<text x="{_NAMES - 8}" y="{middle:g}" text-anchor="end">{escape(_shorten(name))}</text>')
        for place, values in enumerate(chart.series.values()):
            width = room * values[row] / largest
            y = top + (row_height - _BAR * most) / 2 + place * _BAR
            body.append(
                f'<rect class="s{place}" x="{_NAMES}" y="{y:g}" width="{max(width, 0.5):.1f}" height="{_BAR - 1}"/>'
            )
            if most == 1:
                body.append(f'<text x="{_NAMES + width + 6:.1f}" y="{middle:g}">{number(values[row])}</text>')
    return row_height * len(chart.names) + 4, body


def _columns(chart: Chart) -> tuple[int, list[str]]:
    largest, n_series = _largest(chart), len(chart.series)
    step = _WIDTH / len(chart.names)
    width = min((step - 6) / n_series, 28)
    body = [f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEAD + _HEIGHT}" y2="{_HEAD + _HEIGHT}"/>']
    for column, name in enumerate(chart.names):
        middle = (column + 0.5) * step
        body.append(f'<text x="{middle:.1f}" y="{_HEAD + _HEIGHT + 17}" text-anchor="middle">{escape(name)}</text>')
        for place, values in enumerate(chart.series.values()):
            height = _HEIGHT * values[column] / largest
            x = middle - width * n_series / 2 + place * width
            y = _HEAD + _HEIGHT - height
            body.append(
                f'<rect class="s{place}" x="{x:.1f}" y="{y:.1f}" width="{width - 1:.1f}" height="{height:.1f}"/>'
            )
            if n_series == 1:
                body.append(
                    f'<text x="{middle:.1f}" y="{y - 5:.1f}" text-anchor="middle">{number(values[column])}</text>'
                )
    return _HEAD + _HEIGHT + _FOOT, body


def _largest(chart: Chart) -> float:
    return max((value for values in chart.series.values() for value in values), default=0.0) or 1.0


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"
