"""How many layers, or steps of a recurrence, a signal passes from one position to another: the Jacobian's support."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from jaxseq.typing import Array, Key

PositionMap = Callable[[Any], Any]
"""A function of arrays that lead with positions to arrays of the same shapes: a layer, or one step everywhere."""


def path_length(
    layers: Iterable[PositionMap], values: Any, *, key: Key[Array, ""], source: int = 0, target: int = -1
) -> int:
    """The least number of layers after which ``d values[target] / d values[source]`` is not zero.

    A random tangent of the values at ``source`` goes through one layer after another (``jax.jvp``) until its part at
    ``target`` is not exactly zero: random weights cancel nothing. The tangent is scaled to a largest element of 1 after
    each layer. For random weights it is the "maximum path length" of Vaswani et al. 2017 (arXiv:1706.03762, table 1).

    Args:
        layers: applied in this order; their number bounds the search. An infinite iterator needs some layer to reach
            the target. Pass one jitted function many times (``itertools.repeat``) to compile once.
        values: floating-point arrays that lead with the positions.
        key: draws the tangent.
        source, target: positions.

    Raises:
        ValueError: a position is outside the values, or the layers end before the signal arrives.

    Example::

        shift = jax.jit(lambda xs: xs + jnp.roll(xs, 1, axis=0).at[0].set(0.0))
        path_length(itertools.repeat(shift), jnp.ones((9, 4)), key=jax.random.key(0))  # 8
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
    tangent = jax.tree.unflatten(structure, moved)
    count = 0
    for layer in layers:
        values, tangent = jax.jvp(layer, (values,), (tangent,))
        count += 1
        parts = jax.tree.leaves(tangent)
        if any(bool((part[target] != 0).any()) for part in parts):
            return count
        largest = max(float(jnp.abs(part).max()) for part in parts)
        if largest == 0:
            raise ValueError(f"the signal of position {source} is lost after {count} layers")
        tangent = jax.tree.map(lambda part: part / jnp.asarray(largest, part.dtype), tangent)  # noqa: B023
    raise ValueError(f"{count} layers carry nothing from position {source} to position {target} of {length}")
