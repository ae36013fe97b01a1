"""Scores against the length of the source, as curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxseq.plotting.labels import text_label
from jaxseq.plotting.style import CYCLE, DASHED, SOFT, figure_format, make_figure, prepare_axes, save_figure

METRICS = {"exact_match": "exact match", "bleu": "BLEU"}
LABEL_STEP = 0.06
"""The smallest distance of two curves' names, as a fraction of the axis."""


@runtime_checkable
class CurvePoint(Protocol):
    """The scores of one bin of source lengths, as in ``analysis.LengthScores``."""

    @property
    def mean_length(self) -> float:
        """The mean source length of the bin."""

    @property
    def exact_match(self) -> float:
        """The exact match, in 0..1."""

    @property
    def low(self) -> float:
        """The lower end of the exact match's 95 % interval."""

    @property
    def high(self) -> float:
        """The upper end of the exact match's 95 % interval."""

    @property
    def bleu(self) -> float | None:
        """BLEU in 0..100, or None where it is undefined."""


def draw_length_curves(
    points_by_name: Mapping[str, Sequence[CurvePoint]],
    file: str | Path,
    *,
    metric: str = "exact_match",
    trained_length: int | float | None = None,
    unit: str = "tokens",
) -> Path:
    """Draw one curve per model: a score against the mean source length of a bin, named at the curve's right end.

    Args:
        points_by_name: the points of each curve (``analysis.scores_by_length``), by the model's name.
        file: the PNG, SVG or PDF to write.
        metric: ``"exact_match"``, drawn with bands of 95 % intervals, or ``"bleu"``, without points where it is None.
        trained_length: the longest source trained on, marked by a dashed line.
        unit: the unit of the lengths, for the title of the axis.

    Returns:
        The file.

    Raises:
        ValueError: no curve, more curves than colours, or an unknown metric.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}; known: {', '.join(METRICS)}")
    curves = {name: [row for row in rows if getattr(row, metric) is not None] for name, rows in points_by_name.items()}
    curves = {name: rows for name, rows in curves.items() if rows}
    if not 0 < len(curves) <= len(CYCLE):
        raise ValueError(f"{len(curves)} curves of {METRICS[metric]}: between 1 and {len(CYCLE)} can be drawn")
    highest = max(getattr(row, metric) for rows in curves.values() for row in rows)
    top = 1.0 if metric == "exact_match" else min(100.0, 10 * (highest // 10 + 1))
    title = f"{METRICS[metric][0].upper()}{METRICS[metric][1:]} by source length"

    figure = make_figure(6.4, 3.8)
    axes = figure.subplots()
    prepare_axes(axes, title, x_label=f"source length, {unit}", y_label=METRICS[metric], title_pad=18)
    _set_scales(axes, top)
    for rows, color in zip(curves.values(), CYCLE, strict=False):
        x = [row.mean_length for row in rows]
        axes.plot(x, [getattr(row, metric) for row in rows], color=color, linewidth=1.6, marker="o", markersize=3)
        if metric == "exact_match":
            lows, highs = [row.low for row in rows], [row.high for row in rows]
            axes.fill_between(x, lows, highs, color=color, alpha=0.14, linewidth=0)
    if trained_length is not None:
        _mark_trained_length(axes, trained_length)
    if metric == "exact_match":
        _legend(axes)
    _name_curves(axes, {name: getattr(rows[-1], metric) / top for name, rows in curves.items()})
    return save_figure(figure, file)


def _set_scales(axes: Any, top: int | float) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(-0.03 * top, 1.03 * top)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(axes: Any) -> None:
    from matplotlib.patches import Patch

    axes.legend(handles=[Patch(color=SOFT, alpha=0.25, linewidth=0, label="95 % interval")], loc="best",
                frameon=False, fontsize=8, labelcolor=SOFT)  # fmt: skip


def _mark_trained_length(axes: Any, length: int | float) -> None:
    axes.axvline(length, color=SOFT, linewidth=1, linestyle=DASHED)
    transform, text = axes.get_xaxis_transform(), f"trained to {length:g}"
    axes.text(length, 1.01, text, transform=transform, ha="center", va="bottom", fontsize=8, color=SOFT)


def _name_curves(axes: Any, ends: Mapping[str, float]) -> None:
    """Write each name beside the end of its curve (a fraction of the axis), ``LABEL_STEP`` apart."""
    order = sorted(ends, key=lambda name: ends[name])
    places: list[float] = []
    for name in order:
        places.append(max(ends[name], places[-1] + LABEL_STEP) if places else ends[name])
    limit = 1.0
    for index in reversed(range(len(places))):
        places[index] = limit = min(places[index], limit)
        limit -= LABEL_STEP
    colors = dict(zip(ends, CYCLE, strict=False))
    for name, place in zip(order, places, strict=True):
        label = text_label(name)
        axes.text(
            1.02,
            (place + 0.03) / 1.06,
            label.texts[0],
            transform=axes.transAxes,
            color=colors[name],
            fontsize=9,
            va="center",
            family=label.families,
            parse_math=False,
        )
