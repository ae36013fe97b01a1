"""Laws of image encoders with the small backbone: rows, vmap, odd sizes, positions, dtypes, errors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.encoders.image import BACKBONES, ImageEncoder, SmallCNN, make_backbone, pooled
from jaxseq.encoders.image.image_encoder import sinusoids

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 17, 23, 3)).astype(np.uint8)
SMALL = SmallCNN(channels=(8, 16, 16), strides=(2, 2, 1), kernels=(5, 3, 3), groups=4)
MODEL = ImageEncoder(SMALL, 12)


@functools.cache
def variables() -> Any:
    """Parameters of MODEL, biases made nonzero."""
    made = jitted(MODEL.init)(jax.random.key(0), IMAGES)
    return jax.tree.map(lambda p: p + 0.1, made)


@functools.cache
def memory() -> Any:
    """MODEL's memory of IMAGES."""
    return np.asarray(jitted(MODEL.apply)(variables(), IMAGES))


def test_a_batch_equals_its_rows_and_vmap() -> None:
    rows = jitted(functools.partial(jax.lax.map, functools.partial(MODEL.apply, variables())))(IMAGES)
    mapped = jitted(jax.vmap(functools.partial(MODEL.apply, variables())))(IMAGES)
    np.testing.assert_allclose(rows, memory(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mapped, memory(), rtol=1e-5, atol=1e-5)


def test_regions_are_the_map_row_after_row() -> None:
    assert memory().shape == (3, 5 * 6, 12)
    assert (SMALL.features, SMALL.stride) == (16, 4)
    feature_map = jitted(functools.partial(MODEL.apply, method="feature_map"))(variables(), IMAGES)
    assert feature_map.shape == (3, 5, 6, 16)
    np.testing.assert_allclose(pooled(feature_map), np.asarray(feature_map).mean((1, 2)), rtol=1e-5, atol=1e-5)
    frozen = {"params": {"projection": variables()["params"]["projection"]}}
    again = ImageEncoder(None, 12).apply(frozen, feature_map)
    np.testing.assert_allclose(again, memory(), rtol=1e-5, atol=1e-5)


def test_backbones_are_made_by_name() -> None:
    assert make_backbone("small", channels=(8,), strides=(1,), kernels=(3,)).features == 8
    assert "small" in BACKBONES
    with pytest.raises(ValueError, match="unknown backbone 'vgg'; known: small"):
        make_backbone("vgg")
    with pytest.raises(ValueError, match="one of each for every layer"):
        SmallCNN(channels=(8, 8))


def test_segment_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="no segment_ids"):
        MODEL.apply(variables(), IMAGES, np.ones((3, 30), np.int32))


def test_sinusoids_tell_row_and_column_apart() -> None:
    table = np.asarray(sinusoids(3, 5, 8))
    assert len(np.unique(table.reshape(15, 8).round(5), axis=0)) == 15
    np.testing.assert_array_equal(table[1, 0, :4], table[1, 4, :4])
    np.testing.assert_array_equal(table[0, 2, 4:], table[2, 2, 4:])
    with pytest.raises(ValueError, match="multiple of 4"):
        sinusoids(3, 5, 6)


def test_learned_positions_fit_one_size(key: jax.Array) -> None:
    x = jnp.ones((2, 3, 4, 8))
    model = ImageEncoder(None, positions="learned")
    made = model.init(key, x)
    table = made["params"]["projection"]["positions"]
    np.testing.assert_allclose(model.apply(made, x)[1], 1 + table.reshape(12, 8), rtol=1e-6)
    with pytest.raises(ValueError, match=r"map \(3, 4, 8\), not \(4, 3, 8\)"):
        model.apply(made, jnp.ones((2, 4, 3, 8)))


def test_positions_have_known_names(untyped: None, key: jax.Array) -> None:
    model: Any = ImageEncoder(None, positions="polar")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positions='polar'; known: coordinates"):
        model.init(key, jnp.ones((2, 3, 4, 8)))
