"""Scores against the length of the source, as curves; needs matplotlib (extra `plots`) when one is drawn."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseq.analysis.labels import need_matplotlib, sentence
from jaxseq.analysis.translation_scores import LengthScores

INK, SOFT, GRID = "#20242a", "#667080", "#e8eaed"
COLORS = ("#2b5c8f", "#b5483a", "#3f7f5f", "#c08a2d", "#6d5a94", "#4a9aa5", "#8a5a44", "#667080")
METRICS = {"exact_match": "exact match", "bleu": "BLEU"}


def draw_by_length(
    rows_by_name: Mapping[str, Sequence[LengthScores]],
    file: str | Path,
    *,
    metric: str = "exact_match",
    trained_length: int | float | None = None,
) -> Path:
    """A curve for each model of a score against the source's mean length in a bin, each named at its right end.

    Bands are the 95 % intervals of the exact match; BLEU has none, and no point in a bin without 4-grams. A dashed
    line stands at ``trained_length``. Returns the file, a PNG.

    Raises:
        ValueError: nothing to draw, more models than colours, or an unknown metric.
        ImportError: matplotlib is not installed.
    """
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    curves = {name: [row for row in rows if getattr(row, metric) is not None] for name, rows in rows_by_name.items()}
    curves = {name: rows for name, rows in curves.items() if rows}
    if not 0 < len(curves) <= len(COLORS):
        raise ValueError(f"{len(curves)} curves of {METRICS[metric]} to draw; from 1 to {len(COLORS)} can be")
    need_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.8), dpi=150, layout="constrained", facecolor="white")
    axes = figure.subplots()
    highest = max(getattr(row, metric) for rows in curves.values() for row in rows)
    top = 1.0 if metric == "exact_match" else min(100.0, 10 * (highest // 10 + 1))
    _prepare(axes, f"{METRICS[metric]} by source length".capitalize().replace("Bleu", "BLEU"), METRICS[metric], top)
    for rows, color in zip(curves.values(), COLORS, strict=False):
        x = [row.mean_length for row in rows]
        axes.plot(x, [getattr(row, metric) for row in rows], color=color, linewidth=1.6, marker="o", markersize=3)
        if metric == "exact_match":
            lows, highs = [row.low for row in rows], [row.high for row in rows]
            axes.fill_between(x, lows, highs, color=color, alpha=0.14, linewidth=0)
    if trained_length is not None:
        axes.axvline(trained_length, color=SOFT, linewidth=1, linestyle=(0, (4, 3)))
        where = axes.get_xaxis_transform()
        text = f"trained to {trained_length:g}"
        axes.text(trained_length, 1.01, text, transform=where, ha="center", va="bottom", fontsize=8, color=SOFT)
    _name(axes, {name: getattr(rows[-1], metric) / top for name, rows in curves.items()})
    figure.savefig(file, metadata={"Software": None})
    return Path(file)


def _prepare(axes: Any, title: str, metric: str, top: float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=18)
    axes.set_xlabel("source length", fontsize=9, color=SOFT)
    axes.set_ylabel(metric, fontsize=9, color=SOFT)
    axes.set_ylim(-0.03 * top, 1.03 * top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=9, colors=SOFT, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)


def _name(axes: Any, ends: Mapping[str, float]) -> None:
    """The curves' names at the right, each by the end of its curve (a share of the axis), none upon another."""
    step = 0.06
    order = sorted(ends, key=lambda name: ends[name])
    places: list[float] = []
    for name in order:
        places.append(max(ends[name], places[-1] + step) if places else ends[name])
    limit = 1.0
    for index in reversed(range(len(places))):
        places[index] = limit = min(places[index], limit)
        limit -= step
    colors = dict(zip(ends, COLORS, strict=False))
    for name, place in zip(order, places, strict=True):
        made = sentence(name)
        axes.text(
            1.02,
            (place + 0.03) / 1.06,
            made.texts[0],
            transform=axes.transAxes,
            color=colors[name],
            fontsize=9,
            va="center",
            family=made.families,
            parse_math=False,
        )
