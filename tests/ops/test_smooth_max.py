"""Smooth max, soft argmax and hardmax: closed forms, derivatives of every order and mode, limits, excluded entries."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted
from jax.test_util import check_grads
from scipy.special import entr, logsumexp, softmax

from jaxseq.ops import hardmax, smooth_max, soft_argmax

FULL = pytest.mark.full
FUNCTIONS = [smooth_max, soft_argmax, hardmax]
INF = np.inf
RANDOM = np.random.default_rng(0).normal(size=(4, 5))
ROWS = {
    "random, small t": (RANDOM[0], 0.3),
    "random": (RANDOM[1], 1.0),
    "random, large t": (RANDOM[2], 20.0),
    "all equal": (np.full(5, RANDOM[0, 0]), 2.0),
    "excluded": ([0.3, -INF, 1.1, -INF, -INF], 1.3),
    "excluded, huge t": ([0.3, -INF, 1.1, -INF, -INF], 1e4),
    "all excluded": ([-INF] * 5, 1e4),
    "infinite": ([INF, 2.0, INF, -INF, -3.0], 2.0),
    "three maxima": ([2.0, 5.0, 5.0, 5.0, -9.0], 50.0),
    "far apart": ([3e4, -3e4, 1.0, 0.0, 2.9e4], 1e4),
    "at the limits": ([1e308, -1e308, 0.0, 0.0, 0.0], 0.5),
    "missing": ([0.0, np.nan, 0.0, -INF, 1.0], 2.0),
}
COTANGENT = np.array([0.3, -1.2, 0.7, 2.0, 0.1])
"""Sums hardmax into one number."""
INDEX = np.arange(5.0)


class Derivatives(NamedTuple):
    """A value, the gradients by x and t, and the four parts of the Hessian, for each row."""

    value: np.ndarray
    by_x: np.ndarray
    by_t: np.ndarray
    hessian: tuple


def derivatives(function) -> dict[str, Derivatives]:
    """Of each row, named; reverse mode once, forward over reverse twice, both under vmap."""

    def of_row(x, t):
        value, gradients = jax.value_and_grad(function, (0, 1))(x, t)
        return Derivatives(value, *gradients, jax.hessian(function, (0, 1))(x, t))

    xs, ts = (jnp.asarray(np.array(part, np.float64)) for part in zip(*ROWS.values(), strict=True))
    found = jax.tree.map(np.asarray, jitted(jax.vmap(of_row))(xs, ts))
    return {name: jax.tree.map(lambda leaf, row=row: leaf[row], found) for row, name in enumerate(ROWS)}


@pytest.fixture(scope="module")
def found():
    """By function: smooth max, soft argmax, and hardmax times a constant vector."""
    with jax.enable_x64(True):
        forms = {smooth_max: smooth_max, soft_argmax: soft_argmax}
        forms[hardmax] = lambda x, t: (COTANGENT * hardmax(x, t)).sum()
        return {function: derivatives(form) for function, form in forms.items()}


@pytest.mark.parametrize("name", ["random, small t", "random", "random, large t", "all equal"])
def test_values_and_gradients_equal_closed_forms(found, name):
    x, t = np.asarray(ROWS[name][0]), ROWS[name][1]
    s = softmax(t * x)
    mean = (INDEX * s).sum()
    one = found[smooth_max][name]
    np.testing.assert_allclose(one.value, logsumexp(t * x) / t, rtol=1e-14)
    np.testing.assert_allclose(one.by_x, s, rtol=1e-12)
    np.testing.assert_allclose(one.by_t, -entr(s).sum() / t**2, rtol=1e-9)
    one = found[soft_argmax][name]
    np.testing.assert_allclose(one.value, mean, rtol=1e-13)
    np.testing.assert_allclose(one.by_x, t * s * (INDEX - mean), rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(one.by_t, (s * (INDEX - mean) * x).sum(), rtol=1e-9, atol=1e-14)
    one = found[hardmax][name]
    assert one.value == COTANGENT[x.argmax()]
    np.testing.assert_allclose(one.by_x, t * s * (COTANGENT - (COTANGENT * s).sum()), rtol=1e-11, atol=1e-14)


def test_second_derivatives_equal_those_of_the_plain_formulas(found, x64):
    def of_weights(vector):
        return lambda x, t: (vector * jax.nn.softmax(t * x)).sum()

    plain = {smooth_max: lambda x, t: jax.nn.logsumexp(t * x) / t}
    plain |= {soft_argmax: of_weights(INDEX), hardmax: of_weights(COTANGENT)}
    for function, form in plain.items():
        x, t = ROWS["random"]
        expected = jitted(jax.hessian(form, (0, 1)))(jnp.asarray(x), jnp.asarray(t))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
            found[function]["random"].hessian,
            jax.tree.map(np.asarray, expected),
        )


def test_smooth_max_is_at_most_log_n_over_t_above_the_maximum_and_falls_with_t(x64):
    x = np.random.default_rng(1).normal(size=(40, 7))
    x[3] = x[3, 0]  # all equal: the bound is attained
    t = np.array([0.1, 1.0, 10.0, 1e4])
    values = np.asarray(jitted(jax.vmap(smooth_max, (None, 0)))(jnp.asarray(x), jnp.asarray(t)))
    gaps = (values - x.max(-1)) * t[:, None]
    assert (gaps >= 0).all() and (gaps <= np.log(7) * (1 + 1e-7)).all()
    assert (np.diff(values, axis=0) < 0).all()
    np.testing.assert_allclose(gaps[:, 3], np.log(7), rtol=1e-7)


def test_large_t_gives_the_maximum_its_index_and_one_hot_gradients(found):
    for name, largest in (("far apart", 3e4), ("at the limits", 1e308)):
        assert found[smooth_max][name].value == largest
        assert found[soft_argmax][name].value == 0
        np.testing.assert_array_equal(found[smooth_max][name].by_x, [1, 0, 0, 0, 0])
        assert not found[soft_argmax][name].by_x.any()


def test_excluded_entries_have_no_gradient_and_leave_the_rest_as_without_them(found):
    for name in ("excluded", "excluded, huge t"):
        t = ROWS[name][1]
        s = softmax(t * np.array([0.3, 1.1]))
        one = found[smooth_max][name]
        np.testing.assert_allclose(one.value, logsumexp(t * np.array([0.3, 1.1])) / t, rtol=1e-14)
        np.testing.assert_allclose(one.by_x, [s[0], 0, s[1], 0, 0], rtol=1e-12)
        np.testing.assert_allclose(one.by_t, -entr(s).sum() / t**2, rtol=1e-9)
        np.testing.assert_allclose(found[soft_argmax][name].value, 2 * s[1], rtol=1e-14)
        by_x = found[soft_argmax][name].by_x
        np.testing.assert_allclose(by_x, 2 * t * s[0] * s[1] * np.array([-1, 0, 1, 0, 0]), rtol=1e-9)
        assert found[hardmax][name].value == COTANGENT[2]


def test_rows_without_an_entry_and_infinite_entries_have_defined_values(found):
    values = {function: rows["all excluded"].value for function, rows in found.items()}
    assert values == {smooth_max: -INF, soft_argmax: 0, hardmax: 0}
    for function in FUNCTIONS:
        assert not any(leaf.any() for leaf in jax.tree.leaves(found[function]["all excluded"][1:]))
    assert found[smooth_max]["infinite"].value == INF
    np.testing.assert_array_equal(found[smooth_max]["infinite"].by_x, [0.5, 0, 0.5, 0, 0])
    assert found[soft_argmax]["infinite"].value == 1.0
    assert found[hardmax]["infinite"].value == COTANGENT[0]


def test_only_nan_makes_nan_in_derivatives_and_it_does_so_in_values(found):
    for function, rows in found.items():
        for name, row in rows.items():
            if name == "missing":
                assert np.isnan(row.value)
            else:
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(row[1:])), (function, name)


def test_equal_maxima_share_gradients_and_the_first_is_hot(found):
    np.testing.assert_allclose(found[smooth_max]["three maxima"].by_x, [0, 1 / 3, 1 / 3, 1 / 3, 0], atol=1e-14)
    np.testing.assert_allclose(found[soft_argmax]["three maxima"].value, 2.0, rtol=1e-14)
    assert found[hardmax]["three maxima"].value == COTANGENT[1]


def test_the_axis_and_a_sharpness_of_each_row_are_those_of_single_rows(x64):
    x, t = jnp.asarray(np.random.default_rng(2).normal(size=(2, 5, 3))), jnp.asarray([[0.5], [3.0]])

    def both(x, t):
        whole = [function(x, t, axis=1) for function in FUNCTIONS]
        rows = [jax.vmap(jax.vmap(function, in_axes=(1, None)))(x, t[:, 0]) for function in FUNCTIONS]
        return [*whole[:2], jnp.moveaxis(whole[2], 1, -1)], rows

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-14), *jitted(both)(x, t))


def test_the_commonly_written_gradient_of_soft_argmax_is_wrong(found):
    """``i s_i (1 - s_i)``, entry E1 of docs/errata.md: its error exceeds half of the gradient."""
    x = ROWS["random"][0]
    s, by_x = softmax(x), found[soft_argmax]["random"].by_x
    assert np.linalg.norm(INDEX * s * (1 - s) - by_x) > 0.5 * np.linalg.norm(by_x) > 0.1
    np.testing.assert_allclose(by_x.sum(), 0, atol=1e-15)  # a constant added to x changes nothing


def test_an_unknown_sharpness_out_of_range_gives_nan():
    assert all(jnp.isnan(jitted(function)(jnp.ones(3), jnp.asarray(-1.0))).all() for function in FUNCTIONS)


@FULL
def test_derivatives_agree_with_differences(x64):
    x, t = jnp.asarray(RANDOM[:3]), jnp.asarray([0.7, 1.0, 2.0])
    check_grads(jax.jit(lambda x, t: (smooth_max(x, t), soft_argmax(x, t))), (x, t), order=2, modes=("fwd", "rev"))


@FULL
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_keeps_its_dtype_and_is_computed_in_float32(dtype):
    x = jnp.asarray(RANDOM, dtype)
    for function in FUNCTIONS:
        found, wide = (jitted(function)(values, jnp.asarray(3.0)) for values in (x, x.astype(jnp.float32)))
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, wide.astype(dtype))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_unusable_arguments_are_named(function, untyped):
    x = np.ones((2, 3), np.float32)
    for wrong in (np.ones(3, np.int32), np.ones(3, bool), np.ones(3, np.complex64)):
        with pytest.raises(ValueError, match=str(wrong.dtype)):
            function(wrong, 1.0)
    for t in (0, -1.5, np.inf, np.nan, np.array([1.0, -2.0])):
        with pytest.raises(ValueError, match="must be positive and finite"):
            function(x, t)
    with pytest.raises(ValueError, match=r"t of shape \(3,\) does not broadcast to the result's shape \(2,\)"):
        function(x, np.ones(3))
    with pytest.raises(ValueError, match=r"axis=2 of an array of shape \(2, 3\)"):
        function(x, 1.0, axis=2)
    with pytest.raises(ValueError, match="empty"):
        function(np.ones((2, 0), np.float32), 1.0)
