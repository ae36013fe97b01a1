"""The attention over an image at each word of its caption: the image is dark where the attention is low."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxseq.plotting.labels import ELLIPSIS, text_label
from jaxseq.plotting.style import EDGE, INK, SOFT, figure_format, make_figure, require_matplotlib, save_figure
from jaxseq.typing import Array, Float, Shaped

COLUMNS, PANEL, TITLE_LINE = 6, 1.55, 0.2
"""Panels in a row; inches of a panel with its title, and of a line of text."""

LONGEST = 18
"""Characters of a word that fit the width of a panel."""

VEIL = 0.72
"""Opacity where the attention is 0."""


def draw_attention_maps(
    image: Shaped[np.ndarray | Array, "Y X 3"],
    words: Sequence[str],
    weights: Float[np.ndarray | Array, "..."] | None,
    file: str | Path,
    *,
    notes: Sequence[str] = (),
) -> Path:
    """Draw an image and, for each word of its caption, the image under a dark veil, thin where attention is high.

    The veil has an opacity of ``VEIL`` where the weight is 0, and of 0 at the largest weight of all words.
    Weights are interpolated between the centres of their cells. Returns the file, a PNG, SVG or PDF.

    Args:
        image: pixels 0 to 255.
        words: the words, which are the titles of the panels; long ones are cut.
        weights: ``[T Y' X']``, one map for each word; None draws the image alone, with the words as its caption.
        file: the PNG, SVG or PDF to write.
        notes: lines of text below the panels, such as references.

    Raises:
        ValueError: an image that is not ``[Y X 3]`` with values in 0..255, or weights that are not ``[T Y' X']`` with a
            map for each word, or negative, or not finite.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    pixels, maps = _pixels(image), None if weights is None else _maps(weights, words)
    panels = 1 + (0 if maps is None else len(words))
    columns, rows = min(COLUMNS, panels), math.ceil(panels / COLUMNS)
    lines = [piece for note in notes for piece in textwrap.wrap(note, 24 * max(columns, 3), subsequent_indent="    ")]
    height, below = PANEL * pixels.shape[0] / pixels.shape[1], TITLE_LINE * len(lines)
    width, bar = PANEL * max(columns, 3), 0.0 if maps is None else 0.75
    step = height + 1.6 * TITLE_LINE
    total = rows * step + below + 0.15
    figure = make_figure(width + bar, total, layout="none")

    def axes(index: int) -> Any:
        left, top = PANEL * (index % COLUMNS) + 0.05, step * (index // COLUMNS + 1)
        return figure.add_axes(
            (left / (width + bar), 1 - top / total, (PANEL - 0.1) / (width + bar), (height - 0.1) / total)
        )

    caption = " ".join(words)
    _panel(axes(0), pixels, textwrap.shorten(caption, 24 * max(columns, 3), placeholder=" ...") if maps is None else "")
    if maps is not None and len(maps):
        largest = float(maps.max()) or 1.0
        for index, (word, table) in enumerate(zip(words, maps, strict=True)):
            title = word if len(word) <= LONGEST else word[: LONGEST - 1] + ELLIPSIS
            shown = _panel(axes(index + 1), pixels, title, table, largest)
        place = ((width + 0.08) / (width + bar), 1 - step / total, 0.09 / (width + bar), 0.8 * height / total)
        _scale(figure, shown, place, largest)
    for index, line in enumerate(lines):
        made = text_label(line)
        place = 1 - (rows * step + 0.12 + TITLE_LINE * (index + 0.5)) / total
        figure.text(0.05 / width, place, made.texts[0], fontsize=9, color=SOFT, family=made.families, parse_math=False)
    about = "" if maps is None else ", and the image at each word under a veil that is thin where the attention is high"
    return save_figure(figure, file, " ".join([f"An image with the caption: {caption}{about}.", *notes]))


def _scale(figure: Any, shown: Any, place: tuple[float, float, float, float], largest: float) -> None:
    """The scale of the veil, from 0 to the largest weight."""
    axes = figure.add_axes(place, label="<colorbar>")
    colours = figure.colorbar(shown, cax=axes, ticks=(0, largest))
    axes.set_yticklabels(["0", f"{largest:.2g}"])
    colours.outline.set_color(EDGE)
    colours.set_label("attention weight", fontsize=7.5, color=SOFT, labelpad=2)
    axes.tick_params(labelsize=7.5, colors=SOFT, length=0, pad=3)


def _panel(axes: Any, pixels: np.ndarray, title: str, table: np.ndarray | None = None, largest: float = 1.0) -> Any:
    """One panel: the image, and over it the veil of a map."""
    size, shown = (0.0, float(pixels.shape[1]), float(pixels.shape[0]), 0.0), None
    axes.imshow(pixels, extent=size, interpolation="nearest")
    if table is not None:
        options: dict[str, Any] = {"interpolation": "bilinear", "interpolation_stage": "data", "extent": size}
        shown = axes.imshow(
            _padded(table), cmap=_veil(), vmin=0, vmax=largest, **(options | {"extent": _outer(size, table)})
        )
    axes.set_xlim(0, size[1])
    axes.set_ylim(size[2], 0)
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(EDGE)
    if title:
        made = text_label(title)
        style: dict[str, Any] = {"fontsize": 10, "color": INK, "pad": 4, "family": made.families, "parse_math": False}
        axes.set_title(made.texts[0], loc="left", **style)
    return shown


def _padded(table: np.ndarray) -> np.ndarray:
    """The map with its border repeated once, so that interpolation reaches the edge of the image."""
    return np.pad(table, 1, mode="edge")


def _outer(size: tuple[float, float, float, float], table: np.ndarray) -> tuple[float, float, float, float]:
    """The extent of the padded map around the image's."""
    _, right, bottom, _ = size
    across, down = right / table.shape[1], bottom / table.shape[0]
    return -across, right + across, bottom + down, -down


def _veil() -> Any:
    """A colour map from a dark veil to none."""
    require_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("veil", [(0.04, 0.06, 0.10, VEIL), (0.04, 0.06, 0.10, 0.0)])


def _pixels(image: Any) -> np.ndarray:
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or not pixels.size:
        raise ValueError(f"the image is {pixels.shape}, not [Y X 3]")
    if not (pixels.min() >= 0 and pixels.max() <= 255):
        raise ValueError(f"pixels lie in {pixels.min():g} to {pixels.max():g}, not 0 to 255")
    return pixels.round().astype(np.uint8)


def _maps(weights: Any, words: Sequence[str]) -> np.ndarray:
    maps = np.asarray(weights, np.float64)
    if maps.ndim != 3 or len(maps) != len(words) or 0 in maps.shape[1:]:
        raise ValueError(f"weights are {maps.shape} for {len(words)} words, not [T Y X] with a map for each word")
    if not np.isfinite(maps).all() or (maps.size and maps.min() < 0):
        raise ValueError("attention weights must be finite and not negative")
    return maps
