"""Cells that the fast form of the recurrence cannot take are recognised, and take the plain scan."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.ops import cells, recurrence, used_implementations

B, T, F = 3, 7, 6


def test_a_cell_whose_units_see_one_another_takes_the_plain_scan() -> None:
    """Its gradient is no number a unit, so that the fast form would be wrong."""

    def normed(state: cells.Hidden, x, r) -> cells.Hidden:
        return cells.Hidden(jnp.tanh(x[0] + r[0]) / jnp.sqrt(1 + (state.h**2).sum()))

    rng = np.random.default_rng(0)
    x, R = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((B, T, 1, F), (1, F, 1, F)))
    state = cells.Hidden(jnp.ones((B, F)))

    def run(implementation: str) -> Callable:
        def total(x: jax.Array, R: jax.Array) -> jax.Array:
            return (recurrence(normed, state, x, R, implementation=implementation)[1] ** 2).sum()

        return jax.grad(total, (0, 1))

    assert used_implementations(run("auto"), x, R) == {"recurrence": ("reference",)}
    auto, plain = jitted(lambda x, R: (run("auto")(x, R), run("reference")(x, R)))(x, R)
    jax.tree.map(np.testing.assert_array_equal, auto, plain)
    with pytest.raises(
        ValueError,
        match=r"'fused' cannot do this call: .* this one uses reduce_sum",
    ):
        run("fused")(x, R)


def test_a_cell_with_a_gradient_of_its_own_making_takes_the_plain_scan() -> None:
    @jax.custom_vjp
    def hard(z: jax.Array) -> jax.Array:
        return jnp.sign(z)

    hard.defvjp(lambda z: (hard(z), None), lambda _, g: (g,))
    x, R, state = jnp.ones((B, T, 1, F)), jnp.ones((1, F, 1, F)), cells.Hidden(jnp.ones((B, F)))

    def total(x: jax.Array) -> jax.Array:
        return recurrence(lambda s, x, r: cells.Hidden(hard(x[0] + r[0])), state, x, R)[1].sum()

    assert used_implementations(jax.grad(total), x) == {"recurrence": ("reference",)}
    assert np.abs(jitted(jax.grad(total))(x)).min() > 0
