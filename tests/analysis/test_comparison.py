"""Comparisons over seeds: intervals are Student's, differences are paired, the table omits nothing."""

import math

import numpy as np
import pytest
import scipy.stats

from jaxseq.analysis import (
    Estimate,
    compare_metrics,
    compare_to_base,
    comparison_table,
    mean_interval,
    paired_differences,
    t_quantile,
)


@pytest.mark.parametrize("confidence", [0.5, 0.95, 0.999])
def test_quantiles_are_those_of_student(confidence):
    for degrees in [*range(1, 31), 99, 1000]:
        expected = scipy.stats.t.ppf((1 + confidence) / 2, degrees)
        assert t_quantile(degrees, confidence=confidence) == pytest.approx(expected, rel=1e-10)


def test_intervals_are_those_of_scipy():
    random = np.random.default_rng(0)
    for n in (2, 3, 7):
        sample = random.normal(3, 2, n).tolist()
        found, peer = mean_interval(sample), scipy.stats.ttest_1samp(sample, 0)
        expected = peer.confidence_interval(0.95)
        assert (found.n, found.mean) == (n, pytest.approx(np.mean(sample)))
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
        assert found.excludes_zero == (peer.pvalue < 0.05)
    assert mean_interval([2.5]) == Estimate(1, 2.5, None, None, None)


def test_an_interval_holds_the_mean_19_times_in_20():
    random, held = np.random.default_rng(0), 0
    for sample in random.normal(1, 5, (4000, 3)).tolist():
        found = mean_interval(sample)
        held += found.low < 1 < found.high
    assert abs(held / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_differences_are_paired_by_seed_in_any_order():
    noise = {0: 0.3, 1: -1.7, 2: 2.4, 3: 0.9}
    base = {seed: 10 * value for seed, value in noise.items()}
    other = {seed: 10 * noise[seed] + 2 + 0.01 * noise[seed] for seed in reversed(noise)}
    found = compare_to_base({"base": base, "other": other})
    peer = scipy.stats.ttest_rel([other[seed] for seed in base], [*base.values()]).confidence_interval(0.95)
    made = found["other"]
    assert (made.difference.low, made.difference.high) == pytest.approx((peer.low, peer.high))
    assert made.difference.excludes_zero and found["base"].difference is None
    assert made.estimate.low < found["base"].estimate.mean < made.estimate.high  # noise hides it unpaired


def test_only_seeds_in_common_are_paired_and_the_table_says_how_many():
    found = compare_to_base({"base": {0: 1.0, 1: 2.0, 2: 4.0}, "a|b": {2: 5.0, 1: 4.0, 7: 9.0}, "c": {9: 1.0}})
    assert found["a|b"].differences == {1: 2.0, 2: 1.0} == paired_differences(found["a|b"].values, {1: 2.0, 2: 4.0})
    assert found["c"].difference is None
    base, other, last = comparison_table(found).splitlines()[2:]
    assert base.startswith("| base | 3 | 2.3333 | [") and base.endswith("] |  |  |  |")
    assert other.startswith(r"| a\|b | 3 | 6 |") and "| +1.5 (2 pairs) |" in other and other.endswith("| no |")
    assert last == "| c | 1 | 1 | none (one seed) | no common seed |  |  |"


def test_what_is_not_finite_has_no_interval():
    for value in (math.inf, -math.inf, math.nan):
        found = compare_to_base({"base": {0: 1.0, 1: 2.0}, "other": {0: value, 1: 3.0}})
        for made in (found["other"].estimate, found["other"].difference):
            assert math.isnan(made.mean) and (made.n, made.low, made.excludes_zero) == (2, None, None)
        assert comparison_table(found).count("none (not finite)") == 2


def test_metrics_are_those_that_all_runs_have():
    runs = {"base": {0: {"a": 1.0, "b": 2.0, "c": 0.0}}, "x": {0: {"c": 1.0, "b": 2.0}, 1: {"b": 2.0, "c": 1.0}}}
    found = compare_metrics(runs)
    assert [*found] == ["b", "c"] and found["c"] == compare_to_base({"base": {0: 0.0}, "x": {0: 1.0, 1: 1.0}})


@pytest.mark.parametrize(
    "call",
    [lambda: t_quantile(0), lambda: t_quantile(3, confidence=1.0), lambda: mean_interval([]),
     lambda: compare_to_base({}), lambda: compare_to_base({"base": {}}), lambda: compare_metrics({"base": {}}),
     lambda: compare_metrics({})],
)  # fmt: skip
def test_nothing_to_compare_is_refused(call):
    with pytest.raises(ValueError):
        call()
