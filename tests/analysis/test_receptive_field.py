from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.analysis import ReceptiveField, receptive_field
from jaxseq.cores import GRU, Attention, Conv, Elman
from jaxseq.encoders import Bidirectional
from jaxseq.layers import MultiHeadAttention
from tests.analysis.flow_cases import double, made
from tests.compilation import jitted

T = 11


def outputs(core, context=None):
    """The outputs of a core as a function of its inputs, and inputs."""
    function, carry, xs = made(core, time=T, context=context)
    return (lambda xs: function(carry, xs)[1]), xs


def test_norms_are_those_of_the_jacobian_and_lags_are_counted_from_the_position(x64):
    rng = np.random.default_rng(0)
    mix, weights, xs = (jnp.asarray(rng.normal(size=shape)) for shape in ((T, T), (3, 2), (T, 3)))
    check_norms(lambda xs: jnp.tanh(jnp.tril(mix, 3) @ jnp.tanh(xs @ weights)), xs, seen=np.arange(-3, T - 3))


@pytest.mark.full
def test_an_encoder_of_both_directions_has_lags_of_both_signs(x64):
    encoder = Bidirectional(forward=double(GRU, 2), backward=double(Elman, 3))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, 3)))
    check_norms(partial(encoder.apply, encoder.init(jax.random.key(0), xs)), xs, seen=np.arange(-3, T - 3))


def check_norms(function, xs, seen):
    """The norms at position -4 are those of jacrev, and not zero at these lags alone."""
    field, jacobian = jitted(lambda xs: (receptive_field(function, xs, position=-4), jax.jacrev(function)(xs)[-4]))(xs)
    np.testing.assert_array_equal(field.lags, np.arange(-3, T - 3))
    np.testing.assert_allclose(field.norms, np.linalg.norm(jacobian, axis=(0, 2))[::-1], rtol=1e-10)
    np.testing.assert_array_equal(np.asarray(field.lags)[np.asarray(field.norms) != 0], seen)
    assert field.support == T - 4
    assert 0 < field.effective_length(0.9) <= field.effective_length(0.99) <= field.effective_length(1.0) == T - 4


@pytest.mark.parametrize("kernel, dilation", [(3, 2), pytest.param(2, 5, marks=pytest.mark.full)])
def test_support_is_that_of_a_dilated_convolution(kernel, dilation, x64):
    function, xs = outputs(double(Conv, 3, kernel_size=kernel, dilation=dilation))
    field = jitted(lambda xs: receptive_field(function, xs))(xs)
    assert field.support == (kernel - 1) * dilation
    np.testing.assert_array_equal(np.flatnonzero(field.norms), dilation * np.arange(kernel))


@pytest.mark.full
def test_a_window_bounds_attention_and_random_cotangents_keep_its_zeros(x64):
    function, xs = outputs(double(Attention, 6, num_heads=1, window=4), context=0)
    exact, random = jitted(lambda xs: (receptive_field(function, xs), receptive_field(function, xs, probes=5)))(xs)
    assert exact.support == random.support == 3
    np.testing.assert_array_equal(random.norms == 0, exact.norms == 0)


@pytest.mark.full
def test_random_cotangents_estimate_the_norms(x64):
    function, xs = outputs(double(Elman, 40))
    exact, random = jitted(lambda xs: (receptive_field(function, xs), receptive_field(function, xs, probes=39)))(xs)
    np.testing.assert_allclose(random.norms, exact.norms, rtol=0.5)


def test_lengths_of_given_norms():
    field = ReceptiveField(np.arange(-2, 5), np.sqrt([0.0, 1.0, 4.0, 3.0, 2.0, 0.0, 0.0]))
    assert field.support == 2
    assert [field.effective_length(share) for share in (0.4, 0.41, 0.8, 0.81, 1.0)] == [0, 1, 1, 2, 2]
    tiny = field._replace(norms=field.norms * 1e-200)
    assert (tiny.support, tiny.effective_length(0.8)) == (2, 1)
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"share={share}"):
            field.effective_length(share)
    with pytest.raises(ValueError, match="not all zero"):
        field._replace(norms=0 * field.norms).support  # noqa: B018


def test_bad_arguments_are_named(untyped):
    xs = jnp.zeros((4, 2))
    for position in (-5, 4):
        with pytest.raises(ValueError, match=f"position={position} is not one of 4"):
            receptive_field(jnp.sin, xs, position=position)
    with pytest.raises(ValueError, match="probes=0"):
        receptive_field(jnp.sin, xs, probes=0)
    with pytest.raises(ValueError, match=r"\[T D\], are needed, not \(4,\)"):
        receptive_field(jnp.sin, xs[:, 0])
    with pytest.raises(ValueError, match=r"maps \(4, 2\) to \(2,\)"):
        receptive_field(lambda xs: xs[0], xs)


@pytest.mark.full
@pytest.mark.parametrize("masked", [False, True])
def test_a_causal_mask_breaks_the_equivariance_to_permutations(masked, x64):
    layer = double(Attention, 4, num_heads=2, positions="none")
    if not masked:
        from jaxseq.encoders import SelfAttention

        layer = SelfAttention(MultiHeadAttention(4, num_heads=2, dtype=jnp.float64, param_dtype=jnp.float64))
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(T, 4)))
    if masked:
        carry = layer.initial_carry(())
        variables = layer.init(jax.random.key(0), carry, xs)
        function = jitted(lambda xs: layer.apply(variables, carry, xs)[1])
    else:
        function = jitted(partial(layer.apply, layer.init(jax.random.key(0), xs)))
    order = np.random.default_rng(1).permutation(T)
    error = np.abs(function(xs[order]) - function(xs)[order]).max()
    assert error > 1e-2 if masked else error < 1e-12
