"""Forward mode through attention at any size, and second derivatives."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted
from small_tiles import tiled, unrolled

from jaxseq.cores import CORES
from jaxseq.ops import attention, attention_implementation, attention_reference
from jaxseq.ops.attention.masks import causal

B, T, N, M, H = 2, 20, 4, 2, 3


def _inputs(length: int = T) -> tuple[jax.Array, ...]:
    rng = np.random.default_rng(0)
    shapes = (B, length, N, H), (B, length, M, H), (B, length, M, H), (N, length, length)
    return tuple(jnp.asarray(rng.normal(size=shape)) for shape in shapes)


def _options() -> dict[str, Any]:
    return {"mask": causal(), "soft_cap": 2.0, "dropout_rate": 0.2, "dropout_key": jax.random.key(0)}


def test_forward_mode_at_130_steps_is_the_finite_difference(x64: None) -> None:
    inputs = _inputs(130)
    assert attention_implementation(*inputs[:3]) == "unrolled"
    tangents = tuple(jnp.cos(3 * x) for x in inputs)

    def f(*x: jax.Array) -> jax.Array:
        return attention(*x[:3], bias=x[3], **_options())

    step, g = 1e-6, jitted(f)
    ahead, behind = (g(*(x + h * t for x, t in zip(inputs, tangents, strict=True))) for h in (step, -step))
    tangent = jitted(lambda x, t: jax.jvp(f, x, t)[1])(inputs, tangents)
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), atol=1e-7)


@pytest.mark.full
def test_second_derivatives_forward_and_reverse_over_reverse_are_those_of_the_equation(x64: None) -> None:
    inputs = _inputs()
    tangents = tuple(jnp.sin(x) for x in inputs)

    def second(form: Any, inputs: tuple, tangents: tuple) -> tuple:
        def loss(*x: jax.Array) -> jax.Array:
            return jnp.sin(form(*x[:3], bias=x[3], **_options())).sum()

        gradient = jax.grad(loss, argnums=(0, 1, 2, 3))

        def along(*x: jax.Array) -> Any:
            return sum((g * t).sum() for g, t in zip(gradient(*x), tangents, strict=True))

        forward_over_reverse = jax.jvp(gradient, inputs, tangents)[1]
        return forward_over_reverse, jax.grad(along, argnums=(0, 1, 2, 3))(*inputs)

    forms = attention_reference, tiled, unrolled
    plain, *others = jitted(lambda *x: [second(form, *x) for form in forms])(inputs, tangents)
    for fast in others:
        for a, b in zip(jax.tree.leaves(fast), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    for a, b in zip(plain[0], plain[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.full
def test_memory_of_forward_mode_grows_with_the_length() -> None:
    def temporary(length: int) -> int:
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        f = partial(attention, mask=causal(), implementation="tiles")
        lowered = jitted(lambda *x: jax.jvp(f, x, x)[1]).lower(x, x, x)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) <= 2.2 * temporary(2048)


@pytest.mark.full
def test_forward_mode_through_a_core_that_chooses_the_implementation(x64: None) -> None:
    core = CORES["attention"](features=8, num_heads=2)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(1, 130, 8)), jnp.float32)
    carry = core.initial_carry((1,))
    parameters = jitted(core.init)(jax.random.key(0), carry, xs)

    def loss(parameters: Any, xs: jax.Array) -> jax.Array:
        return jnp.sin(core.apply(parameters, carry, xs)[1]).sum()

    ones = jax.tree.map(jnp.ones_like, (parameters, xs))
    tangent = jitted(lambda *x: jax.jvp(loss, x, ones)[1])(parameters, xs)
    gradients = jitted(jax.grad(loss, argnums=(0, 1)))(parameters, xs)
    np.testing.assert_allclose(tangent, sum(g.sum() for g in jax.tree.leaves(gradients)), rtol=1e-4)
