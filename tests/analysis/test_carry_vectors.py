import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.analysis import carry_jacobians, carry_vector, with_carry_vector
from jaxseq.analysis.carry_vectors import stable_norm
from jaxseq.cores import LSTM, Attention, Positions, Stacked
from tests.analysis.flow_cases import plain
from tests.compilation import jitted


def test_a_vector_of_the_float_leaves_restores_the_carry(x64):
    carry = {
        "a": (jnp.arange(6.0).reshape(2, 3), jnp.arange(4)),
        "z": jnp.asarray([1 + 2j, 3 - 1j]),
        "low": jnp.ones((2,), jnp.bfloat16),
        "flag": jnp.asarray(True),
    }
    vector = carry_vector(carry)
    assert (vector.shape, vector.dtype) == ((6 + 4 + 2,), jnp.float64)
    restored = with_carry_vector(carry, 2 * vector)
    assert jax.tree.structure(restored) == jax.tree.structure(carry)
    for path, leaf in jax.tree.leaves_with_path(carry):
        found = dict(jax.tree.leaves_with_path(restored))[path]
        factor = 2 if jnp.issubdtype(leaf.dtype, jnp.inexact) else 1
        assert found.dtype == leaf.dtype
        np.testing.assert_array_equal(found, factor * np.asarray(leaf))


def test_carries_that_cannot_be_differentiated_are_named(untyped):
    with pytest.raises(ValueError, match=r"no floating-point numbers to differentiate by; it holds int32\(\)"):
        carry_vector({"count": jnp.zeros((), jnp.int32)})
    with pytest.raises(ValueError, match=r"shape \(4,\), not \(3,\)"):
        with_carry_vector(jnp.zeros((2, 2)), jnp.zeros(3))
    core, carry, xs = plain(4)
    with pytest.raises(ValueError, match=r"one sequence, \[T D\] with T >= 1, are needed, not \(2, 4, 3\)"):
        carry_jacobians(core, carry, jnp.zeros((2, 4, 3)))
    with pytest.raises(ValueError, match=r"T >= 1, are needed, not \(0, 2\)"):
        carry_jacobians(core, carry, xs[:0])
    with pytest.raises(ValueError, match=r"batch dimensions \(5,\), but one sequence is needed"):
        carry_jacobians(core, LSTM(3).initial_carry((5,)), xs)
    with pytest.raises(ValueError, match="no floating-point numbers"):
        carry_jacobians(core, Positions(4).initial_carry(()), xs)
    with pytest.raises(ValueError, match="4 positions are read one by one, but the carry keeps 2"):
        carry_jacobians(core, Stacked((LSTM(4), Attention(4))).initial_carry((), context=2), xs)
    with pytest.raises(ValueError, match=r"turns the carry float32\(2,\) into float32\(3,\)"):
        carry_jacobians(lambda c, xs: (jnp.zeros(3), xs), jnp.zeros(2), xs)


def test_norms_of_tiny_and_huge_values_are_exact():
    norm = jitted(lambda values: stable_norm(values, -1))
    for scale in (1e-30, 1.0, 1e30):
        values = jnp.asarray([[3.0, 4.0], [0.0, 0.0]]) * jnp.float32(scale)
        np.testing.assert_allclose(norm(values), np.float32(scale) * np.asarray([5.0, 0.0], np.float32), rtol=1e-6)
    np.testing.assert_array_equal(norm(jnp.asarray([[jnp.inf, 1.0], [jnp.nan, 1.0]])), [np.inf, np.nan])
