"""Comparisons of variants over seeds, as dots and intervals."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxseq.plotting.labels import text_label
from jaxseq.plotting.style import BLUE, INK, PALE, RED, SOFT, figure_format, make_figure, prepare_axes, save_figure

MAX_NAME = 48
"""Names of variants are cut after this many characters."""

BASE = " (base)"
"""The end of the base's name."""


@runtime_checkable
class MeanInterval(Protocol):
    """A mean and its 95 % interval, as in ``analysis.Estimate``."""

    @property
    def mean(self) -> float:
        """The mean over seeds."""

    @property
    def low(self) -> float | None:
        """The lower end of the interval; None if there is none."""

    @property
    def high(self) -> float | None:
        """The upper end of the interval; None if there is none."""

    @property
    def excludes_zero(self) -> bool | None:
        """Whether 0 lies outside the interval; None if there is none."""


@runtime_checkable
class ComparisonRow(Protocol):
    """A variant's values of one metric by seed, and its differences to the base, as in ``analysis.Comparison``."""

    @property
    def values(self) -> Mapping[int, float]:
        """The metric by seed."""

    @property
    def estimate(self) -> MeanInterval:
        """The mean of the values."""

    @property
    def differences(self) -> Mapping[int, float]:
        """The differences to the base by seed."""

    @property
    def difference(self) -> MeanInterval | None:
        """The mean of the differences; None for the base, and without common seeds."""


def draw_comparisons(
    comparisons: Mapping[str, Mapping[str, ComparisonRow]], file: str | Path, *, title: str = "Comparison"
) -> Path:
    """Draw a dot per seed and a bar per 95 % interval: values at the left, differences to the base at the right.

    Variants whose difference excludes 0 are red. A legend explains the marks, colours and lines.

    Args:
        comparisons: by the metric's name, the comparisons of all variants (``analysis.compare_to_base``); the first
            variant is the base.
        file: the PNG, SVG or PDF to write.
        title: the beginning of the figure's title.

    Returns:
        The file.

    Raises:
        ValueError: no metric, or metrics with different variants.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    variants = [[*rows] for rows in comparisons.values()]
    if not variants or any(names != variants[0] for names in variants):
        raise ValueError(f"each metric needs the same variants; these have {variants}")
    figure = make_figure(9.6, 1.0 + len(variants) * (0.9 + 0.36 * len(variants[0])))
    heading = text_label(title)
    style: dict[str, Any] = {"ha": "left", "size": 11, "color": INK, "parse_math": False, "family": heading.families}
    figure.suptitle(heading.texts[0], x=0.01, **style)
    excluded = False
    panels = figure.subplots(len(variants), 2, sharey=True, squeeze=False)
    for (metric, rows), (left, right) in zip(comparisons.items(), panels, strict=True):
        base, *_ = rows.values()
        _prepare_panel(left, metric, variants[0], base.estimate.mean)
        _prepare_panel(right, f"{metric}: difference to the base", variants[0], 0.0)
        for row, made in enumerate(rows.values()):
            color = RED if made.difference is not None and made.difference.excludes_zero else BLUE
            excluded = excluded or color == RED
            _draw_row(left, row, made.values, made.estimate, color)
            _draw_row(right, row, made.differences, made.difference, color)
    _legend(figure, excluded)
    return save_figure(figure, file)


def _legend(figure: Any, excluded: bool) -> None:
    """What the marks, the lines and the colours are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Any] = [
        Line2D([], [], color=SOFT, linestyle="", marker=".", markersize=7, label="a seed"),
        Line2D([], [], color=SOFT, linewidth=2, marker="|", markersize=9, label="mean, 95 % interval"),
        Line2D([], [], color=PALE, linewidth=1.4, label="the base's mean (left), 0 (right)"),
        Patch(color=BLUE, label="the difference may be 0, or is unknown"),
    ]
    if excluded:
        entries.append(Patch(color=RED, label="it excludes 0"))
    figure.legend(handles=entries, loc="outside lower left", ncols=5, frameon=False, fontsize=8, labelcolor=SOFT,
                  handlelength=1.4, columnspacing=1.2)  # fmt: skip


def _prepare_panel(axes: Any, title: str, names: Sequence[str], reference: float) -> None:
    if math.isfinite(reference):
        axes.axvline(reference, color=PALE, linewidth=1, zorder=0)
    texts = [text_label(name).texts[0] for name in names]
    texts = [_cut(text) for text in texts]
    axes.set_yticks(range(len(names)), texts, parse_math=False, family=text_label(" ".join(names)).families)
    axes.set_ylim(len(names) - 0.4, -0.6)
    prepare_axes(axes, title, grid="x", title_size=9, title_color=SOFT, title_pad=6)


def _cut(text: str) -> str:
    """A name of at most ``MAX_NAME`` characters; that it is the base is never cut off."""
    name, mark, _ = text.rpartition(BASE) if text.endswith(BASE) else (text, "", "")
    return f"{name if len(name) <= MAX_NAME else f'{name[: MAX_NAME - 1]}…'}{mark}"


def _draw_row(axes: Any, row: int, dots: Mapping[int, float], bar: MeanInterval | None, color: str) -> None:
    if bar is not None and bar.low is not None:
        axes.plot([bar.low, bar.high], [row, row], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot(bar.mean, row, color=color, marker="|", markersize=11, markeredgewidth=2)
    finite = [value for value in dots.values() if math.isfinite(value)]
    heights = [row + 0.22] * len(finite)
    axes.plot(finite, heights, ".", color=color, alpha=0.6, markersize=7, markeredgewidth=0)
