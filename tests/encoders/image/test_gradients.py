"""Gradients of image backbones under jit: the max pool against a plain reference, parameters of whole backbones."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.encoders.image import EfficientNetLite0, ImageEncoder, Patches, ResNet, SmallCNN
from jaxseq.encoders.image.resnet import max_pool

SMALL = SmallCNN(channels=(8, 16, 16), strides=(2, 2, 1), kernels=(5, 3, 3), groups=4)


def plain_max_pool(x: np.ndarray, cotangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The maxima of images ``[B Y X C]`` without ties, and the cotangent of the images."""
    out, back = np.zeros(cotangent.shape), np.zeros(x.shape)
    for b, v, u, c in np.ndindex(*cotangent.shape):
        rows, columns = (slice(max(2 * n - 1, 0), 2 * n + 2) for n in (v, u))
        window = x[b, rows, columns, c]
        y, z = np.unravel_index(window.argmax(), window.shape)
        out[b, v, u, c] = window[y, z]
        back[b, rows.start + y, columns.start + z, c] += cotangent[b, v, u, c]
    return out, back


def test_max_pool_and_its_gradient_agree_with_loops_under_jit_and_vmap(x64: Any) -> None:
    rng = np.random.default_rng(0)
    x, cotangent = rng.normal(size=(2, 5, 8, 3)), rng.normal(size=(2, 3, 4, 3))

    def pull(x: Any, cotangent: Any) -> Any:
        y, back = jax.vjp(max_pool, x)
        return y, back(cotangent)[0]

    for run in (pull, jax.vmap(pull)):
        for got, want in zip(jitted(run)(x, cotangent), plain_max_pool(x, cotangent), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.full
@pytest.mark.parametrize(
    ("backbone", "dtype"),
    [
        (SMALL, jnp.float32),
        (SMALL, jnp.bfloat16),
        (Patches(8, 16), jnp.float32),
        (ResNet(18, width=8, norm="group"), jnp.bfloat16),
        (ResNet(50, width=8), jnp.float32),
        (EfficientNetLite0(norm="group"), jnp.float32),
    ],
)
def test_every_parameter_has_a_finite_gradient(backbone: Any, dtype: Any) -> None:
    model = ImageEncoder(backbone.clone(dtype=dtype), 12, dtype=dtype)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 72, 3)).astype(np.uint8)
    variables = jitted(model.init)(jax.random.key(0), images)
    weights = np.random.default_rng(1).normal(size=12).astype(np.float32)

    def loss(variables: Any) -> Any:
        memory: Any = model.apply(variables, images)
        return (memory.astype(jnp.float32) @ weights).mean()

    flat, _ = jax.tree.flatten_with_path(jitted(jax.grad(loss))(variables))
    for path, gradient in flat:
        assert gradient.dtype == jnp.float32
        assert np.isfinite(gradient).all() and np.any(gradient), jax.tree_util.keystr(path)


@pytest.mark.full
@pytest.mark.parametrize("backbone", [SMALL, ResNet(18, width=8, norm="group")])
def test_gradients_agree_with_finite_differences(backbone: Any, x64: Any) -> None:
    """Along a random direction of all parameters, in double precision; central differences of two widths."""
    model = ImageEncoder(backbone.clone(dtype=jnp.float64, param_dtype=jnp.float64), None, dtype=jnp.float64)
    images = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8)
    variables = jitted(model.init)(jax.random.key(0), images)
    rng = np.random.default_rng(1)
    direction = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape) * 0.1), variables)

    def loss(t: Any) -> Any:
        moved = jax.tree.map(lambda p, d: p + t * d, variables, direction)
        memory: Any = model.apply(moved, images)
        return jnp.square(memory).mean()

    run = jitted(jax.value_and_grad(loss))
    slope = float(run(jnp.zeros(()))[1])
    errors = [abs(float(run(h)[0] - run(-h)[0]) / (2 * h) - slope) for h in (1e-6, 1e-7)]
    assert min(errors) < 1e-5 * abs(slope) and slope != 0
