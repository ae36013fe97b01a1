"""Cells that are not pointwise are recognised; the fused form differentiates them step by step."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.ops import cells, recurrence, used_implementations

B, T, F = 3, 7, 6


def test_a_cell_whose_units_see_one_another_has_the_gradient_of_the_plain_scan(x64: None) -> None:
    """Its gradient is no number a unit, so that the form for pointwise cells would be wrong."""

    def normed(state: cells.Hidden, x, r) -> cells.Hidden:
        return cells.Hidden(jnp.tanh(x[0] + r[0]) / jnp.sqrt(1 + (state.h**2).sum()))

    rng = np.random.default_rng(0)
    x, R = (jnp.asarray(rng.normal(size=shape)) for shape in ((B, T, 1, F), (1, F, 1, F)))
    state = cells.Hidden(jnp.ones((B, F)))

    def run(implementation: str) -> Callable:
        def total(x: jax.Array, R: jax.Array) -> jax.Array:
            return (recurrence(normed, state, x, R, implementation=implementation)[1] ** 2).sum()

        return jax.grad(total, (0, 1))

    assert used_implementations(run("auto"), x, R) == {"recurrence": ("fused",)}
    auto, plain = jitted(lambda x, R: (run("auto")(x, R), run("reference")(x, R)))(x, R)
    for got, want in zip(auto, plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_a_cell_with_a_gradient_of_its_own_making_keeps_it() -> None:
    @jax.custom_vjp
    def hard(z: jax.Array) -> jax.Array:
        return jnp.sign(z)

    hard.defvjp(lambda z: (hard(z), None), lambda _, g: (g,))
    x, R, state = jnp.ones((B, T, 1, F)), 0.1 * jnp.ones((1, F, 1, F)), cells.Hidden(jnp.ones((B, F)))

    def gradient(implementation: str) -> Callable:
        def total(x: jax.Array, R: jax.Array) -> jax.Array:
            cell = lambda s, x, r: cells.Hidden(hard(x[0] + r[0]))  # noqa: E731
            return recurrence(cell, state, x, R, implementation=implementation)[1].sum()

        return jax.grad(total, (0, 1))

    auto, plain = jitted(lambda x, R: (gradient("auto")(x, R), gradient("reference")(x, R)))(x, R)
    assert np.abs(auto[0]).min() > 0
    for got, want in zip(auto, plain, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_a_state_of_two_dtypes_takes_the_plain_scan(x64: None) -> None:
    state = cells.LSTMState(jnp.ones((B, F)), jnp.ones((B, F), jnp.float32))
    x, R = jnp.ones((B, T, 1, F)), jnp.ones((1, F, 1, F))

    def cell(state: cells.LSTMState, x, r) -> cells.LSTMState:
        return cells.LSTMState(jnp.tanh(x[0] + r[0]), state.c)

    assert used_implementations(lambda: recurrence(cell, state, x, R)) == {"recurrence": ("reference",)}
    with pytest.raises(ValueError, match=r"'fused' cannot do this call: .* this one uses states of several dtypes"):
        recurrence(cell, state, x, R, implementation="fused")
