"""A metric over a grid of two settings: a heat map with the values written in its cells."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxseq.plotting.labels import ELLIPSIS, text_label
from jaxseq.plotting.style import (
    EDGE,
    INK,
    RED,
    SOFT,
    figure_format,
    make_figure,
    prepare_axes,
    save_figure,
    sequential_colormap,
)

CELL_WIDTH, CELL_HEIGHT, LONGEST = 1.25, 0.46, 24
"""Inches of a cell; values are cut after this many characters."""


class GridTable(NamedTuple):
    """A metric's means over seeds: a row for each value of a field, and a column for each value of another."""

    row_field: str
    column_field: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    means: np.ndarray
    """``[rows columns]``; NaN where there is no run, or where a value is not finite."""
    halves: np.ndarray
    """Half the width of the 95 % interval of each mean; NaN where there is none."""
    base: tuple[int, int]
    """The row and the column of the base."""

    def text(self, row: int, column: int) -> str:
        """The mean and half its interval: ``2.815 ± 0.021``."""
        mean, half = float(self.means[row, column]), float(self.halves[row, column])
        return "" if math.isnan(mean) else f"{mean:.4g}" if math.isnan(half) else f"{mean:.4g} ± {half:.2g}"


def draw_grids(tables: Mapping[str, GridTable], file: str | Path, *, title: str = "Grid") -> Path:
    """Draw a heat map for each metric, one below another, each with its own colour scale; the base has a red frame.

    Args:
        tables: the means by the metric's name.
        file: the PNG, SVG or PDF to write.
        title: a title above all.

    Returns:
        The file.

    Raises:
        ValueError: no metric, or arrays that do not fit the values of the fields.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    if not tables:
        raise ValueError("no metric to draw over the grid")
    for name, table in tables.items():
        if not table.means.shape == table.halves.shape == (len(table.rows), len(table.columns)):
            raise ValueError(f"{name}: means are {table.means.shape} for {len(table.rows)} by {len(table.columns)}")
    first = next(iter(tables.values()))
    height = 1.3 + CELL_HEIGHT * len(first.rows)
    figure = make_figure(max(4.6, 2.6 + CELL_WIDTH * len(first.columns)), 0.7 + height * len(tables))
    heading = text_label(f"{title}: mean over seeds ± half the 95 % interval")
    style: dict[str, Any] = {"ha": "left", "size": 10, "color": INK, "parse_math": False, "family": heading.families}
    figure.suptitle(heading.texts[0], x=0.01, **style)
    panels = figure.subplots(len(tables), 1, squeeze=False).ravel()
    for axes, (metric, table) in zip(panels, tables.items(), strict=True):
        _draw(figure, axes, metric, table)
    _legend(figure)
    return save_figure(figure, file)


def _draw(figure: Any, axes: Any, metric: str, table: GridTable) -> None:
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    finite = table.means[np.isfinite(table.means)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    norm = Normalize(low, high if high > low else low + 1.0)
    prepare_axes(axes, metric, x_label=table.column_field, y_label=table.row_field, title_size=9, title_color=SOFT)
    axes.grid(visible=False)
    image = axes.imshow(np.ma.masked_invalid(table.means), norm=norm, cmap=sequential_colormap(), aspect="auto")
    axes.set_facecolor("white")
    for axis, values in ((axes.xaxis, table.columns), (axes.yaxis, table.rows)):
        made = [text_label(value if len(value) <= LONGEST else value[: LONGEST - 1] + ELLIPSIS) for value in values]
        families = text_label(" ".join(values)).families
        axis.set_ticks(range(len(values)), [label.texts[0] for label in made], parse_math=False, family=families)
    for row, column in np.ndindex(table.means.shape):
        text = table.text(row, column)
        color = SOFT if not text else "white" if norm(table.means[row, column]) > 0.55 else INK
        axes.text(column, row, text or "no value", color=color, ha="center", va="center", fontsize=8)
    row, column = table.base
    axes.add_patch(Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, edgecolor=RED, linewidth=1.8))
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
    bar.set_label(metric, fontsize=8, color=SOFT, parse_math=False)
    bar.ax.tick_params(labelsize=7.5, colors=SOFT, length=0)
    bar.outline.set_color(EDGE)


def _legend(figure: Any) -> None:
    from matplotlib.patches import Patch

    entry = Patch(fill=False, edgecolor=RED, linewidth=1.8, label="the base")
    figure.legend(handles=[entry], loc="outside lower left", frameon=False, fontsize=8, labelcolor=SOFT)
