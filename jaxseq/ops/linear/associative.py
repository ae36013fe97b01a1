"""The elementwise linear recurrence by ``jax.lax.associative_scan``."""

import jax.numpy as jnp
from jax import lax

from jaxseq.ops.linear.elementwise import Solution, decay
from jaxseq.typing import Array, Inexact


def associative(
    a: Inexact[Array, "*B T F"], b: Inexact[Array, "*B T F"], h: Inexact[Array, "*B F"], *, reverse: bool
) -> Solution:
    """A ``Solver`` in log T passes over the sequence (Blelloch 1990)."""

    def after(first: tuple[Array, Array], then: tuple[Array, Array]) -> tuple[Array, Array]:
        return first[0] * then[0], decay(then[0], first[1]) + then[1]

    if reverse:
        decays = jnp.concatenate([a[..., 1:, :], jnp.ones_like(a[..., :1, :])], axis=-2)
        driven = b.at[..., -1, :].add(h)
        states = lax.associative_scan(after, (decays, driven), reverse=True, axis=a.ndim - 2)[1]
        return Solution(states, decay(a[..., 0, :], states[..., 0, :]))
    driven = b.at[..., 0, :].add(decay(a[..., 0, :], h))
    states = lax.associative_scan(after, (a, driven), axis=a.ndim - 2)[1]
    return Solution(states, states[..., -1, :])
