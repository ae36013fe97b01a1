"""Variants against a base over several seeds: means, differences paired by seed, intervals; as a table and a figure.

The figure needs matplotlib (extra `plots`), which is imported when one is drawn.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxseq.analysis.labels import need_matplotlib, sentence

INK, SOFT, GRID = "#20242a", "#667080", "#e8eaed"
BLUE, RED, PALE = "#2b5c8f", "#b5483a", "#a9c0d8"
LONGEST = 40  # characters of a variant's name in a figure
METHOD = (
    "Intervals: 95 %, Student t with n - 1 degrees of freedom, of the mean over seeds; differences are paired by seed. "
    "They are not corrected for the number of comparisons: of twenty without an effect, one is expected to exclude 0."
)


@dataclass(frozen=True)
class Estimate:
    """The mean over ``n`` seeds, and its 95 % interval; None for one seed, or where a value is not finite."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    excludes_zero: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """A variant's values by seed, and its differences to the base by the seeds that both have.

    ``difference`` is None for the base itself, and where no seed is in common.
    """

    values: dict[int, float]
    estimate: Estimate
    differences: dict[int, float]
    difference: Estimate | None


def t_quantile(degrees: int, *, confidence: float = 0.95) -> float:
    """The t with ``P(|T| < t) = confidence`` for Student's T, from the finite series for whole degrees of freedom.

    With ``t = sqrt(degrees) tan(angle)``; Abramowitz and Stegun, 26.7.3 and 26.7.4.

    Raises:
        ValueError: no degree of freedom, or a confidence that is not between 0 and 1.
    """
    if degrees < 1 or not 0 < confidence < 1:
        raise ValueError(f"{degrees} degrees of freedom, confidence {confidence}: at least 1, and between 0 and 1")
    low, high, odd = 0.0, math.pi / 2, degrees % 2
    for _ in range(60):
        angle = (low + high) / 2
        cosine, total = math.cos(angle), 0.0
        term = cosine if odd else 1.0
        for k in range(odd, degrees - 1, 2):
            term *= cosine**2 * (k - 1) / k if k > 1 else 1
            total += term
        inside = math.sin(angle) * total
        probability = 2 / math.pi * (angle + inside) if odd else inside
        low, high = (angle, high) if probability < confidence else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def mean_interval(sample: Sequence[float]) -> Estimate:
    """The mean and its 95 % interval, ``mean ± t s / sqrt(n)``, which holds for normal values.

    Raises:
        ValueError: an empty sample.
    """
    if not sample:
        raise ValueError("no values to take a mean of")
    n, mean = len(sample), statistics.fmean(sample) if all(map(math.isfinite, sample)) else math.nan
    if n < 2 or math.isnan(mean):
        return Estimate(n, mean)
    half = t_quantile(n - 1) * statistics.stdev(sample) / math.sqrt(n)
    return Estimate(n, mean, mean - half, mean + half, abs(mean) > half)


def paired_differences(values: Mapping[int, float], base: Mapping[int, float]) -> dict[int, float]:
    """``values - base``, by the seeds that both have, in the base's order."""
    return {seed: values[seed] - base[seed] for seed in base if seed in values}


def compare_to_base(values_by_name: Mapping[str, Mapping[int, float]]) -> dict[str, Comparison]:
    """Variants' values of one metric by seed, compared with those of the first, the base.

    What a seed does to all variants alike leaves no trace in the differences: their intervals are often far narrower
    than those of the means.

    Raises:
        ValueError: no variant, or one without a value.
    """
    if not values_by_name:
        raise ValueError("no variants to compare")
    (base, base_values), *_ = values_by_name.items()
    made = {}
    for name, values in values_by_name.items():
        pairs = {} if name == base else paired_differences(values, base_values)
        difference = mean_interval([*pairs.values()]) if pairs else None
        made[name] = Comparison(dict(values), mean_interval([*values.values()]), pairs, difference)
    return made


def compare_metrics(runs_by_name: Mapping[str, Mapping[int, Mapping[str, float]]]) -> dict[str, dict[str, Comparison]]:
    """``compare_to_base`` by metrics, of variants' runs by seed: by those that all runs have, in the first run's order.

    Raises:
        ValueError: no variant, or one without a run.
    """
    rows = [row for runs in runs_by_name.values() for row in runs.values()]
    if not all(runs_by_name.values()) or not rows:
        raise ValueError(
            f"no runs of {', '.join(name for name, runs in runs_by_name.items() if not runs) or 'anything'}"
        )
    names = [name for name in rows[0] if all(name in row for row in rows)]
    return {
        name: compare_to_base(
            {variant: {seed: row[name] for seed, row in runs.items()} for variant, runs in runs_by_name.items()}
        )
        for name in names
    }


