"""Dropout of attention weights: one draw for every implementation, forward and backward, and its statistics."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted
from small_tiles import tiled, unrolled

from jaxseq.ops import attention, attention_reference, attention_weights
from jaxseq.ops.attention.dropout import make_dropout
from jaxseq.ops.attention.masks import causal
from jaxseq.ops.attention.positions import relative_bias
from jaxseq.ops.attention.tiled import Span

B, T, S, N, M, H = 2, 21, 27, 4, 2, 6


def _inputs() -> tuple[jax.Array, ...]:
    shapes = (B, T, N, H), (B, S, M, H), (B, S, M, H), (B, T, N, H)
    return tuple(jnp.asarray(np.random.default_rng(i).normal(size=shape)) for i, shape in enumerate(shapes))


def _value_and_grads(function: Any, *inputs: jax.Array) -> tuple:
    out, pullback = jax.vjp(function, *inputs[:3])
    return out, *pullback(inputs[3])


def _close(actual: Any, expected: Any) -> None:
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


def _kept(rate: float, key: jax.Array, batch: tuple[int, ...] = (3,), size: int = 128) -> jax.Array:
    dropout = make_dropout(rate, key, batch, 4)
    assert dropout is not None
    return dropout.tile(Span(0, size), Span(0, size))


def test_tiles_and_equation_drop_the_same_weights_forward_and_backward(x64: None) -> None:
    """The gradient of a bias includes the dropout too."""
    bias = jnp.asarray(np.random.default_rng(4).normal(size=(N, T, S)))

    @jitted
    def both(inputs, bias, key):
        def derivatives(f):
            options = {"mask": causal(offset=4), "dropout_rate": 0.3, "dropout_key": key}
            out, pullback = jax.vjp(lambda *x: f(*x[:3], bias=x[3], **options), *inputs[:3], bias)
            return out, *pullback(inputs[3])

        return [derivatives(f) for f in (attention_reference, tiled, unrolled)]

    plain, *others = both(_inputs(), bias, jax.random.key(3))
    for fast in others:
        _close(fast, plain)
    other = both(_inputs(), bias, jax.random.key(4))
    assert np.abs(other[0][0] - plain[0]).max() > 0.1


@pytest.mark.full
def test_the_draw_depends_on_no_implementation_and_no_size_of_tiles(x64: None) -> None:
    key = jax.random.key(3, impl="rbg")
    forms = (
        attention_reference,
        partial(attention, implementation="decode"),
        partial(attention, implementation="tiles"),
        partial(tiled, tiles=(16, 5)),
        unrolled,
    )
    plain, *others = jitted(
        lambda *x: [_value_and_grads(partial(f, dropout_rate=0.5, dropout_key=key), *x) for f in forms]
    )(*_inputs())
    for other in others:
        _close(other, plain)


@pytest.mark.full
def test_weights_are_dropped_after_the_softmax_and_the_others_scaled(x64: None) -> None:
    query, key, value, _ = (x[:1, :9] for x in _inputs())

    @jitted
    def all_of_it(dropout_key):
        f = partial(attention, query, key, value, dropout_key=dropout_key)
        plain = f(dropout_rate=0.0), attention(query, key, value)
        return f(dropout_rate=0.25), attention_weights(query, key), _kept(0.25, dropout_key, (1,), 9), plain

    out, weights, kept, plain = all_of_it(jax.random.key(1))
    expected = np.einsum("bnts,bsnh->btnh", np.where(kept, weights / 0.75, 0), np.repeat(value, N // M, axis=2))
    np.testing.assert_allclose(out, expected, atol=1e-12)
    np.testing.assert_array_equal(*plain)


@pytest.mark.full
def test_draws_have_the_rate_and_are_independent() -> None:
    """Every count is within 5 standard deviations of its mean under independence."""
    rate = 0.3
    draw = jitted(partial(_kept, rate))
    draws = np.concatenate([draw(key) for key in jax.random.split(jax.random.key(0), 3)]) - (1 - rate)
    variance = rate * (1 - rate)

    def uncorrelated(x: np.ndarray, y: np.ndarray) -> None:
        assert abs((x * y).sum()) <= 5 * variance * np.sqrt(x.size)

    assert abs(draws.sum()) <= 5 * np.sqrt(variance * draws.size)
    for axis in range(4):
        others = tuple(i for i in range(4) if i != axis)
        sums = draws.sum(others)
        assert (np.abs(sums) <= 5 * np.sqrt(variance * draws.size / len(sums))).all()
        for shift in (1, 2, 3) if axis < 2 else (1, 2, 8, 64):
            uncorrelated(draws, np.roll(draws, shift, axis))
    above, below = np.triu_indices(draws.shape[-1], 1)
    uncorrelated(draws[..., above, below], draws[..., below, above])
    quads = draws * np.roll(draws, 1, -1)
    uncorrelated(quads, np.roll(quads, 1, -2) / variance)


@pytest.mark.full
def test_under_vmap_every_call_has_its_key(x64: None) -> None:
    """``vmap`` over keys of kind rbg draws from the first key in JAX's own samplers."""
    inputs = tuple(x[:, None] for x in _inputs())
    keys = jax.random.split(jax.random.key(5, impl="rbg"), B)

    def one(key, *inputs):
        return _value_and_grads(partial(unrolled, dropout_rate=0.4, dropout_key=key), *inputs)

    each = [jitted(one)(key, *(x[i] for x in inputs)) for i, key in enumerate(keys)]
    _close(jitted(jax.vmap(one))(keys, *inputs), jax.tree.map(lambda *x: jnp.stack(x), *each))
    twins = jitted(jax.vmap(one, (0, None, None, None, None)))(keys, *(x[0] for x in inputs))
    assert np.abs(twins[0][0] - twins[0][1]).max() > 0.1


@pytest.mark.full
def test_neither_draws_nor_the_bias_of_distances_are_stored() -> None:
    def temporary(length: int) -> int:
        x = jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)

        def loss(key, table, *qkv):
            options = {"bias": relative_bias(table, bidirectional=False), "dropout_rate": 0.1, "dropout_key": key}
            return attention(*qkv, mask=causal(), implementation="tiles", **options).sum()

        gradient = jitted(jax.grad(loss, argnums=(1, 2, 3, 4)))
        lowered = gradient.lower(jax.random.key(0), jax.ShapeDtypeStruct((2, 32), jnp.float32), x, x, x)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert temporary(4096) <= 2.2 * temporary(2048)
