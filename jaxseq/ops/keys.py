"""Random keys of rows: each row's draws depend on its own key alone, whatever the implementation of the keys.

Under ``jax.vmap`` a threefry key gives the same draws as alone. With rbg and unsafe_rbg keys all draws come from the
first key.
"""

from functools import partial, reduce

import jax
import jax.numpy as jnp

from jaxseq.typing import Array, Key

VECTORIZED = "threefry2x32"


def threefry_keys(keys: Key[Array, "*B"]) -> Key[Array, "*B"]:
    """Keys that ``jax.vmap`` may map over: threefry keys unchanged, others converted to threefry keys one by one.

    The new key is made of all bits of the old one, so that different keys stay different (up to the collisions of a
    hash of 64 bits), and rows with different keys draw independently.
    """
    if jax.random.key_impl(keys) == VECTORIZED:
        return keys
    words = jax.random.key_data(keys)
    flat = words.reshape(-1, words.shape[-1]) if words.size else jnp.zeros((0, words.shape[-1]), words.dtype)

    def convert(row: Array) -> Array:
        return reduce(jax.random.fold_in, list(row), jax.random.key(0, impl=VECTORIZED))

    return jax.vmap(convert)(flat).reshape(keys.shape)


@partial(jax.jit, static_argnames="count")
def split_key(key: Key[Array, ""], count: int = 2) -> tuple[Key[Array, ""], ...]:
    """The keys of ``jax.random.split(key, count)`` one by one, by one compiled program."""
    return tuple(jax.random.split(key, count))


@partial(jax.jit, static_argnames="count")
def fold_in_each(keys: Key[Array, "*B"], count: int) -> Key[Array, "*B n"]:
    """``jax.random.fold_in(key, i)`` of every key, for i in ``range(count)``; the keys keep their implementation."""
    numbers, flat = jnp.arange(count, dtype=jnp.int32), keys.reshape(-1)
    if jax.random.key_impl(keys) == VECTORIZED:
        folded = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(flat, numbers)
    else:
        folded = jax.lax.map(lambda key: jax.lax.map(lambda i: jax.random.fold_in(key, i), numbers), flat)
    return folded.reshape(*keys.shape, count)
