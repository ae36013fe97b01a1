"""Comparisons of variants with a base over several seeds: means, paired differences, intervals, a table."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

INTERVAL_METHOD = (
    "Intervals: 95 %, Student t with n - 1 degrees of freedom, of the mean over seeds; differences are paired by seed. "
    "They are not corrected for the number of comparisons: of twenty without an effect, one is expected to exclude 0."
)
"""The caption of tables of intervals."""


@dataclass(frozen=True)
class Estimate:
    """The mean over ``n`` seeds and its 95 % interval; None for one seed, or if a value is not finite."""

    n: int
    mean: float
    low: float | None = None
    high: float | None = None
    excludes_zero: bool | None = None


@dataclass(frozen=True)
class Comparison:
    """A variant's values by seed, and its differences to the base for the seeds that both have.

    ``difference`` is None for the base itself, and without common seeds.
    """

    values: dict[int, float]
    estimate: Estimate
    differences: dict[int, float]
    difference: Estimate | None


def t_quantile(degrees_of_freedom: int, *, confidence: float = 0.95) -> float:
    """The t with ``P(|T| < t) = confidence`` for Student's t distribution (``scipy.stats.t``).

    Raises:
        ValueError: no degree of freedom, or a confidence that is not between 0 and 1.
    """
    if degrees_of_freedom < 1 or not 0 < confidence < 1:
        raise ValueError(f"{degrees_of_freedom} degrees of freedom (at least 1), confidence {confidence} (0 to 1)")
    from scipy import stats

    return float(stats.t.ppf((1 + confidence) / 2, degrees_of_freedom))


def mean_interval(sample: Sequence[float]) -> Estimate:
    """The mean and its 95 % interval, ``mean ± t s / sqrt(n)``, exact for normally distributed values.

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
    """``values - base`` for the seeds that both have, in the order of the base."""
    return {seed: values[seed] - base[seed] for seed in base if seed in values}


def compare_to_base(values_by_name: Mapping[str, Mapping[int, float]]) -> dict[str, Comparison]:
    """Compare variants' values of one metric, by seed, with those of the first variant, the base.

    Differences are paired by seed: effects that a seed has on all variants cancel, so that intervals of differences
    are often narrower than intervals of means.

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
    """``compare_to_base`` for every metric that all runs have, in the order of the first run.

    ``runs_by_name`` has, for each variant and seed, the metrics of a run.

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
    """A markdown table with a row per variant; ``INTERVAL_METHOD`` describes its intervals."""
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


def _interval(found: Estimate) -> str:
    """The ends of the interval, or the reason why there is none."""
    if found.low is None or found.high is None:
        return "none (one seed)" if math.isfinite(found.mean) else "none (not finite)"
    return f"[{found.low:.5g}, {found.high:.5g}]"
