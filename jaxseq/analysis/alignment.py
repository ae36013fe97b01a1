"""Alignments: which source position each generated token attends to, as a score and as heat maps.

Figures need matplotlib (extra `plots`), which is imported when one is drawn.
"""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from jaxseq.analysis.labels import labels, need_matplotlib, sentence
from jaxseq.typing import Array, Float, Integer

INK, SOFT, LINE = "#20242a", "#667080", "#d5d9de"
SHADES = ("#ffffff", "#a9c0d8", "#2b5c8f", "#12304f")
CELL, SPAN, WIDTH, GAP, FONT = 0.26, 15.0, 11.0, 0.3, 9.0

Weights: TypeAlias = Float[np.ndarray | Array, "..."]
Positions: TypeAlias = Integer[np.ndarray | Array, "..."]


class Alignment(NamedTuple):
    """One heat map: ``weights[t, s]`` is how much the target token ``t`` attends to the source token ``s``."""

    weights: Weights
    source_tokens: Sequence[str]
    target_tokens: Sequence[str]
    title: str = ""


def alignment_accuracy(weights: Weights | Sequence[Weights], expected: Positions | Sequence[Positions]) -> float:
    """The share of target positions with ``argmax_s weights[t, s] = expected[t]``; -1 where nothing is expected.

    ``weights`` are ``[T S]`` with ``expected`` ``[T]``, or a batch of either: ``[B T S]`` with ``[B T]``, or
    sequences of arrays of any lengths. Every target position counts alike; the first of equal weights is the argmax.

    Raises:
        ValueError: shapes that do not fit, an expected position outside the source, no expected position at all, or
            weights that are not finite.
    """
    one = not isinstance(weights, list | tuple) and np.ndim(weights) == 2
    tables, positions = ([weights], [expected]) if one else (list(weights), list(expected))
    if len(tables) != len(positions):
        raise ValueError(f"{len(tables)} alignments, but expected positions of {len(positions)}")
    right = known = 0
    for table, wanted in zip(map(_matrix, tables), map(np.asarray, positions), strict=True):
        if wanted.shape != table.shape[:1]:
            raise ValueError(f"expected positions are {wanted.shape}, weights {table.shape}: not [T] and [T S]")
        if wanted.size and not -1 <= wanted.min() <= wanted.max() < table.shape[1]:
            bad = wanted[(wanted < -1) | (wanted >= table.shape[1])][0]
            raise ValueError(f"expected position {bad} is not in a source of {table.shape[1]}")
        right += int(np.sum((table.argmax(-1) == wanted) & (wanted >= 0)))
        known += int(np.sum(wanted >= 0))
    if not known:
        raise ValueError("no target position has an expected alignment")
    return right / known


def draw_alignment(
    weights: Weights,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    file: str | Path,
    *,
    title: str | None = None,
) -> Path:
    """A heat map of ``weights[t, s]``: a row for each generated token, downwards, a column for each source token.

    Labels are made by ``labels``: any script, and code points for what no font has (``missing`` lists those). Returns
    the file, a PNG.

    Raises:
        ValueError: weights that are not ``[T S]`` with as many tokens, or outside 0..1.
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
    """The alignment of every head in a picture of its own, all in one PNG; titled "head 1", ... where not told.

    Raises:
        ValueError: as ``draw_alignment``, or not one title a head.
        ImportError: matplotlib is not installed.
    """
    titles = [f"head {head + 1}" for head in range(len(weights))] if titles is None else titles
    if len(titles) != len(weights):
        raise ValueError(f"{len(titles)} titles for {len(weights)} heads")
    panels = [Alignment(head, source_tokens, target_tokens, name) for head, name in zip(weights, titles, strict=True)]
    return draw_alignments(panels, file)


def draw_alignments(alignments: Sequence[Alignment], file: str | Path) -> Path:
    """Several alignments in one PNG, in reading order, under one colour scale from 0 to 1.

    Raises:
        ValueError: no alignment, or as ``draw_alignment``.
        ImportError: matplotlib is not installed.
    """
    if not alignments:
        raise ValueError("no alignment to draw")
    tables = [_checked(*alignment) for alignment in alignments]
    need_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, WIDTH), dpi=150, facecolor="white")
    renderer = FigureCanvasAgg(figure).get_renderer()
    shades = LinearSegmentedColormap.from_list("attention", SHADES)
    panels = []
    for alignment, table in zip(alignments, tables, strict=True):
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        size = _draw(axes, alignment, table, shades)
        axes.set_position((0.0, 0.0, size[0] / WIDTH, size[1] / WIDTH))
        extent: Any = axes.get_tightbbox(renderer)
        panels.append(_Panel(axes, *size, *(float(edge) / figure.dpi for edge in extent.extents)))
    _arrange(figure, panels, shades)
    figure.savefig(file, metadata={"Software": None})
    return Path(file)


class _Panel(NamedTuple):
    """Axes, the size of its heat map, and its extent with all labels, from the map's lower left corner; inches."""

    axes: Any
    width: float
    height: float
    left: float
    bottom: float
    right: float
    top: float


