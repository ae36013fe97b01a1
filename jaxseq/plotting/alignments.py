"""Attention weights as heat maps, in one figure."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxseq.plotting.labels import text_label, token_labels
from jaxseq.plotting.style import EDGE, INK, SOFT, figure_format, make_figure, save_figure, sequential_colormap
from jaxseq.typing import Array, Float

MAX_CELL, MAX_SIDE, WIDTH, GAP = 0.26, 15.0, 11.0, 0.3
"""Inches: the largest cell, the longest side of a heat map, the width of a row of heat maps, the gap between them."""

FONT_SIZE = 9.0

DESCRIBED = 6
"""The greatest number of heat maps that the description of a figure names."""

Weights: TypeAlias = Float[np.ndarray | Array, "..."]


class Alignment(NamedTuple):
    """One heat map: ``weights[t, s]`` is the attention weight of target token ``t`` on source token ``s``."""

    weights: Weights
    source_tokens: Sequence[str]
    target_tokens: Sequence[str]
    title: str = ""


def draw_alignment(
    weights: Weights,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    file: str | Path,
    *,
    title: str | None = None,
) -> Path:
    """Draw a heat map of ``weights[t, s]``: a row per target token, downwards, and a column per source token.

    Tokens may be of any script (``token_labels``; ``missing_characters`` lists the characters that no font contains).
    Returns the file, a PNG, SVG or PDF.

    Raises:
        ValueError: weights that are not ``[T S]`` with T target and S source tokens, or outside 0..1.
        ImportError: matplotlib is not installed.
    """
    return draw_alignments([Alignment(weights, source_tokens, target_tokens, title or "")], file)


def draw_heads(
    weights: Float[np.ndarray | Array, "N T S"],
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    file: str | Path,
    *,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draw a heat map per attention head, all in one figure; the default titles are "head 1", "head 2", ...

    Raises:
        ValueError: as ``draw_alignment``, or another number of titles than of heads.
        ImportError: matplotlib is not installed.
    """
    titles = [f"head {head + 1}" for head in range(len(weights))] if titles is None else titles
    if len(titles) != len(weights):
        raise ValueError(f"{len(titles)} titles for {len(weights)} heads")
    panels = [Alignment(head, source_tokens, target_tokens, name) for head, name in zip(weights, titles, strict=True)]
    return draw_alignments(panels, file)


