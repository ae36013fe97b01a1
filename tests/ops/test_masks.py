"""Masks: what they see, how they join, and that nothing said of a tile is ever wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.ops.attention.masks import (
    Mask,
    causal,
    dense,
    dense_by_head,
    finite_keys,
    padding,
    prefix,
    segments,
    sliding_window,
)
from jaxseq.ops.attention.positions import alibi
from jaxseq.ops.attention.tiled import Span

B, N, T, S = 2, 3, 11, 13


def _random_mask(rng: np.random.Generator, depth: int) -> tuple[Mask, np.ndarray]:
    """A mask expression and what it must be, written out by numpy alone."""
    if depth and rng.random() < 0.7:
        (left, a), (right, b) = _random_mask(rng, depth - 1), _random_mask(rng, depth - 1)
        return (left & right, a & b) if rng.random() < 0.5 else (left | right, a | b)
    i, j = np.arange(T)[None, None, :, None], np.arange(S)[None, None, None, :]
    kind = rng.integers(9)
    if kind == 0:
        offset = int(rng.integers(-3, 4))
        return causal(offset=offset), j <= i + offset
    if kind == 1:
        window = int(rng.integers(1, 6))
        return sliding_window(window), (j <= i) & (i - j < window)
    if kind == 2:
        size = int(rng.integers(0, S + 2))
        return prefix(size), np.broadcast_to(j < size, (1, 1, T, S))
    if kind == 3:
        sizes = rng.integers(0, S + 1, B)
        mask = np.broadcast_to(j < sizes[:, None, None, None], (B, 1, T, S))
        return prefix(jnp.asarray(sizes)), mask
    if kind == 4:
        real = rng.random((B, S)) < 0.6
        return padding(jnp.asarray(real)), np.broadcast_to(real[:, None, None], (B, 1, T, S))
    if kind == 5:
        q, k = np.sort(rng.integers(0, 4, (B, T))), np.sort(rng.integers(0, 4, (B, S)))[:, ::-1]
        q, k = q[:, None, :, None], k[:, None, None, :]
        return segments(jnp.asarray(q[:, 0, :, 0]), jnp.asarray(k[:, 0, 0])), (q == k) & (q != 0)
    if kind == 6:
        q, k = rng.integers(-1, 9, (B, T)), rng.integers(-1, 9, (1, S))
        window = int(rng.integers(1, 6)) if rng.random() < 0.5 else None
        args = (jnp.asarray(q), jnp.asarray(k))
        mask = causal(*args) if window is None else sliding_window(window, *args)
        q, k = q[:, None, :, None], k[:, None, None, :]
        return mask, (k >= 0) & (q >= k) & (q - k < (window or 99))
    if kind == 7:
        array = rng.random((T, S)) < 0.5
        return dense(jnp.asarray(array)), array[None, None]
    array = rng.random((B, N, T, S)) < 0.5
    return dense_by_head(jnp.asarray(array)), array


@pytest.mark.parametrize("seed", range(25))
def test_any_expression_is_what_numpy_says_and_its_tiles_are_judged_rightly(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask, expected = _random_mask(rng, 2)
    mask.validate((B,), N, T, S)
    row_tile, column_tile = int(rng.integers(1, 7)), int(rng.integers(1, 7))

    @jax.jit
    def facts(mask):
        tiles = mask.tiles(T, S, row_tile, column_tile)
        return mask.materialize(T, S), tiles, (mask.visibility().keys, mask.visibility().queries)

    got, tiles, (keys, queries) = facts(mask)
    np.testing.assert_array_equal(*np.broadcast_arrays(got, expected))
    num_rows, num_columns = -(-T // row_tile), -(-S // column_tile)
    live, full = (np.broadcast_to(x, (B, num_rows, num_columns)) for x in tiles)
    whole = np.broadcast_to(expected, (B, *expected.shape[1:]))
    for i in range(num_rows):
        for j in range(num_columns):
            block = whole[:, :, i * row_tile : (i + 1) * row_tile, j * column_tile : (j + 1) * column_tile]
            assert not (block.any((1, 2, 3)) & ~live[:, i, j]).any(), "a tile called empty sees something"
            assert not (~block.all((1, 2, 3)) & full[:, i, j]).any(), "a tile called full hides something"

    for seen, axes in ((keys, (1, 2)), (queries, (1, 3))):
        if seen is not None:
            assert not (whole.any(axes) & ~np.asarray(seen)).any()


def test_empty_and_full_tiles_are_found_from_shapes_alone() -> None:
    live, full = (causal() & sliding_window(4)).tiles(16, 16, 4, 4)
    assert isinstance(live, np.ndarray)
    np.testing.assert_array_equal(live, np.tri(4, dtype=bool) & ~np.tri(4, k=-2, dtype=bool))
    assert not full.any()
    live, full = (causal() | prefix(8)).tiles(16, 16, 4, 4)
    np.testing.assert_array_equal(full, np.tri(4, k=-1, dtype=bool) | (np.arange(4) < 2))


def test_tiles_of_other_packed_documents_are_empty() -> None:
    ids = jnp.asarray([[1] * 8 + [2] * 8, [5] * 4 + [6] * 8 + [0] * 4])
    tiles = jax.jit(lambda ids: segments(ids, ids).tiles(16, 16, 4, 4))(ids)
    same = np.kron(np.eye(2, dtype=bool), np.ones((2, 2), bool))
    np.testing.assert_array_equal(tiles.live[0], same)
    np.testing.assert_array_equal(tiles.full[0], same)
    assert tiles.live[1].sum() == 1 + 4


def test_a_tile_is_its_part_of_the_whole() -> None:
    ids = jnp.arange(S)[None] // 5 + 1
    mask = (causal() & segments(ids, ids)) | prefix(2)
    whole = mask.materialize(S, S)
    np.testing.assert_array_equal(mask.tile(Span(3, 4), Span(1, 5)), whole[..., 3:7, 1:6])


def test_a_mask_passes_through_jit_vmap_and_scan() -> None:
    ids = jnp.arange(B * S).reshape(B, S) // 5
    mask = causal() & segments(ids, ids)
    expected = mask.materialize(S, S)
    np.testing.assert_array_equal(jax.jit(lambda m: m.materialize(S, S))(mask), expected)
    np.testing.assert_array_equal(jax.vmap(lambda m: m.materialize(S, S))(mask), expected)
    _, scanned = jax.lax.scan(lambda _, m: (None, m.materialize(S, S)), None, mask)
    np.testing.assert_array_equal(scanned, expected)


def test_a_ring_cache_sees_by_position_and_never_an_empty_slot() -> None:
    slots = jnp.asarray([[4, 5, 2, 3], [0, -1, -1, -1]])
    mask = sliding_window(3, jnp.asarray([[5], [0]]), slots)
    np.testing.assert_array_equal(
        mask.materialize(1, 4)[:, 0, 0], [[True, True, False, True], [True, False, False, False]]
    )


def test_wrong_masks_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="got 0"):
        sliding_window(0)
    with pytest.raises(ValueError, match="got -2"):
        prefix(-2)
    with pytest.raises(ValueError, match="offset=3"):
        causal(jnp.arange(4), offset=3)
    with pytest.raises(TypeError, match="ndarray"):
        causal() & np.ones((3, 3), bool)
    mask = causal() & segments(jnp.ones((2, 5), int), jnp.ones((2, 7), int))
    with pytest.raises(ValueError, match=r"kv_ids has shape \(2, 7\)"):
        mask.validate((2,), 1, 5, 8)
    with pytest.raises(ValueError, match=r"q_ids has batch \(2,\), not broadcastable to \(3,\)"):
        mask.validate((3,), 1, 5, 7)


def test_wrong_dtypes_are_refused_without_a_type_checker_too() -> None:
    from inspect import unwrap

    with pytest.raises(TypeError, match="float32"):
        unwrap(segments)(jnp.ones(3), jnp.ones(3))
    with pytest.raises(TypeError, match="booleans"):
        unwrap(padding)(jnp.ones(3))
    with pytest.raises(TypeError, match=r"window must be an integer that is known before tracing, got 2\.5"):
        unwrap(sliding_window)(2.5)
    with pytest.raises(TypeError, match=r"offset must be an integer that is known before tracing, got 1\.0"):
        unwrap(causal)(offset=1.0)
    with pytest.raises(TypeError, match=r"offset must be an integer .*, got .*pass positions"):
        jax.jit(lambda n: unwrap(alibi)(jnp.ones(2), offset=n))(3)
    of_arrays = unwrap(sliding_window)(jnp.int32(4), offset=np.int64(2))
    assert jax.jit(lambda mask: mask.materialize(3, 9))(of_arrays).sum() == 11


def test_a_promise_of_finite_keys_sees_the_same_and_clears_nothing():
    mask = causal() & padding(jnp.arange(6) < 4)
    promised = finite_keys(mask)
    assert np.array_equal(promised.materialize(6, 6), mask.materialize(6, 6))
    assert np.array_equal(promised.tiles(6, 6, 2, 2).live, mask.tiles(6, 6, 2, 2).live)
    assert mask.visibility().keys is not None and promised.visibility().keys is None
