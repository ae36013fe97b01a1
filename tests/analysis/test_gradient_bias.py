"""The bias of a gradient: the law of cosines, and what is refused."""

import numpy as np
import pytest

from jaxseq.analysis import gradient_bias


@pytest.mark.parametrize("seed", range(5))
def test_the_three_measures_obey_the_law_of_cosines_and_scale(seed):
    random = np.random.default_rng(seed)
    one, other = ({"w": random.normal(size=(3, 5)), "b": [random.normal(size=7), random.normal()]} for _ in range(2))
    bias = gradient_bias(one, other)
    assert bias.relative_error**2 == pytest.approx(1 + bias.norm_ratio**2 - 2 * bias.norm_ratio * bias.cosine)
    scaled = {"w": -2e-9 * one["w"], "b": [-2e-9 * leaf for leaf in one["b"]]}
    assert gradient_bias(one, scaled) == pytest.approx((-1, 2e-9, 1 + 2e-9), rel=1e-12)


def test_a_zero_approximation_has_no_angle():
    assert gradient_bias(np.ones(3), np.zeros(3)) == pytest.approx((0, 0, 1))


@pytest.mark.parametrize("exact", [np.zeros(3), np.full(3, np.nan), np.array([1, np.inf, 1]), np.ones(4), [np.ones(3)]])
def test_gradients_without_a_direction_or_of_other_parameters_are_refused(exact):
    with pytest.raises(ValueError, match="gradient"):
        gradient_bias(exact, np.ones(3))
