"""Recall of region proposals against their number and against the overlap."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxseq.plotting.labels import ELLIPSIS, text_label
from jaxseq.plotting.precision_recall import DASHES
from jaxseq.plotting.style import CYCLE, SOFT, figure_format, make_figure, prepare_axes, save_figure

LONGEST = 40
"""Names of sources are cut after this many characters."""


@runtime_checkable
class RecallTable(Protocol):
    """Recall by number of proposals and overlap, as in ``analysis.ProposalRecall``."""

    @property
    def numbers(self) -> Sequence[int]:
        """Numbers of proposals, increasing."""

    @property
    def ious(self) -> Sequence[float]:
        """Thresholds of the intersection over union, increasing."""

    @property
    def mean_number(self) -> float:
        """The mean number of proposals in an image."""

    @property
    def recall(self) -> np.ndarray:
        """The recall ``[numbers, ious]`` in 0..1."""


def draw_proposal_recall(
    tables: Mapping[str, RecallTable], file: str | Path, *, title: str = "Recall of proposals"
) -> Path:
    """Draw the recall against the number of proposals at the left, and against the overlap at the right.

    One colour a source. At the left there are lines for up to three of the overlaps, from the lowest to a high one, at
    the right for up to three of the numbers, from the greatest to a low one.

    Args:
        tables: the recall (``analysis.proposal_recall``) of each source of proposals, by its name.
        file: the PNG, SVG or PDF to write.
        title: the beginning of the title.

    Returns:
        The file.

    Raises:
        ValueError: no source, more than colours, different numbers or overlaps, or recall that is not
            ``[numbers, ious]`` in 0..1.
        ImportError: matplotlib is not installed.
    """
    figure_format(file)
    if not 0 < len(tables) <= len(CYCLE):
        raise ValueError(f"{len(tables)} sources of proposals: between 1 and {len(CYCLE)} can be drawn")
    first = next(iter(tables.values()))
    numbers, ious = list(first.numbers), list(first.ious)
    for name, table in tables.items():
        if [list(table.numbers), list(table.ious)] != [numbers, ious]:
            raise ValueError(f"{name!r} has other numbers or overlaps than the first source")
        _check(name, np.asarray(table.recall), (len(numbers), len(ious)))
    figure = make_figure(9.0, 3.9 + 0.2 * len(tables))
    left, right = figure.subplots(1, 2, sharey=True)
    prepare_axes(left, title, x_label="proposals in an image", y_label="recall")
    prepare_axes(right, x_label="intersection over union")
    left.set_xscale("log")
    left.set_ylim(-0.03, 1.03)
    left.set_xticks(numbers, [f"{number:,}" for number in numbers], minor=False)
    left.minorticks_off()
    overlaps = dict(zip(_chosen(len(ious)), DASHES, strict=False))
    amounts = {len(numbers) - 1 - place: dashes for place, dashes in zip(_chosen(len(numbers)), DASHES, strict=False)}
    for color, (name, table) in zip(CYCLE, tables.items(), strict=False):
        for column, dashes in overlaps.items():
            style: dict[str, Any] = {"color": color, "linestyle": dashes, "marker": "o", "markersize": 3}
            left.plot(numbers, table.recall[:, column], label=f"{name}, IoU {ious[column]:g}", **style)
        for row, dashes in amounts.items():
            style = {"color": color, "linestyle": dashes, "marker": "o", "markersize": 3}
            right.plot(ious, table.recall[row], label=f"{name}, {numbers[row]:,} proposals", **style)
    _dash_legend(left, {f"IoU {ious[index]:g}": dashes for index, dashes in overlaps.items()}, "upper left")
    named = {index: f"{numbers[index]:,} proposal{'' if numbers[index] == 1 else 's'}" for index in amounts}
    _dash_legend(right, {named[index]: dashes for index, dashes in amounts.items()}, "best")
    _source_legend(figure, {name: table.mean_number for name, table in tables.items()})
    return save_figure(figure, file)


def _chosen(count: int) -> list[int]:
    """Up to three places: the first, one near the middle and one near the end."""
    return sorted({round(part * (count - 1) / 9) for part in (0, 4, 8)})


def _dash_legend(axes: Any, entries: Mapping[str, Any], place: str) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=SOFT, linestyle=dashes) for dashes in entries.values()]
    axes.legend(lines, [*entries], loc=place, frameon=False, fontsize=8, labelcolor=SOFT)


def _source_legend(figure: Any, names: Mapping[str, float]) -> None:
    from matplotlib.lines import Line2D

    families = text_label(" ".join(names)).families
    shown = [name if len(name) <= LONGEST else name[: LONGEST - 1] + ELLIPSIS for name in names]
    legend = figure.legend(
        [Line2D([], [], color=color, linewidth=2) for color, _ in zip(CYCLE, names, strict=False)],
        [
            f"{text_label(name).texts[0]} ({mean:,.4g} an image)"
            for name, mean in zip(shown, names.values(), strict=True)
        ],
        loc="outside lower left",
        ncols=2,
        frameon=False,
        labelcolor=SOFT,
        prop={"size": 9, "family": list(families)},
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def _check(name: str, recall: np.ndarray, shape: tuple[int, int]) -> None:
    if recall.shape != shape or 0 in shape:
        raise ValueError(f"{name!r}: recall is {recall.shape}, not {shape}: a value for each number and overlap")
    if not (recall.min() >= 0 and recall.max() <= 1):
        raise ValueError(f"{name!r}: recall in {recall.min():g} to {recall.max():g}, not 0 to 1")
