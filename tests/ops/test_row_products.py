"""Sums over rows and features, products with rows, and layer norm: values and derivatives of the equations."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted

from jaxseq.ops.layer_norm import layer_norm
from jaxseq.ops.rows import add_to_rows, multiply_rows, row_products, sum_features, sum_rows

BATCH, TIME, WIDTH = 3, 30, 7


def equation_of_layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    centered = x - x.mean(-1, keepdims=True)
    normalized = centered / jnp.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return normalized * jnp.expand_dims(scale, range(x.ndim - 1)) + jnp.expand_dims(bias, range(x.ndim - 1))


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


CASES: dict[str, tuple[Callable, Callable, tuple[tuple[int, ...], ...]]] = {
    "layer norm": (layer_norm, equation_of_layer_norm, ((WIDTH,), (WIDTH,))),
    "add": (add_to_rows, lambda x, v: x + jnp.expand_dims(v, range(x.ndim - 1)), ((WIDTH,),)),
    "wide product": (multiply_rows, lambda x, W: jnp.einsum("...d,df->...f", x, W), ((WIDTH, 9),)),
    "narrow product": (multiply_rows, lambda x, W: jnp.einsum("...d,df->...f", x, W), ((WIDTH, 4),)),
}


@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives_of_every_mode_are_those_of_the_equation(name: str, x64: None) -> None:
    fast, plain, shapes = CASES[name]
    arguments = normal(0, BATCH, TIME, WIDTH), *(normal(i, *shape) for i, shape in enumerate(shapes, 1))
    tangents = tuple(jnp.cos(3 * a) for a in arguments)
    cotangent = jnp.sin(jax.eval_shape(plain, *arguments).shape[-1] + normal(9, BATCH, TIME, 1)) * jnp.ones((1, 1, 1))

    def derivatives(f: Callable, *arguments: jax.Array) -> Any:
        def loss(*a: jax.Array) -> jax.Array:
            return (jnp.sin(f(*a)) * cotangent).sum()

        gradient = jax.grad(loss, range(len(arguments)))
        mapped = jax.grad(lambda x, *v: (jax.vmap(lambda x: f(x, *v))(x) ** 2).sum(), range(len(arguments)))
        each = jax.vmap(lambda x: jax.grad(lambda *a: (f(*a) ** 2).sum(), range(len(arguments)))(x, *arguments[1:]))
        return (
            f(*arguments),
            jax.jvp(f, arguments, tangents)[1],
            gradient(*arguments),
            jax.jvp(gradient, arguments, tangents)[1],
            jax.grad(lambda *a: sum(g.sum() for g in gradient(*a)))(*arguments),
            mapped(*arguments),
            each(arguments[0]),
            f(arguments[0][0, 0], *arguments[1:]),
        )

    both = jitted(lambda *a: [derivatives(f, *a) for f in (fast, plain)])(*arguments)
    for got, want in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)


def test_sums_are_those_of_numpy(x64: None) -> None:
    x, y, weights = normal(0, BATCH, TIME, WIDTH), normal(1, BATCH, TIME, 4), normal(2, WIDTH)
    found = jitted(lambda x, y, w: (sum_rows(x), sum_features(x), sum_features(x, w), row_products(x, y)))(
        x, y, weights
    )
    a = np.asarray(x)
    wanted = a.sum((0, 1)), a.sum(-1, keepdims=True), (a @ weights)[..., None], np.einsum("btd,btf->df", a, y)
    for got, want in zip(found, wanted, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)


def test_gradients_of_a_bias_and_a_kernel_hold_no_sum_over_rows_and_one_product_each() -> None:
    """A sum over the leading axes is 20 times as slow as a product on a CPU, also under ``vmap``."""
    x, bias, kernel = jnp.ones((4, 32, 8)), jnp.ones(16), jnp.ones((8, 16))

    def loss(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        return add_to_rows(multiply_rows(x, kernel), bias)

    for f in (loss, lambda x, *w: jax.vmap(lambda x: loss(x, *w))(x)):
        text = str(jax.make_jaxpr(lambda *a, f=f: jax.vjp(f, *a)[1](jnp.ones((4, 32, 16))))(x, kernel, bias))
        assert "reduce_sum" not in text
        assert text.count("dot_general") == 4  # forward, both gradients of the product, the sum


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_sums_of_16_bits_are_float32(dtype: Any) -> None:
    x = jnp.full((100, 3), 0.1, dtype)
    found = jitted(functools.partial(sum_rows))(x)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.asarray(x, np.float32).sum(0), rtol=1e-5)
