"""Curves of several training runs in the same axes, one panel a metric."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxseq.plotting.labels import ELLIPSIS, text_label
from jaxseq.plotting.precision_recall import DASHES
from jaxseq.plotting.style import CYCLE, MUTED, SOFT, figure_format, make_figure, prepare_axes, save_figure
from jaxseq.plotting.training_curves import running_mean, window_of

WIDTH, HEIGHT, LINE = 5.2, 3.5, 0.19
"""Inches of a panel, and of a line of the legend."""

LONGEST, LONGEST_TITLE = 90, 36
"""Names of runs, and titles of panels and axes, are cut after this many characters."""

MOST = len(CYCLE) * len(DASHES)
"""Runs with a colour and a line style of their own; further ones are grey."""


class RunCurve(NamedTuple):
    """A metric of a run, ``y`` at ``x``; values that are not finite are left out."""

    x: list[float]
    y: list[float]


class RunPanel(NamedTuple):
    """A metric of several runs, by the run's name; a ``noisy`` metric is drawn as its running mean."""

    title: str
    curves: Mapping[str, RunCurve]
    x_label: str
    y_label: str
    noisy: bool = False


def draw_run_curves(panels: list[RunPanel], file: str | Path) -> Path:
    """Draw the curves, two panels side by side; a run has the same colour and line style in all of them.

    The legend below names the runs. Beyond the 27 that colours and line styles tell apart, runs are grey. The first
    losses of a run are far above the rest: a noisy metric's axis ends above 97 % of the values.

    Raises:
        ValueError: no panel, or a curve whose arrays differ in length.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    if not panels:
        raise ValueError("no metric of the runs to draw")
    names = [*dict.fromkeys(name for panel in panels for name in panel.curves)]
    styles = {name: _style(index) for index, name in enumerate(names)}
    columns = min(2, len(panels))
    rows = math.ceil(len(panels) / columns)
    entries = min(len(names), MOST) + (len(names) > MOST)
    figure = make_figure(WIDTH * columns, HEIGHT * rows + 0.25 + LINE * entries)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, styles)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    _legend(figure, names, styles)
    return save_figure(figure, file)


def _style(index: int) -> dict[str, Any]:
    if index >= MOST:
        return {"color": MUTED, "linestyle": "solid", "linewidth": 0.9, "zorder": 1}
    dashes = DASHES[index // len(CYCLE)]
    return {"color": CYCLE[index % len(CYCLE)], "linestyle": dashes, "linewidth": 1.5, "zorder": 2}


def _short(text: str, most: int = LONGEST_TITLE) -> str:
    text = text_label(text).texts[0]
    return text if len(text) <= most else text[: most - 1] + ELLIPSIS


def _draw(axes: Any, panel: RunPanel, styles: Mapping[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import EngFormatter

    smooth = panel.noisy and any(window_of(len(curve.y)) > 1 for curve in panel.curves.values())
    title = f"{_short(panel.title)}, running mean" if smooth else _short(panel.title)
    prepare_axes(axes, title, x_label=_short(panel.x_label), y_label=_short(panel.y_label))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    visible = []
    for name, curve in panel.curves.items():
        if len(curve.x) != len(curve.y):
            raise ValueError(f"{panel.title} of {name}: {len(curve.x)} x for {len(curve.y)} y")
        pairs = [(x, y) for x, y in zip(curve.x, curve.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
        x, y = [x for x, _ in pairs], [y for _, y in pairs]
        y = running_mean(y, window_of(len(y))) if panel.noisy else y
        marks = {} if panel.noisy and len(x) > 1 else {"marker": "o", "markersize": 3}
        axes.plot(x, y, **marks, **styles[name])
        visible += sorted(y)[: max(1, math.ceil(0.97 * len(y)))] if y else []
    if panel.noisy and visible:
        low, high = min(visible), max(visible)
        margin = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)


def _legend(figure: Any, names: list[str], styles: Mapping[str, dict[str, Any]]) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], **styles[name]) for name in names[:MOST]]
    texts = [_short(name, LONGEST) for name in names[:MOST]]
    if len(names) > MOST:
        lines.append(Line2D([], [], **_style(MOST)))
        texts.append(f"{len(names) - MOST} more runs")
    families = list(text_label(" ".join(names[:MOST])).families)
    legend = figure.legend(
        lines,
        texts,
        loc="outside lower left",
        frameon=False,
        labelcolor=SOFT,
        handlelength=2.6,
        labelspacing=0.3,
        alignment="left",
        prop={"size": 8, "family": families},
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
