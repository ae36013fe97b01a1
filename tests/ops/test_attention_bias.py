"""Biases on the scores: tiles against the equation, values and gradients, the bias's own included."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted
from small_tiles import tiled, unrolled

from jaxseq.ops import attention, attention_reference, attention_weights
from jaxseq.ops.attention.masks import causal, dense_by_head, padding
from jaxseq.ops.attention.positions import alibi, relative_bias
from jaxseq.ops.attention.tiled import Span

B, T, S, N, M, H = 2, 21, 27, 4, 2, 6
SHAPES = [(N, T, S), (B, N, T, S), (B, 1, 1, S), (1, N, T, 1), (S,)]


def _normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def _inputs() -> tuple[jax.Array, ...]:
    return _normal(0, B, T, N, H), _normal(1, B, S, M, H), _normal(2, B, S, M, H), _normal(3, B, T, N, H)


def _derivatives(function: Any, inputs: tuple, weights: Any) -> tuple:
    """The value, the gradients by queries, keys, values and weights, and the tangent of all of them."""
    *arrays, cotangent = (*inputs[:3], weights, inputs[3])
    out, pullback = jax.vjp(function, *arrays)
    tangents = tuple(jnp.cos(3 * x) for x in arrays)
    return out, *pullback(cotangent), jax.jvp(function, tuple(arrays), tangents)[1]


def _close(actual: Any, expected: Any, atol: float = 1e-10) -> None:
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.full
@pytest.mark.parametrize("shape", SHAPES)
def test_an_array_of_any_shape_that_broadcasts_equals_the_equation(shape: tuple[int, ...], x64: None) -> None:
    few = partial(attention, implementation="decode")
    forms = (attention_reference, tiled, unrolled)
    functions = forms if len(shape) == 3 else (*forms, few)

    @jitted
    def all_of_them(inputs, bias):
        def call(f, q, k, v, bias):
            return f(q, k, v, bias=bias, mask=causal(offset=2), soft_cap=1.5)

        return [_derivatives(partial(call, f), inputs, bias) for f in functions]

    plain, *others = all_of_them(_inputs(), _normal(4, *shape))
    for other in others:
        _close(other, plain)


@pytest.mark.full
def test_minus_infinity_hides_as_a_mask_does(x64: None) -> None:
    seen = np.random.default_rng(5).random((B, N, T, S)) < 0.5
    seen[:, :, 4] = False
    bias = jnp.where(seen, _normal(4, B, N, T, S), -jnp.inf)

    @jitted
    def three_ways(inputs, bias, seen):
        def call(f, options, *x):
            return f(*x[:3], bias=x[3], **options)

        masked = _derivatives(
            partial(call, attention_reference, {"mask": dense_by_head(seen)}), inputs, jnp.where(seen, bias, 0)
        )
        return masked[:-1], *(
            _derivatives(partial(call, f, {}), inputs, bias)[:-1] for f in (attention_reference, tiled, unrolled)
        )

    masked, *infinite = three_ways(_inputs(), bias, jnp.asarray(seen))
    assert (masked[0][:, 4] == 0).all()
    for found in infinite:
        _close(found, masked)
        assert (found[-1][:, :, 4] == 0).all()


@pytest.mark.full
def test_nan_in_the_bias_of_hidden_pairs_poisons_nothing(x64: None) -> None:
    real = jnp.asarray(np.random.default_rng(5).random((B, S)) < 0.6)
    bias = _normal(4, B, N, T, S)

    @jitted
    def both(inputs, bias):
        def call(f, *x):
            return f(*x[:3], bias=x[3], mask=padding(real))

        return [_derivatives(partial(call, f), inputs, bias) for f in (attention_reference, unrolled)]

    plain, fast = both(_inputs(), bias)
    poisoned = both(_inputs(), jnp.where(real[:, None, None], bias, jnp.nan))
    _close(fast, plain)
    _close([x[:-1] for x in poisoned], [plain[:-1], fast[:-1]])
    assert np.isfinite(poisoned[1][-1]).all()


def _positional(kind: str, weights: jax.Array, positions: tuple) -> Any:
    if kind == "alibi":
        return alibi(weights[:, 0], *positions)
    return relative_bias(weights, *positions, bidirectional=kind == "both", max_distance=20)


@pytest.mark.full
@pytest.mark.parametrize(("kind", "given"), [("both", True), ("earlier", False), ("alibi", True)])
def test_a_bias_of_positions_is_its_array(kind: str, given: bool, x64: None) -> None:
    rng = np.random.default_rng(6)
    positions = (jnp.asarray(rng.integers(0, 60, (B, T))), jnp.asarray(rng.integers(-1, 60, (S,)))) if given else ()

    @jitted
    def both(inputs, weights):
        def fast(q, k, v, weights):
            return tiled(q, k, v, bias=_positional(kind, weights, positions))

        def plain(q, k, v, weights):
            array = _positional(kind, weights, positions).tile(Span(0, T), Span(0, S))
            return attention_reference(q, k, v, bias=array)

        return [_derivatives(f, inputs, weights) for f in (plain, fast)]

    plain, fast = both(_inputs(), _normal(7, N, 12))
    _close(fast, plain)
    assert np.abs(plain[4]).max() > 1e-3


def test_a_large_bias_for_all_keys_gives_equal_weights() -> None:
    """A row of -1e9, as in a float mask that hides everything: all weights are equal, in the gradient too."""
    query, key, value, cotangent = (x.astype(jnp.float32) for x in _inputs())
    rows = jnp.zeros((T, 1), jnp.float32).at[3].set(-1e9)

    def derivatives(attend: Any) -> Any:
        return _derivatives(lambda *x: attend(*x[:3], bias=x[3]), (query, key, value, cotangent), rows)

    found, expected = jitted(lambda: (derivatives(tiled), derivatives(attention_reference)))()
    _close(found, expected, 1e-4)


@pytest.mark.full
def test_vmap_of_gradients_is_the_loop(x64: None) -> None:
    """For a bias that is mapped and for one that all calls share; within a call the batch shares it."""
    inputs = tuple(jnp.stack([x, x[::-1] + 1]) for x in _inputs())

    def gradients(bias, *inputs):
        return jax.vjp(lambda *x: tiled(*x[:3], bias=x[3]), *inputs[:3], bias)[1](inputs[3])

    for bias, axis in ((_normal(4, 2, N, T, S), 0), (_normal(5, N, 1, S), None)):
        one = jitted(gradients)
        each = [one(bias if axis is None else bias[i], *(x[i] for x in inputs)) for i in range(2)]
        mapped = jitted(jax.vmap(gradients, (axis, 0, 0, 0, 0)))(bias, *inputs)
        _close(mapped, jax.tree.map(lambda *x: jnp.stack(x), *each))


@pytest.mark.full
def test_weights_for_capture_have_the_bias(x64: None) -> None:
    query, key, value, _ = _inputs()
    bias = _normal(4, N, T, S)
    weights = attention_weights(query, key, bias=bias)
    mixed = jnp.einsum("bnts,bsnh->btnh", weights, jnp.repeat(value, N // M, axis=2))
    _close(attention(query, key, value, bias=bias), mixed)
