"""Curves in panels, with linear or logarithmic axes, bands, and dashed reference lines."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxseq.plotting.style import CYCLE, DASHED, INK, SOFT, figure_format, make_figure, prepare_axes, save_figure

WIDTH, HEIGHT = 4.6, 3.4
"""Inches of a panel."""

MARKED = 40
"""A curve of at most so many points has a marker at each."""

WITHIN = 5
"""A legend of at most so many names stands within its panel, a longer one beside it."""

LABELED = 8
"""A logarithmic x axis of at most so many different x (two less beside a legend) has its labels at them."""


class Curve(NamedTuple):
    """``y`` against ``x``; points that are not finite, or not positive on a logarithmic axis, are left out.

    ``dashed`` marks a reference, such as a bound or a theory, drawn in the colour of the curve of the same name without
    its last word, if there is one (``"gru"`` and ``"gru bound"``). ``low`` and ``high`` are the edges of a band.
    """

    x: Any
    y: Any
    dashed: bool = False
    low: Any = None
    high: Any = None


class CurvePanel(NamedTuple):
    """Curves by name in one pair of axes; the names are the legend, the labels state units.

    ``band`` is what the bands are (``"95 % interval"``), for the legend.
    """

    title: str
    curves: Mapping[str, Curve]
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False
    band: str = "from low to high"


def draw_curves(panels: Sequence[CurvePanel], file: str | Path, *, title: str = "", columns: int = 2) -> Path:
    """Draw panels of curves, ``columns`` side by side; a name has the same colour in every panel.

    Args:
        panels: what to draw.
        file: the PNG, SVG or PDF to write.
        title: a title above all panels.
        columns: panels in a row.

    Returns:
        The file.

    Raises:
        ValueError: no panel or a panel without curves, or a curve whose arrays differ in length.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    _check(panels, columns)
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = make_figure(WIDTH * columns, HEIGHT * rows + 0.35 * bool(title), dpi=120)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    colors = _colors(panels)
    for axes, panel in zip(grid, panels, strict=False):
        _draw(axes, panel, colors)
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    return save_figure(figure, file)


def _check(panels: Sequence[CurvePanel], columns: int) -> None:
    if not panels or columns < 1:
        raise ValueError(f"{len(panels)} panels in {columns} columns: there is nothing to draw")
    for panel in panels:
        if not panel.curves:
            raise ValueError(f"panel {panel.title!r} has no curve")
        for name, curve in panel.curves.items():
            sizes = {np.shape(a) for a in (curve.x, curve.y, curve.low, curve.high) if a is not None}
            if len(sizes) != 1 or len(sizes.pop()) != 1:
                raise ValueError(f"curve {name!r} of panel {panel.title!r}: its arrays must be of one length")


def _colors(panels: Sequence[CurvePanel]) -> dict[str, str]:
    """A colour for each name. A dashed curve has that of the curve which it is the reference of, or grey."""
    names = [name for panel in panels for name, curve in panel.curves.items() if not curve.dashed]
    colors = {name: CYCLE[index % len(CYCLE)] for index, name in enumerate(dict.fromkeys(names))}
    dashed = {name for panel in panels for name, curve in panel.curves.items() if curve.dashed} - set(colors)
    return colors | {name: colors.get(name.rpartition(" ")[0], SOFT) for name in dashed}


def _draw(axes: Any, panel: CurvePanel, colors: Mapping[str, str]) -> None:
    prepare_axes(axes, panel.title, x_label=panel.x_label, y_label=panel.y_label)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.log_y:
        axes.set_yscale("log")
    banded = False
    for name, curve in panel.curves.items():
        x, y = (np.asarray(values, np.float64) for values in (curve.x, curve.y))
        kept = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not panel.log_x)) & ((y > 0) | (not panel.log_y))
        style: dict[str, Any] = {"color": colors[name], "linewidth": 1.1 if curve.dashed else 1.6}
        if curve.dashed:
            style["linestyle"] = DASHED
        elif kept.sum() <= MARKED:
            style |= {"marker": "o", "markersize": 3}
        axes.plot(x[kept], y[kept], label=name, **style)
        if curve.low is not None and curve.high is not None:
            low, high = (np.asarray(values, np.float64)[kept] for values in (curve.low, curve.high))
            axes.fill_between(x[kept], low, high, color=colors[name], alpha=0.14, linewidth=0)
            banded = True
    if panel.log_x or panel.log_y:
        axes.minorticks_off()
    places = sorted({float(x) for curve in panel.curves.values() for x in curve.x if math.isfinite(x) and x > 0})
    within = len(panel.curves) <= WITHIN
    if panel.log_x and 0 < len(places) <= (LABELED if within else LABELED - 2):
        axes.set_xticks(places, [f"{x:g}" for x in places])
    elif not panel.log_x and all(x.is_integer() for x in places):
        axes.xaxis.get_major_locator().set_params(integer=True)
    if len(panel.curves) > 1 or banded:
        _legend(
            axes, panel.band if banded else "", {} if within else {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        )


def _legend(axes: Any, band: str, place: dict[str, Any]) -> None:
    """The names of the curves, and what the bands are."""
    from matplotlib.patches import Patch

    handles, names = axes.get_legend_handles_labels()
    if band:
        handles, names = [*handles, Patch(color=SOFT, alpha=0.25, linewidth=0)], [*names, band]
    legend = axes.legend(handles, names, fontsize=8, labelcolor=SOFT, handlelength=2.2, labelspacing=0.3, **place)
    legend.get_frame().set(alpha=0.8, linewidth=0)
    for text in legend.get_texts():
        text.set_parse_math(False)
