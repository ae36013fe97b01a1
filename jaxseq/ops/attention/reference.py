"""The reference implementation of attention: stores all weights and supports every derivative."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.ops.attention.biases import Bias, as_bias
from jaxseq.ops.attention.dropout import Dropout, make_dropout
from jaxseq.ops.attention.masks import Mask
from jaxseq.ops.attention.parts import Parts
from jaxseq.ops.attention.tiled import MIN_SCORE, Span, align_ranks
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float, Key


def attention_reference(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    *,
    mask: Mask | None = None,
    bias: Bias | Float[Array, "..."] | None = None,
    scale: float | Float[Array, ""] | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "*B T N Hv"]:
    """``drop(weights) · value``: the equation of ``attention``, differentiable in every mode and order."""
    bias = as_bias(bias)
    check_arguments(query, key, value, mask, bias, soft_cap)
    parts = Parts(mask, bias, make_dropout(dropout_rate, dropout_key, query.shape[:-3], query.shape[-2]))
    return reference(query, key, value, parts, check_scale(query, scale), soft_cap)


def reference(query: Array, key: Array, value: Array, parts: Parts, scale: Any, soft_cap: float | None) -> Array:
    """``attention_reference`` for arguments that have been checked."""
    query, key, value = zero_hidden(query, key, value, parts.mask)
    weights = drop(_weights(query, key, parts, scale, soft_cap), parts.dropout).astype(value.dtype)
    grouped = weights.reshape(*weights.shape[:-3], *_head_groups(query, key), *weights.shape[-2:])
    out = jnp.einsum("...mgts,...smh->...tmgh", grouped, value, preferred_element_type=at_least_float32(query.dtype))
    return zero_hidden_queries(out.reshape(*query.shape[:-1], value.shape[-1]).astype(query.dtype), parts.mask)


def attention_weights(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    *,
    mask: Mask | None = None,
    bias: Bias | Float[Array, "..."] | None = None,
    scale: float | Float[Array, ""] | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "*B N T S"]:
    """``softmax(capped(scale · query keyᵀ) + bias)`` over the visible keys, at least float32; zeros if none.

    These are the weights before dropout.
    """
    bias = as_bias(bias)
    check_arguments(query, key, key, mask, bias, soft_cap)
    query, key, _ = zero_hidden(query, key, key, mask)
    return _weights(query, key, Parts(mask, bias), check_scale(query, scale), soft_cap)


def _weights(query: Array, key: Array, parts: Parts, scale: Any, soft_cap: float | None) -> Array:
    grouped = query.reshape(*query.shape[:-2], *_head_groups(query, key), query.shape[-1])
    wide = at_least_float32(query.dtype)
    products = jnp.einsum("...tmgh,...smh->...mgts", grouped, key, preferred_element_type=wide)
    products = products.reshape(*query.shape[:-3], query.shape[-2], *products.shape[-2:])
    return softmax_of_products(products, parts.mask, parts.bias, scale, soft_cap)


def masked_softmax(
    scores: Float[Array, "*B N T S"], mask: Mask | None = None, bias: Bias | Float[Array, "..."] | None = None
) -> Float[Array, "*B N T S"]:
    """``softmax(scores + bias)`` over the visible keys, at least float32; zeros where there are none."""
    bias = as_bias(bias)
    _check_parts(mask, bias, scores.shape)
    return softmax_of_products(scores.astype(at_least_float32(scores.dtype)), mask, bias, 1.0, None)


def check_scale(query: Array, scale: Any) -> Any:
    """The scale, 1/√H by default; arrays in the dtype of the scores.

    Raises:
        ValueError: an array that is no scalar.
    """
    if scale is None:
        return 1 / math.sqrt(max(query.shape[-1], 1))
    if not isinstance(scale, jax.Array | np.ndarray):
        return scale
    if scale.ndim:
        raise ValueError(f"scale must be a number, not an array of shape {scale.shape}: multiply the query by it")
    return jnp.asarray(scale, at_least_float32(query.dtype))


def _head_groups(query: Array, key: Array) -> tuple[int, int]:
    """The number of key-value heads, and the number of query heads of each."""
    return key.shape[-2], query.shape[-2] // max(key.shape[-2], 1)


def drop(weights: Array, dropout: Dropout | None) -> Array:
    """The weights ``[*B, N, T, S]`` after dropout."""
    if dropout is None:
        return weights
    T, S = weights.shape[-2:]
    return dropout.apply(weights, align_ranks(dropout.tile(Span(0, T), Span(0, S)), weights)[0])


def softmax_of_products(
    products: Array, mask: Mask | None, bias: Bias | None, scale: Any, soft_cap: float | None
) -> Array:
    """The attention weights for the products ``query keyᵀ``, ``[*B, N, T, S]``."""
    T, S = products.shape[-2:]
    scores = products * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores += align_ranks(bias.tile(Span(0, T), Span(0, S)), scores)[0].astype(scores.dtype)
    seen = jnp.ones((1,) * scores.ndim, bool) if mask is None else align_ranks(mask.materialize(T, S), scores)[0]
    scores = jnp.where(seen, scores, MIN_SCORE)
    highest = lax.stop_gradient(scores.max(-1, keepdims=True, initial=MIN_SCORE))
    exponents = jnp.where(seen, jnp.exp(scores - highest), 0)
    total = exponents.sum(-1, keepdims=True)
    return exponents / jnp.where(total == 0, 1, total)


def check_arguments(
    query: Array, key: Array, value: Array, mask: Any, bias: Bias | None, soft_cap: float | None
) -> None:
    """Raises ValueError or TypeError where shapes or types do not fit."""
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if query.ndim < 3 or query.ndim != key.ndim or key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"attention needs query [*B T N H], key [*B S M H], value [*B S M Hv]; got {shapes}")
    if query.shape[:-3] != key.shape[:-3]:
        raise ValueError(f"attention needs the same batch dims of query, key and value; got {shapes}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key differ in head size, {query.shape[-1]} and {key.shape[-1]}: {shapes}")
    if query.shape[-2] % key.shape[-2] if key.shape[-2] else query.shape[-2]:
        raise ValueError(f"{query.shape[-2]} query heads are no multiple of {key.shape[-2]} key-value heads")
    if not (query.dtype == key.dtype == value.dtype and jnp.issubdtype(query.dtype, jnp.floating)):
        raise ValueError(f"attention needs one floating-point dtype, got {query.dtype}, {key.dtype}, {value.dtype}")
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"a soft cap of the scores must be positive, got {soft_cap}")
    _check_parts(mask, bias, (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3]))


def _check_parts(mask: Any, bias: Bias | None, scores: tuple[int, ...]) -> None:
    """Raises ValueError or TypeError where a mask or a bias does not fit scores ``[*B, N, T, S]``."""
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(f"mask must be made by jaxseq.ops.masks, got {type(mask).__name__}: dense(array) makes one")
    for part in (mask, bias):
        if part is not None:
            part.validate(scores[:-3], *scores[-3:])


def zero_hidden(query: Array, key: Array, value: Array, mask: Mask | None) -> tuple[Array, Array, Array]:
    """Zeros for keys, values and queries that the mask hides from everyone (0 · NaN is NaN, in gradients too)."""
    keys = None if mask is None else mask.visibility().keys
    return zero_hidden_queries(query, mask), _zero_where_not(keys, key), _zero_where_not(keys, value)


def zero_hidden_queries(rows: Array, mask: Mask | None) -> Array:
    """Zeros in queries, or in outputs (so in their cotangents), that see no key."""
    return _zero_where_not(None if mask is None else mask.visibility().queries, rows)


def _zero_where_not(seen: Array | None, x: Array) -> Array:
    return x if seen is None else jnp.where(align_ranks(seen[..., None, None], x)[0], x, jnp.zeros((), x.dtype))
