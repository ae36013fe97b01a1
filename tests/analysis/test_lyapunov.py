import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.analysis import carry_jacobians, core_step, lyapunov_exponents
from jaxseq.cores import LSTM, Elman
from tests.analysis.flow_cases import double, made, plain
from tests.compilation import jitted


@functools.cache
def spectrum_of(name):
    """The spectrum of ``h_t = h_{t-1} R + x_t`` as a function of the matrix ``[4 4]``: a step, or a core."""
    if name == "elman":
        core, carry, xs = made(double(Elman, 4, activation="identity"), time=1200)
        params = core.args[0]["params"]

        def of_core(R):
            params["recurrent"] = R.reshape(1, 4, 1, 4)
            return lyapunov_exponents(core_step(core), carry, xs, warmup=200, every=4)

        return jitted(of_core)
    xs = jnp.asarray(np.random.default_rng(2).normal(size=(1200, 4)))
    return jitted(lambda R: lyapunov_exponents(lambda h, x: h @ R + x, jnp.zeros(4), xs, warmup=200, every=4))


@pytest.mark.parametrize("name", ["plain", pytest.param("elman", marks=pytest.mark.full)])
def test_a_linear_recurrence_has_the_logarithms_of_its_eigenvalues_moduli(name, x64):
    basis = np.random.default_rng(0).normal(size=(4, 4)) + 2 * np.eye(4)
    values = np.asarray([[1.1, 0, 0, 0], [0, 0.6, 0.5, 0], [0, -0.5, 0.6, 0], [0, 0, 0, 0.2]])  # 0.6 ± 0.5i
    spectrum = spectrum_of(name)(jnp.asarray(basis @ values @ np.linalg.inv(basis)))
    modulus = np.log(np.hypot(0.6, 0.5))
    np.testing.assert_allclose(spectrum.exponents, [np.log(1.1), modulus, modulus, np.log(0.2)], atol=2e-3)
    assert spectrum.history.shape == (250, 4)
    np.testing.assert_array_equal(spectrum.history[-1], spectrum.exponents)


@pytest.mark.parametrize("name", ["plain", pytest.param("elman", marks=pytest.mark.full)])
def test_an_orthogonal_recurrence_has_exponents_of_zero(name, x64):
    matrix = np.linalg.qr(np.random.default_rng(1).normal(size=(4, 4)))[0]
    np.testing.assert_allclose(spectrum_of(name)(jnp.asarray(matrix)).exponents, np.zeros(4), atol=1e-12)


@pytest.mark.parametrize("name", ["plain", pytest.param("lstm", marks=pytest.mark.full)])
def test_the_sum_is_the_mean_growth_of_volume(name, x64):
    core, carry, xs = plain(30) if name == "plain" else made(double(LSTM, 3), time=30)
    spectrum, steps = jitted(
        lambda xs: (lyapunov_exponents(core_step(core), carry, xs, every=3), carry_jacobians(core, carry, xs))
    )(xs)
    np.testing.assert_allclose(spectrum.exponents.sum(), np.linalg.slogdet(steps)[1].mean(), rtol=1e-9)


def test_an_erased_direction_has_an_exponent_of_minus_infinity(x64):
    def step(state, x):
        return state * jnp.asarray([2.0, 0.0])

    spectrum = jitted(lambda state: lyapunov_exponents(step, state, jnp.zeros(9), warmup=1))(jnp.ones(2))
    np.testing.assert_allclose(spectrum.exponents[0], np.log(2), rtol=1e-9)
    assert np.isneginf(spectrum.exponents[1]) and spectrum.kaplan_yorke_dimension == 1


def test_the_dimension_of_kaplan_and_yorke_and_the_unit_of_time(x64):
    @jitted
    def spectra(moduli):
        run = functools.partial(lyapunov_exponents, lambda s, x: s * moduli, jnp.ones(2), jnp.zeros(200), warmup=100)
        return run(time_step=0.1), run(count=1)

    for moduli, dimension in (([0.5, 0.25], 0.0), ([2.0, 0.25], 1.5), ([2.0, 1.5], 2.0)):
        spectrum, first = spectra(jnp.asarray(moduli))
        np.testing.assert_allclose(spectrum.kaplan_yorke_dimension, dimension, atol=1e-6)
        np.testing.assert_allclose(spectrum.exponents, np.log(moduli) / 0.1, rtol=1e-6)
        assert np.isnan(first.kaplan_yorke_dimension) == (moduli[0] > 1), "one exponent does not tell"


def lorenz(state, x):
    """One step of 0.01 by the classical Runge-Kutta method: sigma 10, rho 28, beta 8/3."""

    def slope(s):
        return jnp.stack([10 * (s[1] - s[0]), s[0] * (28 - s[2]) - s[1], s[0] * s[1] - 8 / 3 * s[2]])

    a = slope(state)
    b = slope(state + 0.005 * a)
    c = slope(state + 0.005 * b)
    return state + 0.01 / 6 * (a + 2 * b + 2 * c + slope(state + 0.01 * c))


@pytest.mark.full
def test_the_lorenz_system_has_its_known_spectrum(x64):
    """Within 1 % of 0.906 and -14.57, and within 0.01 of 0 (Sprott 2003); the dimension is 2.06."""
    run = jax.jit(lambda s: lyapunov_exponents(lorenz, s, jnp.zeros(101_000), warmup=1000, every=10, time_step=0.01))
    spectrum = run(jnp.asarray([1.0, 2.0, 20.0]))
    first, second, third = spectrum.exponents
    np.testing.assert_allclose([first, third], [0.906, -14.57], rtol=0.01)
    np.testing.assert_allclose(second, 0, atol=0.01)
    np.testing.assert_allclose(spectrum.kaplan_yorke_dimension, 2.062, atol=0.005)


def test_bad_counts_are_named():
    state, xs = jnp.ones(3), jnp.zeros(12)
    for options, message in (
        ({"count": 4}, r"count=4 must be in 1..3"),
        ({"every": 5}, r"12 steps must be multiples of every=5"),
        ({"warmup": 12}, "more than warmup"),
        ({"warmup": 3, "every": 2}, "warmup=3"),
        ({"time_step": 0.0}, "time_step=0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            lyapunov_exponents(lambda s, x: s, state, xs, **options)
    with pytest.raises(ValueError, match="one leading length"):
        lyapunov_exponents(lambda s, x: s, state, (xs, xs[:3]))
