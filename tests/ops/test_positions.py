"""Positions: the papers' equations, and what depends on distances only."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.ops.attention.positions import alibi, alibi_slopes, relative_bias, relative_buckets, rotary, sinusoid
from jaxseq.ops.attention.tiled import Span


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_sinusoid_is_the_equation(x64: None) -> None:
    positions = np.asarray([[0, 1, 7], [100, 3, 5000]])
    encoding = sinusoid(jnp.asarray(positions), 6)
    for i in range(3):
        angle = positions / 10000 ** (2 * i / 6)
        np.testing.assert_allclose(encoding[..., i], np.sin(angle), atol=1e-12)
        np.testing.assert_allclose(encoding[..., i + 3], np.cos(angle), atol=1e-12)


def test_products_of_sinusoids_depend_on_the_distance_only(x64: None) -> None:
    encoding = sinusoid(jnp.arange(12), 8)
    products = encoding @ encoding.T
    np.testing.assert_allclose(products[1:, 1:], products[:-1, :-1], atol=1e-12)


def test_rotary_turns_each_pair_by_its_angle(x64: None) -> None:
    x, positions = _normal(0, 2, 5, 3, 6), np.asarray([[0, 1, 2, 3, 4], [9, 7, 50, 1, 0]])
    pairs = np.asarray(x)[..., :3] + 1j * np.asarray(x)[..., 3:]
    angles = positions[..., None, None] * 100.0 ** (-np.arange(3) * 2 / 6)
    turned = pairs * np.exp(1j * angles)
    expected = np.concatenate([turned.real, turned.imag], axis=-1)
    np.testing.assert_allclose(rotary(x, jnp.asarray(positions), base=100.0), expected, atol=1e-12)
    shared = rotary(x, jnp.asarray(positions[0]), base=100.0)
    np.testing.assert_allclose(shared[0], expected[0], atol=1e-12)


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary_turns_a_part_of_the_features_in_pairs_of_either_kind(interleaved: bool, x64: None) -> None:
    """GPT-NeoX and LLaMA pair feature i with i + k/2, GPT-J 2i with 2i + 1; features from k on are unchanged."""
    x, positions, k, base = np.asarray(_normal(0, 2, 5, 3, 10)), np.asarray([[0, 1, 2, 3, 4], [9, 7, 50, 1, 0]]), 6, 5e5
    expected = x.copy()
    for i in range(k // 2):
        a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + k // 2)
        angle = (positions * base ** (-2 * i / k))[..., None]
        expected[..., a] = x[..., a] * np.cos(angle) - x[..., b] * np.sin(angle)
        expected[..., b] = x[..., b] * np.cos(angle) + x[..., a] * np.sin(angle)
    options = {"interleaved": interleaved, "features": k}
    turned = rotary(jnp.asarray(x), jnp.asarray(positions), base=base, **options)
    np.testing.assert_allclose(turned, expected, atol=1e-12)
    angles = np.arange(51)[:, None] * base ** (-2 * np.arange(k // 2) / k)
    tables = jnp.cos(angles), jnp.sin(angles)
    np.testing.assert_allclose(
        rotary(jnp.asarray(x), jnp.asarray(positions), tables=tables, **options), turned, atol=1e-12
    )


def test_a_position_outside_rotary_tables_is_an_error_or_nan() -> None:
    x, tables = _normal(0, 2, 1, 4).astype(jnp.float32), (jnp.ones((3, 2)), jnp.zeros((3, 2)))
    for wrong in (3, -1):
        positions = jnp.asarray([1, wrong])
        with pytest.raises(ValueError, match=rf"positions: id {wrong} at index \(1,\) is outside \[0, 3\)"):
            rotary(x, positions, tables=tables)
        turned = np.asarray(jax.jit(lambda places: rotary(x, places, tables=tables))(positions))
        np.testing.assert_array_equal(turned[0], x[0])
        assert np.isnan(turned[1]).all()


def test_rotary_scores_depend_on_the_distance_only(x64: None) -> None:
    query, key = _normal(0, 7, 2, 8), _normal(1, 7, 2, 8)

    def scores(shift: int) -> jax.Array:
        positions = jnp.arange(7) + shift
        return jnp.einsum("tnh,snh->nts", rotary(query, positions), rotary(key, positions))

    np.testing.assert_allclose(scores(0), scores(123), atol=1e-10)
    assert np.abs(scores(0) - jnp.einsum("tnh,snh->nts", query, key)).max() > 0.1


def test_rotary_keeps_norms_and_dtype() -> None:
    x = _normal(0, 4, 2, 8).astype(jnp.bfloat16)
    turned = rotary(x, jnp.asarray([0, 1, 1000, 4000]))
    assert turned.dtype == jnp.bfloat16
    norms = [jnp.linalg.norm(y.astype(jnp.float32), axis=-1) for y in (x, turned)]
    np.testing.assert_allclose(*norms, rtol=0.02)
    np.testing.assert_array_equal(turned[0], x[0])


def test_alibi_slopes_follow_the_recipe() -> None:
    np.testing.assert_allclose(alibi_slopes(8), 2.0 ** -np.arange(1, 9), rtol=1e-6)
    np.testing.assert_allclose(alibi_slopes(1), 2.0**-8, rtol=1e-6)
    # The paper's 12 heads: the 8 of 8 heads, then 1st, 3rd, 5th, 7th of 16 heads.
    more = 2.0 ** -np.asarray([0.5, 1.5, 2.5, 3.5])
    np.testing.assert_allclose(alibi_slopes(12), np.concatenate([2.0 ** -np.arange(1, 9), more]), rtol=1e-6)


def test_alibi_is_minus_slope_times_distance(x64: None) -> None:
    bias = alibi(alibi_slopes(4), offset=2)
    whole = bias.tile(Span(0, 5), Span(0, 7))
    distance = np.abs(np.arange(5)[:, None] + 2 - np.arange(7))
    np.testing.assert_allclose(whole, -np.asarray(alibi_slopes(4))[:, None, None] * distance)
    part = bias.tile(Span(1, 3), Span(2, 4), Span(1, 2))
    np.testing.assert_array_equal(part, whole[..., 1:3, 1:4, 2:6])


def _t5_bucket(distance: np.ndarray, bidirectional: bool, num_buckets: int, max_distance: int) -> np.ndarray:
    """``transformers.models.t5.T5Attention._relative_position_bucket``, line by line."""
    buckets = np.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        buckets += (distance > 0).astype(distance.dtype) * num_buckets
        distance = np.abs(distance)
    else:
        distance = -np.minimum(distance, 0)
    max_exact = num_buckets // 2
    with np.errstate(divide="ignore"):
        logs = np.log((distance.astype(np.float32) / max_exact).astype(np.float64)).astype(np.float32)
        logs = logs / np.float32(np.log(max_distance / max_exact))
    large = max_exact + np.maximum(logs * (num_buckets - max_exact), 0).astype(distance.dtype)
    return buckets + np.where(distance < max_exact, distance, np.minimum(large, num_buckets - 1))


@pytest.mark.parametrize("options", [(32, 128), (16, 20), (7, 50), (4, 3)])
def test_relative_buckets_are_those_of_t5(options: tuple[int, int]) -> None:
    distance = np.arange(-300, 301)
    for bidirectional in (True, False):
        buckets = relative_buckets(jnp.asarray(distance), *options, bidirectional)
        np.testing.assert_array_equal(buckets, _t5_bucket(distance, bidirectional, *options))


@pytest.mark.parametrize(
    ("size", "max_distance", "distance", "bucket"),
    [(17, 27, 18, 13), (36, 50, 30, 26), (36, 98, 42, 27), (51, 49, 35, 37), (72, 100, 60, 53), (100, 98, 70, 74)],
)
def test_a_distance_on_the_border_of_two_buckets_is_in_that_of_torch(
    size: int, max_distance: int, distance: int, bucket: int
) -> None:
    """A logarithm in float32 that is not rounded correctly gives the other bucket."""
    earlier = jnp.asarray([-distance, distance], jnp.int8)
    assert relative_buckets(earlier, size, max_distance, False).tolist() == [bucket, 0]
    assert relative_buckets(earlier, 2 * size, max_distance, True).tolist() == [bucket, bucket + size]


@pytest.mark.full
def test_relative_bias_is_the_table_at_the_bucket_of_the_distance() -> None:
    table, q, k = _normal(0, 3, 8), jnp.asarray([[0, 5, 40, 2], [7, 1, 3, 9]]), jnp.asarray([3, -1, 8, 0, 90])
    by_index = np.arange(2, 6)[None], np.arange(5)
    for positions, offset in (((q, k), 0), ((), 2)):
        bias = relative_bias(table, *positions, offset=offset, bidirectional=True, max_distance=20)
        queries, keys = positions or by_index
        distance = np.asarray(keys) - np.asarray(queries)[..., None]
        buckets = relative_buckets(jnp.asarray(distance), 8, 20)
        expected = jnp.moveaxis(table[:, buckets], 0, -3)
        whole = bias.tile(Span(0, 4), Span(0, 5))
        np.testing.assert_array_equal(whole.reshape(expected.shape), expected)
        part = bias.tile(Span(1, 3), Span(2, 2), Span(1, 2))
        np.testing.assert_array_equal(part, whole[..., 1:3, 1:4, 2:4])


def test_wrong_sizes_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="num_buckets must be at least 4, got 3"):
        relative_buckets(jnp.arange(3), 3)
    with pytest.raises(ValueError, match="max_distance must exceed 8, the buckets of one distance each, got 8"):
        relative_bias(jnp.zeros((2, 32)), bidirectional=True, max_distance=8)
    with pytest.raises(ValueError, match="offset=1"):
        relative_bias(jnp.zeros((2, 32)), jnp.arange(3), offset=1, bidirectional=True)
    with pytest.raises(ValueError, match="head size H must be even to be split into pairs, got 5"):
        rotary(_normal(0, 3, 1, 5), jnp.arange(3))
    with pytest.raises(ValueError, match="features=6 cannot be rotated of a head size of 4"):
        rotary(_normal(0, 3, 1, 4), jnp.arange(3), features=6)
    with pytest.raises(ValueError, match="features must be even to be split into pairs, got 3"):
        rotary(_normal(0, 3, 1, 4), jnp.arange(3), features=3)
    with pytest.raises(
        ValueError, match=r"tables for 4 features are cosines and sines \[L, 2\], not \(9, 3\) and \(9, 3\)"
    ):
        rotary(_normal(0, 3, 1, 4), jnp.arange(3), tables=(np.ones((9, 3)), np.ones((9, 3))))
    with pytest.raises(ValueError, match="features must be even to be split into pairs, got 7"):
        sinusoid(jnp.arange(3), 7)
    with pytest.raises(ValueError, match="got 0"):
        alibi_slopes(0)
    with pytest.raises(ValueError, match="offset=1"):
        alibi(alibi_slopes(2), jnp.arange(3), offset=1)
