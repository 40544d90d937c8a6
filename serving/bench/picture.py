"""Latency over load, drawn without a screen."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from serving.bench.tables import points_of

Result = dict[str, Any]

_DPI = 110
_LINES = (("p50_ms", "p50", "#2b6cb0"), ("p95_ms", "p95", "#805ad5"), ("p99_ms", "p99", "#dd6b20"))

_SHARES = (("throughput_per_s", "answered", "#d69e2e"), ("goodput_per_s", "answered within the limit", "#2f855a"))


def latency_over_load(result: Result, before: Result | None = None) -> bytes:
    """Draw latencies, answers and goodput of a sweep over the rate that was offered; an earlier sweep dashed."""
    figure = Figure(figsize=(7.5, 6), dpi=_DPI, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    _draw(above, below, result, style="o-", then="")
    if before is not None:
        _draw(above, below, before, style="x--", then=" then")
    limit_ms = result["load"]["p99_limit_ms"]
    above.axhline(limit_ms, color="black", lw=0.8, ls=":", label=f"limit of p99, {limit_ms:g} ms")
    above.set(yscale="log", ylabel="latency, ms")
    for set_formatter in (above.yaxis.set_major_formatter, above.yaxis.set_minor_formatter):
        set_formatter(FuncFormatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "125" else ""))
    above.set_title(
        f"{result['scenario']}: {result['best_goodput_per_s']:.0f} requests/s within the limit", fontsize=10
    )
    above.legend(fontsize=8)
    rates = [point["rate_per_s"] for point in points_of(result)]
    below.plot([0, rates[-1]], [0, rates[-1]], color="#a0aec0", lw=0.8, label="all that was offered")
    below.set(xlabel="offered, requests/s", ylabel="requests/s", xlim=(0, None), ylim=(0, None))
    below.legend(fontsize=8)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _draw(above: Axes, below: Axes, result: Result, *, style: str, then: str) -> None:
    points = points_of(result)
    rates = [point["rate_per_s"] for point in points]
    alpha = 0.5 if then else 1.0
    for key, name, colour in _LINES:
        values = [float("nan") if point[key] is None else point[key] for point in points]
        above.plot(rates, values, style, color=colour, alpha=alpha, label=name + then)
    for key, name, colour in _SHARES:
        below.plot(rates, [point[key] for point in points], style, color=colour, alpha=alpha, label=name + then)
