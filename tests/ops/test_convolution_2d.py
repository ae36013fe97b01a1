"""Convolution of images against plain loops; forms chosen by platform against the reference, with gradients."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted

from jaxseq.ops import used_implementations
from jaxseq.ops.convolution import convolve_2d, depthwise_2d

CASES: list[tuple[int, int, Any, int, int]] = [
    (3, 1, "same", 5, 7),
    (5, 2, "same", 6, 9),
    (3, 2, 1, 6, 5),
    (2, 3, "valid", 7, 8),
]
FULL_CASES = [(1, 1, "same", 4, 3), (1, 2, 0, 5, 4), (5, 1, "same", 2, 3), (7, 2, 3, 9, 8), (3, 2, "same", 8, 8)]
ALL = [*CASES, *(pytest.param(*case, marks=pytest.mark.full) for case in FULL_CASES)]


def draw(*shape: int) -> np.ndarray:
    """Numbers in double precision."""
    return np.random.default_rng(sum(shape)).normal(size=shape)


def plain(x: np.ndarray, kernel: np.ndarray, stride: int, padding: Any) -> np.ndarray:
    """The sum over taps, one place after another; ``kernel`` is [J K C F]."""
    taps = kernel.shape[:2]
    if padding == "same":
        total = [max((-(-n // stride) - 1) * stride + k - n, 0) for n, k in zip(x.shape[1:3], taps, strict=True)]
        sides = [(t // 2, t - t // 2) for t in total]
    else:
        sides = [(0 if padding == "valid" else padding,) * 2] * 2
    x = np.pad(x, [(0, 0), *sides, (0, 0)])
    rows, columns = (range(0, n - k + 1, stride) for n, k in zip(x.shape[1:3], taps, strict=True))
    places = [[x[:, v : v + taps[0], u : u + taps[1]] for u in columns] for v in rows]
    return np.array([[np.einsum("bjkc,jkcf->bf", p, kernel) for p in row] for row in places]).transpose(2, 0, 1, 3)


@pytest.mark.parametrize(("size", "stride", "padding", "height", "width"), ALL)
def test_convolution_is_the_sum_over_taps(
    size: int, stride: int, padding: Any, height: int, width: int, x64: Any
) -> None:
    x, kernel = draw(2, height, width, 3), draw(size, size, 3, 4)
    got = convolve_2d(jnp.asarray(x), jnp.asarray(kernel), stride=stride, padding=padding)
    close(got, plain(x, kernel, stride, padding))


@pytest.mark.parametrize(("size", "stride", "padding", "height", "width"), ALL)
def test_depthwise_forms_agree_with_their_gradients(
    size: int, stride: int, padding: Any, height: int, width: int, x64: Any
) -> None:
    x, kernel = draw(2, height, width, 3), draw(size, size, 3)
    want = plain(x, kernel[..., None] * np.eye(3), stride, padding)
    weights = jnp.asarray(draw(*want.shape))

    def run(implementation: Any, x: Any, kernel: Any) -> Any:
        ys = depthwise_2d(x, kernel, stride=stride, padding=padding, implementation=implementation)
        return (weights * jnp.sin(ys)).sum(), ys

    results = {}
    for implementation in ("shifted", "reference"):
        value = jax.value_and_grad(functools.partial(run, implementation), (0, 1), has_aux=True)
        (_, ys), results[implementation] = jitted(value)(jnp.asarray(x), jnp.asarray(kernel))
        close(ys, want)
    close(results["shifted"], results["reference"])


def test_depthwise_has_forward_and_second_derivatives_and_vmap(x64: Any) -> None:
    x, kernel = jnp.asarray(draw(2, 4, 5, 3)), jnp.asarray(draw(3, 3, 3))

    def run(implementation: Any, x: Any, kernel: Any) -> Any:
        return jnp.sin(depthwise_2d(x, kernel, stride=2, implementation=implementation)).sum()

    def derivatives(implementation: Any) -> Any:
        function = functools.partial(run, implementation)
        products = jax.jvp(jax.grad(function, (0, 1)), (x, kernel), (jnp.cos(x), jnp.cos(kernel)))
        return products, jax.vmap(function, (0, None))(x, kernel), jax.vmap(function, (None, 2))(x[0], kernels)

    kernels = jnp.stack([kernel, 2 * kernel], axis=2)
    compute = jitted(lambda: (derivatives("shifted"), derivatives("reference")))
    close(*compute())


def test_low_precision_is_summed_in_float32() -> None:
    x = jnp.ones((1, 9, 9, 2), jnp.bfloat16)
    kernel = jnp.full((9, 9, 2), 1 + 2**-7, jnp.bfloat16)
    got = jitted(functools.partial(depthwise_2d, padding="valid", implementation="shifted"))(x, kernel)
    assert got.dtype == jnp.bfloat16 and float(got[0, 0, 0, 0]) == float(jnp.asarray(81 * (1 + 2**-7), jnp.bfloat16))


def test_the_form_is_chosen_by_the_platform() -> None:
    shapes = jax.ShapeDtypeStruct((1, 4, 4, 2), jnp.float32), jax.ShapeDtypeStruct((3, 3, 2), jnp.float32)
    chosen = "shifted" if jax.default_backend() == "cpu" else "reference"
    assert used_implementations(depthwise_2d, *shapes) == {"depthwise_2d": (chosen,)}


def test_a_1x1_convolution_is_a_dense_layer_per_pixel(x64: Any) -> None:
    x, kernel = jnp.asarray(draw(2, 3, 4, 5)), draw(1, 1, 5, 6)
    got = convolve_2d(x, jnp.asarray(kernel))
    close(got, np.stack([[[pixel @ kernel[0, 0] for pixel in row] for row in image] for image in np.asarray(x)]))

    def loss(convolve: Any, x: Any, kernel: Any) -> Any:
        return jnp.sin(convolve(x, kernel)).sum()

    def dense(x: Any, kernel: Any) -> Any:
        return jnp.einsum("byxc,cf->byxf", x, kernel[0, 0])

    gradients = [
        jitted(jax.grad(functools.partial(loss, f), (0, 1)))(x, jnp.asarray(kernel)) for f in (convolve_2d, dense)
    ]
    close(*gradients)
    mapped = jax.vmap(functools.partial(convolve_2d, kernel=jnp.asarray(kernel)))(x)
    close(mapped, got)


def test_on_a_1x1_map_convolutions_and_dense_layers_are_one(x64: Any) -> None:
    x, kernel = draw(2, 1, 1, 5), draw(3, 3, 5, 6)
    dense = x.reshape(2, 5) @ kernel[1, 1]
    close(convolve_2d(jnp.asarray(x), jnp.asarray(kernel[1:2, 1:2])).reshape(2, 6), dense)
    close(convolve_2d(jnp.asarray(x), jnp.asarray(kernel)).reshape(2, 6), dense)
    whole = draw(2, 3, 3, 5)
    close(
        convolve_2d(jnp.asarray(whole), jnp.asarray(kernel), padding="valid").reshape(2, 6),
        whole.reshape(2, -1) @ kernel.reshape(-1, 6),
    )


def test_bad_arguments_are_named(untyped: None) -> None:
    x, kernel, depthwise = jnp.ones((2, 4, 4, 3)), jnp.ones((3, 3, 3, 2)), jnp.ones((3, 3, 3))
    half = jnp.bfloat16
    for convolve, weights in ((convolve_2d, kernel), (depthwise_2d, depthwise)):
        run: Any = convolve
        with pytest.raises(ValueError, match="stride=0"):
            run(x, weights, stride=0)
        with pytest.raises(ValueError, match="padding='around'; known: 'same'"):
            run(x, weights, padding="around")
        with pytest.raises(ValueError, match="4 x 4 px with padding='valid' is smaller"):
            run(x, jnp.ones((5, 5, *weights.shape[2:])), padding="valid")
        with pytest.raises(ValueError, match="must share one dtype"):
            run(x.astype(half), weights)
        with pytest.raises(ValueError, match="does not fit images"):
            run(x[..., :2], weights)
    with pytest.raises(ValueError, match="implementation='cudnn'; known: auto, shifted, reference"):
        depthwise_2d(x, depthwise, implementation="cudnn")  # type: ignore[arg-type]
