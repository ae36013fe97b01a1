"""Precision against recall, one curve a class."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxseq.plotting.labels import ELLIPSIS, text_label
from jaxseq.plotting.style import CYCLE, PALE, SOFT, figure_format, make_figure, prepare_axes, save_figure

DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.2, 1.4)))
"""Line styles: classes beyond the first ``len(CYCLE)`` repeat the colours with the next style."""

LONGEST = 24
"""Names of classes are cut after this many characters."""


@runtime_checkable
class PrecisionCurve(Protocol):
    """Precision and recall of a class after each detection, as in ``analysis.ClassPrecision``."""

    @property
    def name(self) -> str:
        """The name of the class."""

    @property
    def ap(self) -> float | None:
        """The average precision; None for a class without objects."""

    @property
    def precision(self) -> np.ndarray:
        """Precision after each detection, best first."""

    @property
    def recall(self) -> np.ndarray:
        """Recall after each detection."""

    @property
    def objects(self) -> int:
        """The number of objects of the class."""


def draw_precision_recall(
    curves: Sequence[PrecisionCurve], file: str | Path, *, mean: int | float, title: str = "Precision and recall"
) -> Path:
    """Draw the interpolated precision of each class, the greatest one at this recall or a higher one.

    The legend names the classes with their AP and number of objects, the best first. Of more classes than the 27 that
    colours and line styles tell apart, the worst are named and the others drawn pale. A curve ends with a dot at the
    last correct detection; a class without any has none. Classes without objects have no curve and are named below.

    Args:
        curves: the classes (``analysis.AveragePrecision.classes``).
        file: the PNG, SVG or PDF to write.
        mean: the mean AP, for the title.
        title: the beginning of the title.

    Returns:
        The file.

    Raises:
        ValueError: no class with objects, or precision and recall that are not of one length, outside 0..1, or
            recall that falls.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    drawn = sorted((each for each in curves if each.ap is not None), key=lambda each: -(each.ap or 0.0))
    if not drawn:
        raise ValueError(f"none of {len(curves)} classes has objects: there is no precision to draw")
    for curve in drawn:
        _check(curve)
    most = len(CYCLE) * len(DASHES)
    named = drawn if len(drawn) <= most else drawn[-(most - 1) :]
    missing = ", ".join(each.name.replace(" ", "\u00a0") for each in curves if each.ap is None)
    lines = textwrap.wrap(f"without objects: {missing}", 100, max_lines=3, placeholder=" ...") if missing else []

    rows = len(named) + (len(named) < len(drawn))
    height = max(3.8, 0.7 + 0.165 * rows) + 0.17 * len(lines)
    figure = make_figure(7.2, height)
    axes = figure.subplots()
    prepare_axes(axes, f"{title}: mean AP {mean:.3f}", x_label="recall", y_label="precision")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.03, 1.03)
    for curve in drawn[: len(drawn) - len(named)]:
        _draw(axes, curve, color=PALE, linewidth=0.8, zorder=1)
    if len(named) < len(drawn):
        axes.plot([], [], color=PALE, linewidth=0.8, label=f"{len(drawn) - len(named)} better classes")
    for index, curve in enumerate(named):
        style = {"color": CYCLE[index % len(CYCLE)], "linestyle": DASHES[index // len(CYCLE)]}
        _draw(axes, curve, linewidth=1.5, zorder=2, label=_label(curve), **style)
    _legend(figure, named)
    for index, line in enumerate(lines):
        made = text_label(line)
        place = 0.17 * (len(lines) - index - 0.5) / height
        figure.text(0.01, place, made.texts[0], fontsize=8, color=SOFT, family=made.families, parse_math=False)
    if lines:
        figure.get_layout_engine().set(rect=(0, 0.17 * len(lines) / height, 1, 1 - 0.17 * len(lines) / height))
    return save_figure(figure, file)


def _draw(axes: Any, curve: PrecisionCurve, **options: Any) -> None:
    recall = np.asarray(curve.recall, np.float64)
    kept = recall[: np.searchsorted(recall, recall[-1]) + 1] if recall.size and recall[-1] > 0 else recall[:0]
    precision, recall = np.asarray(curve.precision, np.float64)[: len(kept)], kept
    best = np.maximum.accumulate(precision[::-1])[::-1]
    x, y = np.append(np.zeros(min(1, len(best))), recall), np.append(best[:1], best)
    axes.plot(x, y, drawstyle="steps-pre", solid_joinstyle="miter", **options)
    axes.plot(x[-1:], y[-1:], marker="o", markersize=3, color=options["color"], zorder=options["zorder"])


def _label(curve: PrecisionCurve) -> str:
    name = curve.name if len(curve.name) <= LONGEST else curve.name[: LONGEST - 1] + ELLIPSIS
    return f"{curve.ap:.2f}  {text_label(name).texts[0]} ({curve.objects})"


def _legend(figure: Any, named: Sequence[PrecisionCurve]) -> None:
    families = text_label(" ".join(curve.name for curve in named)).families
    legend = figure.legend(
        loc="outside right upper",
        frameon=False,
        title="AP, class (objects)\n• last correct detection",
        title_fontproperties={"size": 8},
        prop={"size": 8, "family": list(families)},
        labelcolor=SOFT,
        handlelength=2.4,
        labelspacing=0.3,
        alignment="left",
    )
    legend.get_title().set_color(SOFT)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _check(curve: PrecisionCurve) -> None:
    precision, recall = np.asarray(curve.precision), np.asarray(curve.recall)
    if precision.ndim != 1 or precision.shape != recall.shape:
        raise ValueError(f"class {curve.name!r}: precision is {precision.shape}, recall {recall.shape}")
    if (np.diff(recall) < 0).any():
        raise ValueError(f"class {curve.name!r}: recall falls")
    for name, values in (("precision", precision), ("recall", recall)):
        if values.size and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(f"class {curve.name!r}: {name} in {values.min():g} to {values.max():g}, not 0 to 1")
