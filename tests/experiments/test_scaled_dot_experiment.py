"""The experiment on the scale of dot products: what it measures at its smoke size, against theory and autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from compilation import jitted, unoptimized

from experiments import scaled_dot
from experiments.scaled_dot import Config, main
from jaxseq.training import read_json


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The config and the results of a smoke run."""
    config = Config(tmp_path_factory.mktemp("scaled-dot") / "run", smoke=True)
    with unoptimized():
        return config, main(config)


def test_variances_are_those_of_theory_within_sampling_error(finished):
    config, results = finished
    rows = read_json(config.run / "sizes.json")
    assert [row["size"] for row in rows] == [1, 16]
    for row in rows:
        size = row["size"]
        np.testing.assert_allclose(row["variance"], size, rtol=0.2)
        np.testing.assert_allclose(row["scaled_variance"], 1, rtol=0.2)
        np.testing.assert_allclose(row["dependent_variance"], size**2 + 2 * size, rtol=0.2)
    assert results["variance_over_size"] == pytest.approx(rows[-1]["variance"] / 16)


def test_without_the_scale_the_weights_have_less_entropy(finished):
    first, last = read_json(finished[0].run / "sizes.json")
    assert first["entropy"] == first["scaled_entropy"]
    assert last["entropy"][1] < last["scaled_entropy"][1] - 0.5


def test_a_large_sharpness_leaves_no_gradient_of_hardmax_and_soft_argmax_but_that_of_smooth_max(finished):
    rows = read_json(finished[0].run / "sharpness.json")
    for name in ("hardmax", "soft_argmax"):
        medians = [row[name][1] for row in rows]
        assert medians[-1] < 0.01 * max(medians) and medians[0] < max(medians)
    np.testing.assert_allclose(rows[-1]["smooth_max"][1], 1, atol=1e-3)
    assert 1 < finished[1]["best_t"] < 10


def test_the_norm_is_that_of_the_softmax_jacobian(x64):
    scores = np.random.default_rng(0).normal(size=(3, 7))
    jacobians = jitted(jax.vmap(jax.jacfwd(jax.nn.softmax)))(jnp.asarray(scores))
    found = scaled_dot.softmax_derivative_norm(scipy.special.softmax(scores, axis=-1))
    np.testing.assert_allclose(found, np.linalg.norm(jacobians, axis=(1, 2)), rtol=1e-12)


def test_figure_report_and_results_are_written(finished):
    config, results = finished
    for name in ("scores", "derivatives"):
        assert (config.run / f"figures/scaled-dot-{name}.png").stat().st_size > 10_000
    assert (config.run / "report.html").is_file()
    assert read_json(config.run / "results.json") == results


@pytest.mark.parametrize(("name", "value"), [("sizes", (0,)), ("sizes", ()), ("num_keys", 1), ("draws", 0)])
def test_sizes_that_cannot_be_measured_are_named(name, value):
    with pytest.raises(ValueError, match=name):
        Config(**{name: value})
