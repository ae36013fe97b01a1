"""Segment ids against a loop that reads them one by one."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.ops import segments


def one_by_one(ids: np.ndarray, before: int) -> tuple[list[int], list[bool], int]:
    """Previous ids, starts and the last id of one row."""
    previous, starts = [], []
    for current in ids:
        previous.append(before)
        starts.append(current != 0 and before not in (0, current))
        before = current if current != 0 else before
    return previous, starts, before


@pytest.mark.parametrize("time", [0, 1, 2, 9])
@pytest.mark.parametrize("batch", [(40,), *(pytest.param(b, marks=pytest.mark.full) for b in ((), (5, 8)))])
@pytest.mark.parametrize("dtype", ["int32", pytest.param("int8", marks=pytest.mark.full)])
def test_ids_mean_what_the_loop_says(time: int, batch: tuple[int, ...], dtype: str) -> None:
    rng = np.random.default_rng(time)
    ids = (rng.integers(-1, 3, (*batch, time)) * rng.integers(0, 2, (*batch, time))).astype(dtype)
    before = rng.integers(0, 3, batch).astype(dtype)
    given = jnp.asarray(ids), jnp.asarray(before)
    previous, starts, last = segments.previous_ids(*given), segments.starts(*given), segments.last_id(*given)
    first, real = segments.first_id(given[0]), segments.is_real(given[0])
    assert previous.shape == starts.shape == real.shape == ids.shape
    assert last.shape == first.shape == batch
    assert previous.dtype == last.dtype == first.dtype == dtype
    for index in np.ndindex(*batch):
        want_previous, want_starts, want_last = one_by_one(ids[index], before[index])
        np.testing.assert_array_equal(previous[index], np.array(want_previous, dtype))
        np.testing.assert_array_equal(starts[index], np.array(want_starts, bool))
        assert last[index] == want_last
        assert first[index] == next((i for i in ids[index] if i != 0), 0)
        np.testing.assert_array_equal(real[index], ids[index] != 0)
    zeros = jnp.zeros(batch, given[0].dtype)
    np.testing.assert_array_equal(segments.starts(given[0]), segments.starts(given[0], zeros))
    np.testing.assert_array_equal(segments.last_id(given[0]), segments.last_id(given[0], zeros))
