"""Validity of ids of any integer dtype."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.ops.ids import valid_ids


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int16, jnp.uint16, jnp.int32, jnp.uint32])
def test_a_size_beyond_the_range_of_the_dtype_rules_out_nothing(dtype: type) -> None:
    limits = np.iinfo(dtype)
    ids = jnp.asarray([limits.min, 0, 5, 127, limits.max], dtype)
    for size in (0, 5, 6, 127, 128, 255, 256, 300, 65536, 70000):
        expected = [0 <= i < size for i in (limits.min, 0, 5, 127, limits.max)]
        assert valid_ids(ids, size).tolist() == expected, size
