"""Keys of rows: every row draws by its own key, for every implementation of keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.ops.keys import fold_in_each, threefry_keys

IMPLEMENTATIONS = ["threefry2x32", "rbg", "unsafe_rbg"]


def same(a: jax.Array, b: jax.Array) -> bool:
    return a.dtype == b.dtype and np.array_equal(jax.random.key_data(a), jax.random.key_data(b))


@pytest.mark.full
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_each_key_is_converted_and_folded_alone(name: str) -> None:
    keys = jax.random.split(jax.random.key(0, impl=name), 3)
    assert same(threefry_keys(keys)[1], threefry_keys(keys[1]))
    assert same(fold_in_each(keys, 2)[2, 1], jax.random.fold_in(keys[2], 1))
    assert same(jax.vmap(threefry_keys)(keys), threefry_keys(keys))
    assert same(threefry_keys(keys), keys) == (name == "threefry2x32")
    assert len({tuple(row) for row in jax.random.key_data(threefry_keys(keys)).tolist()}) == 3
    assert threefry_keys(fold_in_each(keys, 0)).shape == (3, 0)
    draws = jax.vmap(jax.random.bits)(threefry_keys(keys))
    assert jnp.array_equal(draws[1], jax.random.bits(threefry_keys(keys[1])))