def _matrix(weights: Weights) -> np.ndarray:
    table = np.asarray(weights, np.float64)
    if table.ndim == 3:
        raise ValueError(f"weights are {table.shape}: of several heads? Take the mean over heads first, or draw_heads")
    if table.ndim != 2 or not table.size:
        raise ValueError(f"weights are {table.shape}, not [T S] with at least one of each")
    if not np.isfinite(table).all():
        raise ValueError(f"a weight is {table[~np.isfinite(table)][0]}")
    return table


def _checked(weights: Weights, source: Sequence[str], target: Sequence[str], title: str = "") -> np.ndarray:
    table = _matrix(weights)
    if table.shape != (len(target), len(source)):
        raise ValueError(f"weights are {table.shape} for {len(target)} target and {len(source)} source tokens")
    if table.min() < -1e-3 or table.max() > 1 + 1e-3:
        raise ValueError(f"weights from {table.min():g} to {table.max():g}: not in 0..1")
    return table


def _draw(axes: Any, alignment: Alignment, table: np.ndarray, shades: Any) -> tuple[float, float]:
    """Draw one heat map into axes; returns its width and height in inches."""
    cell = min(CELL, SPAN / max(table.shape))
    size = cell * table.shape[1], cell * table.shape[0]
    axes.imshow(table, cmap=shades, vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.xaxis.tick_top()
    font = min(FONT, max(5.0, 0.8 * 72 * cell))
    every = math.ceil(1.15 * font / (72 * cell))
    for axis, tokens in ((axes.xaxis, alignment.source_tokens), (axes.yaxis, alignment.target_tokens)):
        made = labels(tokens[::every])
        axis.set_ticks(range(0, len(tokens), every), made.texts)
        upright = axis is axes.yaxis or all(len(text) <= 1 for text in made.texts)
        for label in axis.get_ticklabels():
            label.set(family=made.families, fontsize=font, color=INK, parse_math=False, rotation=0 if upright else 90)
    axes.tick_params(length=0, pad=4)
    if cell > 0.1:
        axes.set_xticks(np.arange(1, table.shape[1]) - 0.5, minor=True)
        axes.set_yticks(np.arange(1, table.shape[0]) - 0.5, minor=True)
        axes.grid(which="minor", color=LINE, linewidth=0.5)
        axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_color(LINE)
    if alignment.title:
        made = sentence(alignment.title)
        text = textwrap.fill(made.texts[0], max(28, int(13 * size[0])))
        axes.set_title(text, loc="left", fontsize=10, color=INK, pad=8, family=made.families, parse_math=False)
    return size


def _arrange(figure: Any, panels: list[_Panel], shades: Any) -> None:
    """Panels from left to right on shelves, their tops level, the colour bar at the right; the figure fits them."""
    places, x, y, shelf, width = [], 0.0, 0.0, 0.0, 0.0
    for panel in panels:
        across, down = panel.right - panel.left, panel.top - panel.bottom
        if x and x + across > WIDTH:
            x, y, shelf = 0.0, y + shelf + GAP, 0.0
        places.append((x - panel.left, y + panel.top - panel.height))
        x, shelf, width = x + across + GAP, max(shelf, down), max(width, x + across)
    first = panels[0]
    bar = min(1.5, max(0.8, first.height))
    bar_top = first.top - first.height
    height = max(y + shelf, bar_top + bar + 0.1)
    total = width + 1.1 * GAP + 0.12 + 0.35 + GAP, height + GAP
    figure.set_size_inches(total)
    margin = GAP / 2

    def box(left: float, top: float, across: float, down: float) -> tuple[float, float, float, float]:
        bottom = total[1] - margin - top - down
        return (left + margin) / total[0], bottom / total[1], across / total[0], down / total[1]

    for panel, (left, top) in zip(panels, places, strict=True):
        panel.axes.set_position(box(left, top, panel.width, panel.height))
    axes = figure.add_axes(box(width + 1.1 * GAP, bar_top, 0.12, bar))
    colors = figure.colorbar(panels[0].axes.images[0], cax=axes, ticks=(0, 0.5, 1))
    colors.outline.set_color(LINE)
    axes.tick_params(labelsize=7.5, colors=SOFT, length=0, pad=3)
