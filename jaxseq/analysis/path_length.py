"""How many layers, or steps of a recurrence, a signal passes from one position to another: the Jacobian's support."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxseq.typing import Array, Key

PositionMap = Callable[[Any], Any]
"""A function between arrays that lead with positions: a layer, or a step of a recurrence at all positions at once."""


def path_length(
    layers: Iterable[PositionMap], values: Any, *, key: Key[Array, ""], source: int = 0, target: int = -1
) -> int:
    """The least number of layers after which ``d values[target] / d values[source]`` is not zero.

    A random tangent of the values at ``source`` goes through one layer after another (``jax.jvp``) until its part at
    ``target`` is not exactly zero: random weights cancel nothing. After each layer the tangent is scaled to a largest
    element of 1 at each position, so that it neither vanishes nor overflows; that changes no support. For random
    weights the result is the "maximum path length" of Vaswani et al. 2017 (arXiv:1706.03762, table 1).

    Args:
        layers: applied in this order, each compiled once; their number bounds the search. Pass one function many times
            for equal layers (``itertools.repeat(layer, 1000)``).
        values: floating-point arrays that lead with the positions.
        key: draws the tangent.
        source, target: positions.

    Raises:
        ValueError: a position is outside the values, or the layers end before the signal arrives.

    Example::

        shift = lambda xs: xs + jnp.roll(xs, 1, axis=0).at[0].set(0.0)
        path_length(itertools.repeat(shift, 100), jnp.ones((9, 4)), key=jax.random.key(0))  # 8
    """
    leaves, structure = jax.tree.flatten(values)
    length = min(len(leaf) for leaf in leaves)
    for name, position in (("source", source), ("target", target)):
        if not -length <= position < length:
            raise ValueError(f"{name}={position} is not among {length} positions")
    keys = jax.random.split(key, len(leaves))
    moved = [
        jnp.zeros_like(leaf).at[source].set(jax.random.normal(k, leaf.shape[1:], leaf.dtype))
        for k, leaf in zip(keys, leaves, strict=True)
    ]
    tangent, count = jax.tree.unflatten(structure, moved), 0
    for layer in layers:
        values, tangent, arrived = _through(layer, values, tangent, target)
        count += 1
        if arrived:
            return count
    raise ValueError(f"{count} layers carry nothing from position {source} to position {target} of {length}")


@partial(jax.jit, static_argnums=(0, 3))
def _through(layer: PositionMap, values: Any, tangent: Any, target: int) -> tuple[Any, Any, Array]:
    """Values and tangents after a layer, and whether the tangent has reached the target."""
    values, tangent = jax.jvp(layer, (values,), (tangent,))
    arrived = jnp.stack([(part[target] != 0).any() for part in jax.tree.leaves(tangent)]).any()

    def scaled(part: Array) -> Array:
        largest = jnp.abs(part).max(axis=tuple(range(1, part.ndim)), keepdims=True)
        return part / jnp.where(largest == 0, jnp.ones_like(largest), largest)

    return values, jax.tree.map(scaled, tangent), arrived
