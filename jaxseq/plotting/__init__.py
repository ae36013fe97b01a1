"""Figures in one style: alignments, comparisons, curves. Needs matplotlib (extra ``plots``) when one is drawn."""

from jaxseq.plotting.style import (
    BLUE,
    CYCLE,
    DASHED,
    EDGE,
    GRID,
    INK,
    MUTED,
    PALE,
    RED,
    SEQUENTIAL,
    SOFT,
    make_figure,
    prepare_axes,
    require_matplotlib,
    save_figure,
    sequential_colormap,
)

__all__ = [
    "BLUE",
    "CYCLE",
    "DASHED",
    "EDGE",
    "GRID",
    "INK",
    "MUTED",
    "PALE",
    "RED",
    "SEQUENTIAL",
    "SOFT",
    "make_figure",
    "prepare_axes",
    "require_matplotlib",
    "save_figure",
    "sequential_colormap",
]