def comparison_table(comparisons: Mapping[str, Comparison]) -> str:
    """A row for each variant, in markdown; ``METHOD`` says what the intervals are."""
    lines = [
        "| variant | seeds | mean | 95 % interval | difference to base, paired | 95 % interval | excludes 0 |",
        "|:--|--:|--:|:-:|--:|:-:|:-:|",
    ]
    for row, (name, made) in enumerate(comparisons.items()):
        found, apart = made.estimate, made.difference
        cells = [name.replace("|", "\\|").replace("\n", " "), str(found.n), f"{found.mean:.5g}", _interval(found)]
        if apart is None:
            cells += ["no common seed" if row else "", "", ""]
        else:
            pairs = "" if apart.n == found.n else f" ({apart.n} pairs)"
            excludes = {True: "yes", False: "no", None: ""}[apart.excludes_zero]
            cells += [f"{apart.mean:+.4g}{pairs}", _interval(apart), excludes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def draw_comparisons(
    comparisons: Mapping[str, Mapping[str, Comparison]], file: str | Path, *, title: str = "Comparison"
) -> Path:
    """A dot for each seed, a bar for each interval: on the left the values, on the right the differences to the base.

    ``comparisons`` has what ``compare_to_base`` made by the names of metrics, of the same variants each. Variants whose
    difference excludes 0 are red. Returns the file, a PNG.

    Raises:
        ValueError: no metrics, or other variants in one than in another.
        ImportError: matplotlib is not installed.
    """
    variants = [[*made] for made in comparisons.values()]
    if not variants or any(names != variants[0] for names in variants):
        raise ValueError(f"each metric needs the same variants; these have {variants}")
    need_matplotlib()
    from matplotlib.figure import Figure

    size = (9.6, 0.7 + len(variants) * (0.9 + 0.36 * len(variants[0])))
    figure = Figure(figsize=size, dpi=150, layout="constrained", facecolor="white")
    heading = sentence(f"{title}: a dot a seed, a bar the 95 % interval of the mean, red: differs")
    style: dict[str, Any] = {"ha": "left", "size": 11, "color": INK, "parse_math": False, "family": heading.families}
    figure.suptitle(heading.texts[0], x=0.01, **style)
    panels = figure.subplots(len(variants), 2, sharey=True, squeeze=False)
    for (metric, rows), (left, right) in zip(comparisons.items(), panels, strict=True):
        base, *_ = rows.values()
        _prepare(left, metric, variants[0], base.estimate.mean)
        _prepare(right, f"{metric}: difference to the base", variants[0], 0.0)
        for row, made in enumerate(rows.values()):
            color = RED if made.difference is not None and made.difference.excludes_zero else BLUE
            _plot(left, row, made.values, made.estimate, color)
            _plot(right, row, made.differences, made.difference, color)
    figure.savefig(file, metadata={"Software": None})
    return Path(file)


def _interval(found: Estimate) -> str:
    """Its ends; or why there are none."""
    if found.low is None or found.high is None:
        return "none (one seed)" if math.isfinite(found.mean) else "none (not finite)"
    return f"[{found.low:.5g}, {found.high:.5g}]"


def _plot(axes: Any, row: int, dots: Mapping[int, float], bar: Estimate | None, color: str) -> None:
    if bar is not None and bar.low is not None:
        axes.plot([bar.low, bar.high], [row, row], color=color, linewidth=2, solid_capstyle="butt")
        axes.plot(bar.mean, row, color=color, marker="|", markersize=11, markeredgewidth=2)
    finite = [value for value in dots.values() if math.isfinite(value)]
    heights = [row + 0.22] * len(finite)
    axes.plot(finite, heights, ".", color=color, alpha=0.6, markersize=7, markeredgewidth=0)


def _prepare(axes: Any, title: str, names: Sequence[str], line: float) -> None:
    if math.isfinite(line):
        axes.axvline(line, color=PALE, linewidth=1, zorder=0)
    axes.set_title(title, loc="left", fontsize=9, color=SOFT, parse_math=False)
    texts = [sentence(name).texts[0] for name in names]
    texts = [text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…" for text in texts]
    axes.set_yticks(range(len(names)), texts, parse_math=False, family=sentence(" ".join(names)).families)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(labelsize=9, colors=SOFT, length=0)
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)
