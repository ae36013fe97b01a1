"""The style that all figures share: colours, figures, axes, saving.

Figures need matplotlib (extra ``plots``), which is imported when one is drawn.
"""

import io
from pathlib import Path
from typing import Any, Literal

from jaxseq.files import write_output
from jaxseq.plotting.descriptions import describe_figure, one_line

INK, SOFT, GRID = "#20242a", "#667080", "#e8eaed"
"""Colours of titles and text, of labels and ticks, and of grid lines."""

BLUE, RED, PALE = "#2b5c8f", "#b5483a", "#a9c0d8"
"""Colours of the first curve, of highlights, and of the background."""

EDGE, MUTED = "#d5d9de", "#aab2bb"
"""Greys of frames and background curves, and of less important elements."""

CYCLE = (BLUE, RED, "#2f8f6b", "#8a5fa8", "#c58a1b", "#4aa3c7", "#6b7a1e", "#d0668f", "#7a5a3c")
"""Colours for categories, in order."""

SEQUENTIAL = ("#ffffff", PALE, BLUE, "#12304f")
"""Anchors of the colour map from the lowest to the highest value."""

DASHED = (0, (4, 3))
"""The line style of reference lines."""

METADATA: dict[str, dict[str, None]] = {
    "png": {"Software": None},
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}
"""The formats of figures, and what matplotlib would write into them that changes with the time or the version."""


DESCRIPTION = {"png": "Description", "svg": "Description", "pdf": "Subject"}
"""The names of the metadata that hold a figure's description."""


def require_matplotlib() -> Any:
    """Import matplotlib and return the module.

    Raises:
        ImportError: matplotlib is not installed; names the extra.
    """
    try:
        import matplotlib.figure
    except ImportError:
        message = "figures need matplotlib: pip install 'jaxseq[plots]'"
        raise ModuleNotFoundError(message, name="matplotlib") from None
    return matplotlib


def make_figure(
    width: int | float, height: int | float, *, layout: Literal["constrained", "none"] = "constrained", dpi: int = 150
) -> Any:
    """A white ``matplotlib.figure.Figure`` of ``width`` by ``height`` inches, without pyplot.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return require_matplotlib().figure.Figure(figsize=(width, height), dpi=dpi, layout=layout, facecolor="white")


def prepare_axes(
    axes: Any,
    title: str = "",
    *,
    x_label: str = "",
    y_label: str = "",
    grid: Literal["both", "x", "y"] = "both",
    title_size: int | float = 11,
    title_color: str = INK,
    title_pad: int | float = 10,
    tick_size: int | float = 9,
) -> None:
    """Set a title at the left, axis labels, a grid behind the data, no tick marks, and the bottom spine alone.

    ``$`` in texts is an ordinary character (no mathematical notation). Sizes and ``title_pad`` are in points.
    """
    style: dict[str, Any] = {"parse_math": False}
    if title:
        axes.set_title(title, loc="left", fontsize=title_size, color=title_color, pad=title_pad, **style)
    if x_label:
        axes.set_xlabel(x_label, fontsize=9, color=SOFT, **style)
    if y_label:
        axes.set_ylabel(y_label, fontsize=9, color=SOFT, **style)
    axes.tick_params(labelsize=tick_size, colors=SOFT, length=0)
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)


def sequential_colormap() -> Any:
    """A ``matplotlib.colors.Colormap`` from white (lowest) to dark blue (highest).

    Raises:
        ImportError: matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("jaxseq", SEQUENTIAL)


def figure_format(file: str | Path) -> str:
    """The format of a figure's file by its suffix: ``"png"``, ``"svg"`` or ``"pdf"``.

    Raises:
        ValueError: another suffix; names the known ones.
    """
    suffix = Path(file).suffix.lower().removeprefix(".")
    if suffix not in METADATA:
        raise ValueError(f"{file} is not a figure's file: known are {', '.join(f'.{name}' for name in METADATA)}")
    return suffix


def save_figure(figure: Any, file: str | Path, description: str = "") -> Path:
    """Write a figure as PNG, SVG or PDF, by the suffix, and return its path.

    The same figure always gives the same bytes: no date, no version of matplotlib, no random ids. The file holds what
    the figure shows in words, for those who do not see it: ``description``, or what ``describe_figure`` makes of it.

    Raises:
        ValueError: another suffix, or a folder.
        OSError: the file cannot be written.
    """
    kind, matplotlib, content = figure_format(file), require_matplotlib(), io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "jaxseq"}):
        told = {DESCRIPTION[kind]: one_line(description or describe_figure(figure))}
        figure.savefig(content, format=kind, metadata=METADATA[kind] | told)
    write_output(Path(file), content.getvalue())
    return Path(file)
