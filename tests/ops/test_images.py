"""Operations on images against plain NumPy and Pillow; randomness of each image by its key."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.ops import images as ops

IMAGES = np.random.default_rng(0).integers(0, 256, (2, 3, 7, 10, 3)).astype(np.uint8)


def test_normalize_is_its_equation() -> None:
    mean, std = (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)
    want = (IMAGES.astype(np.float64) - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(ops.normalize(IMAGES, mean, std), want, rtol=1e-6)
    low = ops.normalize(IMAGES, mean, std, jnp.bfloat16)
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), want, rtol=2**-8)
    for bad in [((1.0,), std), (mean, (1.0, 0.0, 1.0))]:
        with pytest.raises(ValueError, match="do not fit 3 channels"):
            ops.normalize(IMAGES, *bad)


def triangle(size: int, out: int, antialias: bool) -> np.ndarray:
    """The weights ``[out, size]`` of linear interpolation, written out."""
    ratio = size / out
    width = max(ratio, 1.0) if antialias else 1.0
    centre = (np.arange(out) + 0.5) * ratio - 0.5
    weights = np.maximum(0, 1 - np.abs(np.arange(size)[None] - centre[:, None]) / width)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize(("size", "antialias"), [((3, 15), True), ((3, 15), False)])
def test_resize_is_linear_interpolation(size: tuple[int, int], antialias: bool) -> None:
    rows, columns = (triangle(n, m, antialias) for n, m in zip((7, 10), size, strict=True))
    want = np.einsum("vy,ux,...yxc->...vuc", rows, columns, IMAGES.astype(np.float64))
    got = jitted(functools.partial(ops.resize, size=size, antialias=antialias))(IMAGES)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-3)


def test_resize_agrees_with_pillow() -> None:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    want = [np.asarray(image.fromarray(each).resize((4, 5), image.Resampling.BILINEAR)) for each in IMAGES[0]]
    assert np.abs(np.asarray(ops.resize(IMAGES[0], (5, 4))) - np.stack(want)).max() <= 1  # Pillow rounds


def test_center_crop_is_the_middle() -> None:
    np.testing.assert_array_equal(ops.center_crop(IMAGES, (4, 5)), IMAGES[..., 1:5, 2:7, :])
    np.testing.assert_array_equal(ops.center_crop(IMAGES, (7, 10)), IMAGES)


def test_crops_and_flips_of_an_image_depend_on_its_key_alone(key: jax.Array) -> None:
    flat = jnp.asarray(IMAGES.reshape(6, *IMAGES.shape[2:]))
    crop = functools.partial(ops.random_crop, size=(3, 4))

    def both(x: Any, key: Any) -> Any:
        return crop(x, key=key), ops.random_flip(x, key=key)

    def ways(flat: Any, key: Any) -> Any:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(6))
        rows = jax.vmap(both)(flat, keys)
        return rows, [both(flat, key), both(flat.reshape(2, 3, 7, 10, 3), key)], crop(flat[4], key=keys[4])

    want, others, alone = jitted(ways)(flat, key)
    for other in others:
        for got, expected in zip(other, want, strict=True):
            np.testing.assert_array_equal(got.reshape(expected.shape), expected)
    np.testing.assert_array_equal(alone, want[0][4])
    windows = [flat[0, y : y + 3, x : x + 4] for y in range(5) for x in range(7)]
    assert any(np.array_equal(want[0][0], window) for window in windows)


def test_all_places_are_drawn_and_half_of_the_images_are_flipped(key: jax.Array) -> None:
    ramp = jnp.broadcast_to(jnp.arange(12, dtype=jnp.uint8).reshape(1, 3, 4, 1), (600, 3, 4, 1))
    rates = [functools.partial(ops.random_flip, rate=rate) for rate in (0.5, 0.0, 1.0)]
    crops, *flips = jitted(lambda x, key: [ops.random_crop(x, (2, 2), key=key), *(f(x, key=key) for f in rates)])(
        ramp, key
    )
    corners, counts = np.unique(np.asarray(crops)[:, 0, 0, 0], return_counts=True)
    assert corners.tolist() == [0, 1, 2, 4, 5, 6] and counts.min() > 60
    assert 240 < (np.asarray(flips[0])[:, 0, 0, 0] == 3).sum() < 360
    np.testing.assert_array_equal(flips[1], ramp)
    np.testing.assert_array_equal(flips[2], ramp[:, :, ::-1])


@pytest.mark.full
def test_keys_of_another_kind_draw_for_each_image() -> None:
    key = jax.random.key(0, impl="rbg")
    ramp = jnp.broadcast_to(jnp.arange(8, dtype=jnp.uint8).reshape(1, 1, 8, 1), (32, 1, 8, 1))
    assert len(np.unique(ops.random_crop(ramp, (1, 1), key=key))) > 4


@pytest.mark.parametrize("size", [(8, 5), (4, 11), (0, 3), (-1, 2)])
def test_sizes_that_do_not_fit_are_refused(size: tuple[int, int], key: jax.Array) -> None:
    for crop in (ops.center_crop, functools.partial(ops.random_crop, key=key)):
        with pytest.raises(ValueError, match=rf"size=\({size[0]}, {size[1]}\) is not within an image of 7 x 10 px"):
            crop(IMAGES, size)
    if min(size) < 1:
        with pytest.raises(ValueError, match="must be positive"):
            ops.resize(IMAGES, size)


def test_other_bad_arguments_are_named(untyped: None, key: jax.Array) -> None:
    with pytest.raises(ValueError, match=r"rate=1.5"):
        ops.random_flip(IMAGES, key=key, rate=1.5)
    with pytest.raises(ValueError, match=r"keys \(3,\) are neither one"):
        ops.random_flip(IMAGES, key=jax.random.split(key, 3))
    with pytest.raises(ValueError, match=r"needs images of shape .* not \(7, 10\)"):
        ops.resize(IMAGES[0, 0, :, :, 0], (3, 3))
