"""The elementwise linear recurrence as a loop over time that works in place."""

from typing import Any

from jax import lax

from jaxseq.ops.linear.elementwise import Solution, decay
from jaxseq.typing import Array, Inexact


def loop(
    a: Inexact[Array, "*B T F"], b: Inexact[Array, "*B T F"], h: Inexact[Array, "*B F"], *, reverse: bool
) -> Solution:
    """A ``Solver``: its buffer starts as ``b`` and ends as the states; time is sliced in place (axis -2)."""
    steps, axis = a.shape[-2], a.ndim - 2

    def at(x: Array, t: Any) -> Array:
        return lax.dynamic_index_in_dim(x, t, axis, keepdims=False, allow_negative_indices=False)

    def put(x: Array, h: Array, t: Any) -> Array:
        return lax.dynamic_update_index_in_dim(x, h, t, axis, allow_negative_indices=False)

    def forwards(t: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        h, states = carry
        h = decay(at(a, t), h) + at(states, t)
        return h, put(states, h, t)

    def backwards(i: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        g, states = carry
        t = steps - 2 - i
        g = decay(at(a, t + 1), g) + at(states, t)
        return g, put(states, g, t)

    if not reverse:
        h, states = lax.fori_loop(0, steps, forwards, (h, b))
        return Solution(states, h)
    g = b[..., -1, :] + h
    g, states = lax.fori_loop(0, steps - 1, backwards, (g, put(b, g, steps - 1)))
    return Solution(states, decay(a[..., 0, :], g))
