from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.analysis import (
    carry_flow,
    carry_jacobians,
    carry_jvp,
    carry_vector,
    carry_vjp,
    loss_flow,
    norm_bound,
    output_jacobian,
    with_carry_vector,
)
from jaxseq.analysis.carry_flow import default_lags
from jaxseq.cores import LSTM
from tests.analysis.flow_cases import RECURRENT, made, plain, simple
from tests.compilation import jitted

T = 7
LAGS = [0, 3, 1, T]


def products(name):
    """Results of the functions, and jacfwd of the whole, in one program."""
    core, carry, xs = plain(T) if name == "plain" else made(RECURRENT[name](), time=T)
    size = carry_vector(carry).size
    rng = np.random.default_rng(1)
    tangents, cotangents = (jnp.asarray(rng.normal(size=(size, k))) for k in (1, 2))

    @jitted
    def run(xs, tangents, cotangents):
        def last(vector):
            return carry_vector(core(with_carry_vector(carry, vector), xs)[0])

        return {
            "steps": carry_jacobians(core, carry, xs),
            "whole": jax.jacfwd(last)(carry_vector(carry)),
            "pushed": carry_jvp(core, carry, xs, tangents),
            "pulled": carry_vjp(core, carry, xs, cotangents),
            "flow": carry_flow(core, carry, xs, lags=LAGS, singular_values=3),
        }

    return jax.device_get(run(xs, tangents, cotangents)), np.asarray(tangents), np.asarray(cotangents)


CASES = ["plain", *(pytest.param(name, marks=pytest.mark.full) for name in RECURRENT)]


@pytest.mark.parametrize("name", CASES)
def test_step_jacobians_products_and_spectra_are_those_of_the_whole(name, x64):
    found, tangents, cotangents = products(name)
    suffixes = {lag: reduce(np.matmul, found["steps"][T - lag :][::-1], np.eye(len(tangents))) for lag in LAGS}
    np.testing.assert_allclose(suffixes[T], found["whole"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["pushed"], found["whole"] @ tangents, rtol=0, atol=1e-10)
    np.testing.assert_allclose(found["pulled"], found["whole"].T @ cotangents, rtol=0, atol=1e-10)
    for lag, norm, values in zip(*found["flow"], strict=True):
        spectrum = np.linalg.svd(suffixes[int(lag)], compute_uv=False)
        np.testing.assert_allclose(values, spectrum[:3], rtol=1e-8, atol=1e-12)
        np.testing.assert_allclose(norm, np.sqrt(np.square(spectrum).sum()), rtol=1e-8, atol=1e-12)


def test_random_products_find_norms_and_singular_values(x64):
    core, carry, xs = plain(T, size=12)
    exact, random, hutchinson = jitted(
        lambda xs: tuple(
            carry_flow(core, carry, xs, lags=[0, 1, 4, T], singular_values=s, probes=p)
            for s, p in ((3, None), (3, 8), (0, 23))
        )
    )(xs)
    np.testing.assert_allclose(random.singular_values, exact.singular_values, rtol=0.01)
    assert (random.singular_values <= exact.singular_values * (1 + 1e-9)).all()
    np.testing.assert_allclose(random.norms, exact.norms, rtol=0.05)
    np.testing.assert_allclose(hutchinson.norms, exact.norms, rtol=0.3)
    assert hutchinson.singular_values.shape == (4, 0)


def test_the_bound_of_a_recurrent_matrix_holds_and_is_reached(x64):
    R = jnp.asarray(0.9 * np.linalg.qr(np.random.default_rng(0).normal(size=(5, 5)))[0])
    bound = norm_bound(R, 1.0, range(T + 1))
    np.testing.assert_allclose(bound, 0.9 ** np.arange(T + 1), rtol=1e-9)

    def largest(activation):
        core, carry, xs = simple(R, activation, T)
        return jitted(lambda xs: carry_flow(core, carry, xs, lags=range(T + 1)))(xs).singular_values[:, 0]

    np.testing.assert_allclose(largest(lambda h: h), bound, rtol=1e-9)
    assert (largest(jnp.tanh)[1:] < bound[1:]).all()


@pytest.mark.parametrize("features, width", [(3, 2), pytest.param(2, 3, marks=pytest.mark.full)])
def test_the_output_jacobian_is_that_of_the_outputs_and_causal(features, width, x64):
    core, carry, xs = plain(5, features, width)
    found, want = jitted(lambda xs: (output_jacobian(core, carry, xs), jax.jacrev(lambda xs: core(carry, xs)[1])(xs)))(
        xs
    )
    assert found.shape == (5, features, 5, width)
    np.testing.assert_allclose(found, want, rtol=0, atol=1e-12)
    assert not any(found[t, :, t + 1 :].any() for t in range(5))


def test_default_lags_are_few_and_reach_the_start():
    for time in (1, 2, 31, 1024):
        lags = default_lags(time)
        assert lags[:2] == [0, 1] and lags[-1] == time and lags == sorted(set(lags)) and len(lags) <= 33


def test_bad_lags_counts_and_vectors_are_named(untyped):
    core, carry, xs = plain(4)
    for options, message in (
        ({"lags": [0, 5]}, r"lags=\[0, 5\] must be in 0..4"),
        ({"lags": [-1]}, r"lags=\[-1\]"),
        ({"lags": []}, r"at least one"),
        ({"singular_values": 7}, r"singular_values=7 must be in 0..6"),
        ({"probes": 0}, r"probes=0"),
    ):
        with pytest.raises(ValueError, match=message):
            carry_flow(core, carry, xs, **options)
    with pytest.raises(ValueError, match=r"tangents must be float32\[C=6, K\], not float32\(2, 3\)"):
        carry_jvp(core, carry, xs, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"cotangents must be"):
        carry_vjp(core, carry, xs, jnp.ones(3))
    with pytest.raises(ValueError, match=r"\[T D\], are needed, not \(2,\)"):
        output_jacobian(core, carry, xs[0])
    with pytest.raises(ValueError, match=r"R\(2, 3\)"):
        norm_bound(np.ones((2, 3)), 1.0, [1])


@pytest.mark.full
def test_a_wide_core_over_a_long_sequence_needs_little_memory():
    """An LSTM of 512 features over 1024 positions: a tenth of the 2 GB that one [T C C] Jacobian in 16 bits takes."""
    module = LSTM(512)
    carry, xs = module.initial_carry(()), jax.ShapeDtypeStruct((1024, 512), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), carry, xs)

    def run(variables, xs):
        core = partial(module.apply, variables)
        return carry_flow(core, carry, xs), loss_flow(core, carry, xs, jnp.sum)

    memory = jitted(run).lower(variables, xs).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 0.2e9
