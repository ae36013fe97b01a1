"""Laws of image encoders with the small backbone: rows, vmap, odd sizes, positions, dtypes, errors."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.decoders import Bridge, make_decoder
from jaxseq.encoders import make_encoder
from jaxseq.encoders.image import BACKBONES, ImageEncoder, Patches, SmallCNN, make_backbone, pooled
from jaxseq.encoders.image.convolution import FrozenBatchNorm, GroupNorm, make_norm
from jaxseq.encoders.image.image_encoder import sinusoids
from jaxseq.layers import Embedding
from jaxseq.models import EncoderDecoder
from jaxseq.models.encoder_decoder import alignment

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 33, 47, 3)).astype(np.uint8)
SMALL = SmallCNN(channels=(8, 16, 16), strides=(2, 2, 1), kernels=(5, 3, 3), groups=4)
MODEL = ImageEncoder(SMALL, 12)


@functools.cache
def variables() -> Any:
    """Random parameters of MODEL."""
    random, shapes = np.random.default_rng(1), jax.eval_shape(MODEL.init, jax.random.key(0), IMAGES)
    return jax.tree.map(lambda leaf: jnp.asarray(random.normal(size=leaf.shape) / 4, leaf.dtype), shapes)


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
    assert memory().shape == (3, 9 * 12, 12)
    assert (SMALL.features, SMALL.stride) == (16, 4)
    feature_map = jitted(functools.partial(MODEL.apply, method="feature_map"))(variables(), IMAGES)
    assert feature_map.shape == (3, 9, 12, 16)
    np.testing.assert_allclose(jitted(pooled)(feature_map), np.asarray(feature_map).mean((1, 2)), rtol=1e-5, atol=1e-5)
    frozen = {"params": {"projection": variables()["params"]["projection"]}}
    again = jitted(ImageEncoder(None, 12).apply)(frozen, feature_map)
    np.testing.assert_allclose(again, memory(), rtol=1e-5, atol=1e-5)


def test_low_precision_computes_nearly_the_same() -> None:
    low = ImageEncoder(SMALL.clone(dtype=jnp.bfloat16), 12, dtype=jnp.bfloat16)
    half = jitted(low.apply)(variables(), IMAGES)
    assert half.dtype == jnp.bfloat16
    assert np.abs(np.asarray(half, np.float32) - memory()).mean() < 0.02 * np.abs(memory()).mean()


def test_group_norm_is_its_equation(x64: None, key: jax.Array) -> None:
    x = np.random.default_rng(2).normal(2, 3, (2, 3, 5, 8))
    model = GroupNorm(4, epsilon=0.1, dtype=jnp.float64, param_dtype=jnp.float64)
    scale, bias = np.arange(8.0), np.arange(8.0)[::-1].copy()
    got = jitted(model.apply)({"params": {"scale": scale, "bias": bias}}, jnp.asarray(x))
    groups = x.reshape(2, 15, 4, 2)
    mean, variance = groups.mean((1, 3), keepdims=True), groups.var((1, 3), keepdims=True)
    want = ((groups - mean) / np.sqrt(variance + 0.1)).reshape(x.shape) * scale + bias
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="groups=3 does not divide 8 channels"):
        GroupNorm(3).init(key, jnp.ones((2, 2, 8)))


def test_frozen_statistics_are_an_affine_map(untyped: None) -> None:
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 5, 8)), jnp.float32)
    scale, bias = jnp.arange(8.0), -jnp.arange(8.0)
    got = np.asarray(jitted(FrozenBatchNorm().apply)({"params": {"scale": scale, "bias": bias}}, x))
    np.testing.assert_allclose(got, np.asarray(x) * np.arange(8.0) - np.arange(8.0), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="norm='batch'; known: group, frozen_batch"):
        make_norm("batch")  # type: ignore[arg-type]


@pytest.mark.full
def test_it_takes_the_place_of_a_text_encoder() -> None:
    model = EncoderDecoder(
        MODEL, Embedding(7, 8), make_decoder("attention", "gru", 8), nn.Dense(7), bridge=Bridge("mean")
    )
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 7, (3, 5)), jnp.int32)
    made = jitted(model.init)(jax.random.key(0), IMAGES, tokens)

    def loss(variables: Any) -> Any:
        logits = jax.nn.log_softmax(model.apply(variables, IMAGES, tokens[:, :-1]))
        return -jnp.take_along_axis(logits, tokens[:, 1:, None], -1).mean()

    value = jitted(jax.value_and_grad(loss))
    before, gradient = value(made)
    assert min(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient["params"]["encoder"])) > 0
    after, _ = value(jax.tree.map(lambda p, g: p - 0.1 * g, made, gradient))
    assert after < before
    weights = alignment(model, made, jnp.asarray(IMAGES), tokens)
    assert weights is not None and weights.shape == (3, 5, 108)


@pytest.mark.full
def test_self_attention_over_patches_is_a_vision_transformer() -> None:
    layers = make_encoder("transformer", 16, 2, feed_forward=32, positions="none")
    model = ImageEncoder(Patches(8, 16), None, layers, positions="sinusoidal")
    images = jnp.asarray(IMAGES[:, :32, :40])
    made = jitted(model.init)(jax.random.key(0), images)
    whole = jitted(model.apply)(made, images)
    assert whole.shape == (3, 20, 16)
    np.testing.assert_allclose(jitted(model.apply)(made, images[1]), whole[1], rtol=1e-4, atol=1e-5)


def test_backbones_are_made_by_name() -> None:
    assert make_backbone("small", channels=(8,), strides=(1,), kernels=(3,)).features == 8
    assert "small" in BACKBONES
    with pytest.raises(ValueError, match="unknown backbone 'vgg'; known: small, resnet18"):
        make_backbone("vgg")
    with pytest.raises(ValueError, match="one of each for every layer"):
        SmallCNN(channels=(8, 8))


def test_segment_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="no segment_ids"):
        MODEL.apply(variables(), IMAGES, jnp.ones((3, 108), jnp.int32))


def test_a_backbone_without_a_normalization_is_refused(untyped) -> None:
    with pytest.raises(ValueError, match="Dense is no Backbone: it has no mean and no std"):
        ImageEncoder(nn.Dense(8), 8).init(jax.random.key(0), np.zeros((2, 4, 4, 3), np.uint8))


def test_without_a_backbone_pixels_are_refused() -> None:
    for dtype in (np.uint8, np.int32):
        with pytest.raises(ValueError, match=rf"takes feature maps of floats, not {dtype.__name__} of \(2, 4, 4, 3\)"):
            ImageEncoder(None, 8).init(jax.random.key(0), np.zeros((2, 4, 4, 3), dtype))


def test_sinusoids_tell_row_and_column_apart() -> None:
    table = np.asarray(jitted(lambda: sinusoids(3, 5, 8))())
    assert len(np.unique(table.reshape(15, 8).round(5), axis=0)) == 15
    np.testing.assert_array_equal(table[1, 0, :4], table[1, 4, :4])
    np.testing.assert_array_equal(table[0, 2, 4:], table[2, 2, 4:])
    with pytest.raises(ValueError, match="multiple of 4"):
        sinusoids(3, 5, 6)


def test_learned_positions_fit_one_size(key: jax.Array) -> None:
    x = jnp.ones((2, 3, 4, 8))
    model = ImageEncoder(None, positions="learned")
    made = jitted(model.init)(key, x)
    table = made["params"]["projection"]["positions"]
    np.testing.assert_allclose(jitted(model.apply)(made, x)[1], 1 + table.reshape(12, 8), rtol=1e-6)
    with pytest.raises(ValueError, match=r"map \(3, 4, 8\), not \(4, 3, 8\)"):
        model.apply(made, jnp.ones((2, 4, 3, 8)))


def test_positions_have_known_names(untyped: None, key: jax.Array) -> None:
    model: Any = ImageEncoder(None, positions="polar")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positions='polar'; known: coordinates"):
        model.init(key, jnp.ones((2, 3, 4, 8)))
