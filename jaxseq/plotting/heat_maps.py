"""Heat maps of one quantity on one colour scale, linear or logarithmic."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxseq.plotting.style import (
    INK,
    MUTED,
    SOFT,
    figure_format,
    make_figure,
    prepare_axes,
    require_matplotlib,
    save_figure,
    sequential_colormap,
)

WIDTH, HEIGHT = 3.2, 2.9
"""Inches of a panel."""

DECADES = 8
"""Most powers of ten that a logarithmic scale spans, counted from the largest value."""


class HeatMap(NamedTuple):
    """A matrix as colours: row 0 at the bottom, column 0 at the left.

    ``x_range`` and ``y_range`` are the positions of the first and the last column and row; by default their indices.
    ``unit`` labels the colour scale. Zeros on a logarithmic scale have the colour of its lowest value.
    """

    title: str
    values: Any
    x_label: str = ""
    y_label: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    log: bool = True
    unit: str = ""


def draw_heat_maps(maps: Sequence[HeatMap], file: str | Path, *, title: str = "", columns: int = 3) -> Path:
    """Draw heat maps, ``columns`` side by side, with one colour scale for all of them.

    A logarithmic scale spans at most ``DECADES`` powers of ten below the largest value; lower ones, zeros too, are
    white, as its label says. Values that are not finite are grey, as a legend says.

    Args:
        maps: what to draw; all of them with the same ``log`` and ``unit``.
        file: the PNG, SVG or PDF to write.
        title: a title above all panels.
        columns: panels in a row.

    Returns:
        The file.

    Raises:
        ValueError: no map, a map that is not a matrix or has no finite value, or maps that differ in scale or unit.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    if not maps or columns < 1:
        raise ValueError(f"{len(maps)} heat maps in {columns} columns: there is nothing to draw")
    if len({(each.log, each.unit) for each in maps}) != 1:
        raise ValueError(f"heat maps on one scale must agree in log and unit: {[(m.log, m.unit) for m in maps]}")
    values = [_values(each) for each in maps]
    require_matplotlib()
    from matplotlib.patches import Patch

    norm = _norm(values, maps[0].log)
    columns = min(columns, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure = make_figure(WIDTH * columns + 0.9, HEIGHT * rows + 0.35 * bool(title), dpi=120)
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12, color=INK, parse_math=False)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    colors = sequential_colormap().with_extremes(bad=MUTED)
    for axes, each, matrix in zip(grid, maps, values, strict=False):
        image = _draw(axes, each, matrix, norm, colors)
    for axes in grid[len(maps) :]:
        axes.set_axis_off()
    below = maps[0].log and any((matrix < norm.vmin).any() for matrix in values)
    bar = figure.colorbar(image, ax=grid.tolist(), shrink=0.9, pad=0.02)
    note = f"  (white: {norm.vmin:.1g} or less)" if below else ""
    bar.set_label(f"{maps[0].unit}{note}", fontsize=9, color=SOFT, parse_math=False)
    bar.ax.tick_params(labelsize=8, colors=SOFT, length=0)
    bar.outline.set_visible(False)
    if not all(np.isfinite(matrix).all() for matrix in values):
        entry = Patch(color=MUTED, label="not finite")
        figure.legend(handles=[entry], loc="outside lower right", frameon=False, fontsize=8, labelcolor=SOFT)
    return save_figure(figure, file)


def _values(each: HeatMap) -> np.ndarray:
    values = np.asarray(each.values, np.float64)
    if values.ndim != 2 or not np.isfinite(values).any():
        raise ValueError(f"heat map {each.title!r} of shape {values.shape} is not a matrix with finite values")
    return values


def _norm(values: Sequence[np.ndarray], log: bool) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    every = np.concatenate([matrix[np.isfinite(matrix)] for matrix in values])
    if not log:
        return Normalize(min(every.min(), 0.0), every.max() if every.max() > every.min() else every.min() + 1.0)
    positive = every[every > 0]
    top = positive.max() if positive.size else 1.0
    low = max(positive.min() if positive.size else top / 10, top / 10.0**DECADES)
    return LogNorm(min(low, top / 10), top, clip=True)


def _draw(axes: Any, each: HeatMap, values: np.ndarray, norm: Any, colors: Any) -> Any:
    rows, columns = values.shape
    x0, x1 = each.x_range or (0.0, columns - 1.0)
    y0, y1 = each.y_range or (0.0, rows - 1.0)
    half = [(last - first) / max(count - 1, 1) / 2 or 0.5 for first, last, count in ((x0, x1, columns), (y0, y1, rows))]
    prepare_axes(axes, each.title, x_label=each.x_label, y_label=each.y_label, tick_size=8)
    axes.grid(visible=False)
    shown = np.where(values == 0, norm.vmin, values) if each.log else values
    extent = (x0 - half[0], x1 + half[0], y0 - half[1], y1 + half[1])
    return axes.imshow(
        np.ma.masked_invalid(shown),
        norm=norm,
        cmap=colors,
        origin="lower",
        aspect="auto",
        extent=extent,
        interpolation="nearest",
    )
