"""Curves of a training run against tokens seen. They need matplotlib (extra `plots`), imported on first use."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxseq.plotting.style import (
    BLUE,
    DASHED,
    GRID,
    INK,
    PALE,
    RED,
    SOFT,
    figure_format,
    make_figure,
    require_matplotlib,
    save_figure,
)


def draw_training_curves(
    rows: Sequence[Mapping[str, Any]], folder: Path, *, clip_norm: float | None = None, suffix: str = ".png"
) -> dict[str, Path]:
    """Write one figure for each metric that ``rows`` (of ``metrics.jsonl``) has values of; returns the files by title.

    ``loss.png``, ``bits_per_character.png``, ``exact_match.png``, ``learning_rate.png``, ``gradient_norm.png``; with
    another ``suffix``, SVG or PDF.

    Raises:
        ValueError: another suffix.
        ImportError: matplotlib is not installed.
    """
    figure_format(f"figure{suffix}")
    require_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {
        "Loss": ("loss", lambda axes: _loss(axes, rows)),
        "Held-out bits per character": (
            "evaluation/bits_per_character",
            lambda axes: _held_out(axes, rows, "bits_per_character"),
        ),
        "Held-out exact match": ("evaluation/exact_match", lambda axes: _held_out(axes, rows, "exact_match")),
        "Learning rate": ("learning_rate", lambda axes: _learning_rate(axes, rows)),
        "Gradient norm before clipping": ("gradient_norm", lambda axes: _gradient_norm(axes, rows, clip_norm)),
    }
    files = {}
    for title, (name, draw) in drawings.items():
        if not points(rows, name)[0]:
            continue
        figure = make_figure(6.4, 3.8)
        axes = figure.subplots()
        _style_axes(axes, title)
        draw(axes)
        files[title] = save_figure(figure, folder / f"{name.rpartition('/')[2]}{suffix}")
    return files


def points(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """The tokens seen and the values of a metric, from the rows where it is a finite number."""
    pairs = [
        (row["tokens"], row[name])
        for row in rows
        if isinstance(row.get(name), int | float) and math.isfinite(row[name]) and "tokens" in row
    ]
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def window_of(count: int) -> int:
    """The window of the running mean of so many values; below 2, there is none."""
    return count // 40


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The centred mean over about ``window`` values; the window shrinks symmetrically towards both ends."""
    means = []
    for index in range(len(values)):
        radius = min(window // 2, index, len(values) - 1 - index)
        neighbours = values[index - radius : index + radius + 1]
        means.append(sum(neighbours) / len(neighbours))
    return means


def _style_axes(axes: Any, title: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_title(title, loc="left", fontsize=11, color=INK, pad=10)
    axes.set_xlabel("tokens seen", fontsize=9, color=SOFT)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=9, colors=SOFT, length=0)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)


def _loss(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    tokens, loss = points(rows, "loss")
    _curve(axes, tokens, loss, "training")
    # The first losses are far above the rest: set the upper limit without the largest 3 % of the values.
    visible = sorted(loss)[: max(1, math.ceil(0.97 * len(loss)))]
    margin = 0.06 * (visible[-1] - visible[0]) or 0.1
    axes.set_ylim(visible[0] - margin, visible[-1] + margin)
    axes.set_ylabel("nats per token", fontsize=9, color=SOFT)
    bits = axes.secondary_yaxis("right", functions=(lambda nats: nats / math.log(2), lambda bits: bits * math.log(2)))
    bits.set_ylabel("bits per token", fontsize=9, color=SOFT)
    bits.tick_params(labelsize=9, colors=SOFT, length=0)
    bits.spines["right"].set_visible(False)
    x, held_out = points(rows, "evaluation/loss")
    if x:
        axes.plot(x, held_out, color=RED, linewidth=1.4, marker="o", markersize=3, label="held out")
    _legend(axes)


def _held_out(axes: Any, rows: Sequence[Mapping[str, Any]], name: str) -> None:
    axes.plot(*points(rows, f"evaluation/{name}"), color=RED, linewidth=1.6, marker="o", markersize=3)
    axes.set_ylabel(name.replace("_", " "), fontsize=9, color=SOFT)


def _learning_rate(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    axes.plot(*points(rows, "learning_rate"), color=BLUE, linewidth=1.6)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate", fontsize=9, color=SOFT)


def _gradient_norm(axes: Any, rows: Sequence[Mapping[str, Any]], clip_norm: float | None) -> None:
    tokens, norms = points(rows, "gradient_norm")
    if any(norm > 0 for norm in norms):
        from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    _curve(axes, tokens, norms, "norm")
    if clip_norm:
        axes.axhline(clip_norm, color=RED, linewidth=1, linestyle=DASHED, label=f"clipped above {clip_norm:g}")
    axes.set_ylabel("norm of the gradient", fontsize=9, color=SOFT)
    _legend(axes)


def _curve(axes: Any, x: list[float], y: list[float], label: str) -> None:
    """The running mean over pale values; a short run shows the values alone."""
    window = window_of(len(y))
    if window < 2:
        axes.plot(x, y, color=BLUE, linewidth=1.6, label=label)
        return
    axes.plot(x, y, color=PALE, linewidth=0.8, label=f"{label}, as logged")
    means = running_mean(y, window)
    axes.plot(x, means, color=BLUE, linewidth=1.6, label=f"{label}, running mean of {window // 2 * 2 + 1} log lines")


def _legend(axes: Any) -> None:
    """A legend on a light ground, so that it is read over curves."""
    legend = axes.legend(fontsize=9, labelcolor=SOFT, handlelength=1.8)
    legend.get_frame().set(alpha=0.85, linewidth=0)