def draw_alignments(alignments: Sequence[Alignment], file: str | Path) -> Path:
    """Draw several heat maps in one figure (PNG, SVG or PDF), in reading order, with one colour scale from 0 to 1.

    The axes are titled: source tokens are read, target tokens are written. The figure's description names the texts.

    Raises:
        ValueError: no alignment, or as ``draw_alignment``.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    if not alignments:
        raise ValueError("no alignment to draw")
    tables = [_checked(*alignment) for alignment in alignments]
    figure = make_figure(WIDTH, WIDTH, layout="none")
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    shades = sequential_colormap()
    panels = []
    for alignment, table in zip(alignments, tables, strict=True):
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        size = _draw(axes, alignment, table, shades)
        axes.set_position((0.0, 0.0, size[0] / WIDTH, size[1] / WIDTH))
        extent: Any = axes.get_tightbbox(renderer)
        panels.append(_Panel(axes, *size, *(float(edge) / figure.dpi for edge in extent.extents)))
    _arrange(figure, panels)
    return save_figure(figure, file, _describe(alignments))


def _describe(alignments: Sequence[Alignment]) -> str:
    texts = []
    for each in alignments[:DESCRIBED]:
        source, target = ("".join(tokens) for tokens in (each.source_tokens, each.target_tokens))
        name = f"{each.title}: " if each.title else ""
        texts.append(f"{name}{textwrap.shorten(target, 60)} from {textwrap.shorten(source, 60)}")
    more = [f"and {len(alignments) - DESCRIBED} more"] if len(alignments) > DESCRIBED else []
    return f"Attention weights from 0 to 1, target tokens (rows) by source tokens (columns): {'; '.join(texts + more)}."


class _Panel(NamedTuple):
    """Axes, the size of the heat map, and its extent with labels relative to its lower left corner, in inches."""

    axes: Any
    width: float
    height: float
    left: float
    bottom: float
    right: float
    top: float


def _checked(weights: Weights, source: Sequence[str], target: Sequence[str], title: str = "") -> np.ndarray:
    table = np.asarray(weights, np.float64)
    if table.ndim == 3:
        raise ValueError(f"weights are {table.shape}: of several heads? Take the mean over heads first, or draw_heads")
    if table.ndim != 2 or not table.size:
        raise ValueError(f"weights are {table.shape}, not [T S] with at least one of each")
    if table.shape != (len(target), len(source)):
        raise ValueError(f"weights are {table.shape} for {len(target)} target and {len(source)} source tokens")
    if not np.isfinite(table).all():
        raise ValueError(f"a weight is {table[~np.isfinite(table)][0]}")
    if table.min() < -1e-3 or table.max() > 1 + 1e-3:
        raise ValueError(f"weights from {table.min():g} to {table.max():g}: not in 0..1")
    return table


def _draw(axes: Any, alignment: Alignment, table: np.ndarray, shades: Any) -> tuple[float, float]:
    """Draw one heat map; return its width and height in inches."""
    cell = min(MAX_CELL, MAX_SIDE / max(table.shape))
    size = cell * table.shape[1], cell * table.shape[0]
    axes.imshow(table, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.xaxis.tick_top()
    font = min(FONT_SIZE, max(5.0, 0.8 * 72 * cell))
    every = math.ceil(1.15 * font / (72 * cell))
    for axis, tokens in ((axes.xaxis, alignment.source_tokens), (axes.yaxis, alignment.target_tokens)):
        made = token_labels(tokens[::every])
        axis.set_ticks(range(0, len(tokens), every), made.texts)
        upright = axis is axes.yaxis or all(len(text) <= 1 for text in made.texts)
        for label in axis.get_ticklabels():
            label.set(family=made.families, fontsize=font, color=INK, parse_math=False, rotation=0 if upright else 90)
    axes.set_xlabel("source (read)", fontsize=8, color=SOFT, labelpad=5)
    axes.xaxis.set_label_position("top")
    axes.set_ylabel("target (written)", fontsize=8, color=SOFT, labelpad=5)
    axes.tick_params(length=0, pad=4)
    if cell > 0.1:
        axes.set_xticks(np.arange(1, table.shape[1]) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, table.shape[0]) - 0.5, minor=True)
        axes.grid(which="minor", color=EDGE, linewidth=0.5)
        axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_color(EDGE)
    if alignment.title:
        made = text_label(alignment.title)
        text = textwrap.fill(made.texts[0], max(28, int(13 * size[0])))
        axes.set_title(text, loc="left", fontsize=10, color=INK, pad=8, family=made.families, parse_math=False)
    return size


def _arrange(figure: Any, panels: list[_Panel]) -> None:
    """Place the panels in rows, aligned at their tops, and the colour bar at the right; fit the figure to them."""
    places, x, y, row_height, width = [], 0.0, 0.0, 0.0, 0.0
    for panel in panels:
        across, down = panel.right - panel.left, panel.top - panel.bottom
        if x and x + across > WIDTH:
            x, y, row_height = 0.0, y + row_height + GAP, 0.0
        places.append((x - panel.left, y + panel.top - panel.height))
        x, row_height, width = x + across + GAP, max(row_height, down), max(width, x + across)
    first = panels[0]
    bar = min(1.5, max(1.0, first.height))
    bar_top = first.top - first.height
    height = max(y + row_height, bar_top + bar + 0.1)
    total = width + 1.1 * GAP + 0.12 + 0.6 + GAP, height + GAP
    figure.set_size_inches(total)
    margin = GAP / 2

    def box(left: float, top: float, across: float, down: float) -> tuple[float, float, float, float]:
        bottom = total[1] - margin - top - down
        return (left + margin) / total[0], bottom / total[1], across / total[0], down / total[1]

    for panel, (left, top) in zip(panels, places, strict=True):
        panel.axes.set_position(box(left, top, panel.width, panel.height))
    axes = figure.add_axes(box(width + 1.1 * GAP, bar_top, 0.12, bar), label="<colorbar>")
    colors = figure.colorbar(panels[0].axes.images[0], cax=axes, ticks=(0, 0.5, 1))
    colors.outline.set_color(EDGE)
    colors.set_label("attention weight", fontsize=8, color=SOFT)
    axes.tick_params(labelsize=7.5, colors=SOFT, length=0, pad=3)
