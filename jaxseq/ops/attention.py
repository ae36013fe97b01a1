"""Masked attention: the equation, a fast form with its own gradient, and the choice between them."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.attention_tiles import FLOOR, Plan, attention_tiles
from jaxseq.ops.masks import Band, Mask
from jaxseq.ops.tiled import Span, Tiled, align, at_least_float32
from jaxseq.typing import Array, Float

Implementation = Literal["auto", "reference", "tiles", "cudnn"]
IMPLEMENTATIONS = ("auto", "reference", "tiles", "cudnn")

FEW_SCORES, FEW_QUERIES = 8192, 16
"""Up to so many scores a head, or with fewer queries than that (a decoding step): the plain equation."""

TILE = 512
"""Queries and keys of a tile on a CPU (measured: docs/performance.md)."""


def attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    *,
    mask: Mask | None = None,
    bias: Tiled | None = None,
    scale: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "*B T N Hv"]:
    """``softmax(scale · query keyᵀ + bias, over the keys that the mask lets see) · value``, exact.

    N is a multiple of M: each key-value head serves N / M query heads in a row and is not repeated in
    memory. A query with nothing to see gives zeros and zero gradients. ``scale`` is 1/√H unless given;
    ``bias`` is ``positions.alibi(...)``. Softmax statistics and sums are at least float32.

    What the mask rules out for good (keys of segment 0, padding, empty slots, queries of segment 0) may hold
    anything, NaN included: it is zeroed on entry. A NaN in a key that some query may see reaches all queries.

    ``implementation``: "reference" is the equation, with T × S scores in memory and every derivative;
    "tiles" has O(T) memory and one reverse-mode gradient (JAX refuses forward mode and second derivatives:
    take "reference"); "cudnn" is ``jax.nn.dot_product_attention`` on a CUDA device; "auto" chooses
    (``attention_implementation``).

    Raises:
        ValueError: shapes that do not fit, an unknown implementation, or one that cannot do this call, and
        why. TypeError: the mask is an array; wrap it as ``masks.dense(array)``.
    """
    _check(query, key, value, mask, bias)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {implementation!r}; known: {', '.join(IMPLEMENTATIONS)}")
    if implementation == "auto":
        implementation = attention_implementation(query, key, value, mask, bias=bias)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if implementation == "reference":
        return attention_reference(query, key, value, mask=mask, bias=bias, scale=scale)
    query, key, value = _without_the_unseen(query, key, value, mask)
    if implementation == "cudnn":
        return _cudnn(query, key, value, mask, bias, scale)
    return _zero_unseen(_tiles(query, key, value, mask, bias, scale), mask)


def attention_implementation(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    mask: Mask | None = None,
    *,
    bias: Tiled | None = None,
) -> str:
    """What ``implementation="auto"`` takes for this call on the default device, for reports.

    cuDNN where it can do exactly this; the plain equation where there are few scores (a decoding step);
    else tiles.
    """
    if _why_not_cudnn(query, key, value, mask, bias) is None:
        return "cudnn"
    T, S = query.shape[-3], key.shape[-3]
    return "reference" if T * S <= FEW_SCORES or T < FEW_QUERIES else "tiles"


def attention_reference(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    *,
    mask: Mask | None = None,
    bias: Tiled | None = None,
    scale: float | None = None,
) -> Float[Array, "*B T N Hv"]:
    """``weights · value``: the equation of ``attention``, differentiable in every mode and order."""
    _check(query, key, value, mask, bias)
    _, _, value = _without_the_unseen(query, key, value, mask)
    weights = attention_weights(query, key, mask=mask, bias=bias, scale=scale).astype(value.dtype)
    wide = at_least_float32(query.dtype)
    grouped = weights.reshape(*weights.shape[:-3], key.shape[-2], -1, *weights.shape[-2:])
    out = jnp.einsum("...mgts,...smh->...tmgh", grouped, value, preferred_element_type=wide)
    return _zero_unseen(out.reshape(*query.shape[:-1], value.shape[-1]).astype(query.dtype), mask)


def attention_weights(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    *,
    mask: Mask | None = None,
    bias: Tiled | None = None,
    scale: float | None = None,
) -> Float[Array, "*B N T S"]:
    """``softmax(scale · query keyᵀ + bias)`` over the visible keys, at least float32; zeros if none."""
    _check(query, key, key, mask, bias)
    query, key, _ = _without_the_unseen(query, key, key, mask)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    wide = at_least_float32(query.dtype)
    grouped = query.reshape(*query.shape[:-2], key.shape[-2], -1, query.shape[-1])
    products = jnp.einsum("...tmgh,...smh->...mgts", grouped, key, preferred_element_type=wide)
    T, S = products.shape[-2:]
    scores = products.reshape(*query.shape[:-3], query.shape[-2], T, S) * scale
    if bias is not None:
        scores += align(bias.tile(Span(0, T), Span(0, S)), scores)[0].astype(scores.dtype)
    seen = jnp.ones((1,) * scores.ndim, bool) if mask is None else align(mask.materialize(T, S), scores)[0]
    scores = jnp.where(seen, scores, FLOOR)
    highest = lax.stop_gradient(scores.max(-1, keepdims=True))
    exponents = jnp.where(seen, jnp.exp(scores - highest), 0)
    total = exponents.sum(-1, keepdims=True)
    return exponents / jnp.where(total == 0, 1, total)


def _check(query: Array, key: Array, value: Array, mask: Any, bias: Any) -> None:
    """Raise where shapes or types do not fit, naming what was given."""
    shapes = f"query {query.shape}, key {key.shape}, value {value.shape}"
    if query.ndim < 3 or query.ndim != key.ndim or key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"attention needs query [*B T N H], key [*B S M H], value [*B S M Hv]; got {shapes}")
    if query.shape[:-3] != key.shape[:-3]:
        raise ValueError(f"attention needs the same batch dims of query, key and value; got {shapes}")
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(f"query and key differ in head size, {query.shape[-1]} and {key.shape[-1]}: {shapes}")
    if query.shape[-2] % key.shape[-2]:
        raise ValueError(f"{query.shape[-2]} query heads are no multiple of {key.shape[-2]} key-value heads")
    if not (query.dtype == key.dtype == value.dtype):
        raise ValueError(f"attention needs one dtype, got {query.dtype}, {key.dtype}, {value.dtype}")
    if mask is not None and not isinstance(mask, Mask):
        raise TypeError(f"mask must be made by jaxseq.ops.masks, got {type(mask).__name__}: dense(array) makes one")
    if bias is not None and (isinstance(bias, Mask) or not isinstance(bias, Tiled)):
        raise TypeError(f"bias must be made by jaxseq.ops.positions.alibi, got {type(bias).__name__}")
    for part in (mask, bias):
        if part is not None:
            part.validate(query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])


def _without_the_unseen(query: Array, key: Array, value: Array, mask: Mask | None) -> tuple[Array, Array, Array]:
    """Zeros for what the mask rules out for good: 0 · NaN is NaN, in the products and in their gradients."""
    keys = None if mask is None else mask.visible_keys()
    return _zero_unseen(query, mask), _where_seen(keys, key), _where_seen(keys, value)


def _zero_unseen(rows: Array, mask: Mask | None) -> Array:
    """Zeros in queries, or in outputs (so in their cotangents), that can never see anything."""
    return _where_seen(None if mask is None else mask.visible_queries(), rows)


def _where_seen(seen: Array | None, x: Array) -> Array:
    return x if seen is None else jnp.where(align(seen[..., None, None], x)[0], x, jnp.zeros((), x.dtype))


def _tiles(query: Array, key: Array, value: Array, mask: Mask | None, bias: Tiled | None, scale: float) -> Array:
    batch = query.shape[:-3]
    flat = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    mask = None if mask is None else mask.flatten_batch(batch)
    bias = None if bias is None else bias.flatten_batch(batch)
    plan = _plan(math.prod(batch) * key.shape[-2], query.shape[-2] // key.shape[-2], query, key, scale)
    out = attention_tiles(*flat, mask, bias, plan)
    return out.reshape(*batch, *out.shape[1:])


def _plan(num_programs: int, share: int, query: Array, key: Array, scale: float) -> Plan:
    """Tiles as even as the lengths allow; one program at a time on a CPU, many side by side elsewhere."""

    def tile(length: int, most: int) -> int:
        count = -(-length // most)
        return -(-length // (16 * count)) * 16

    row_tile, column_tile = tile(query.shape[-3], max(TILE // share, 16)), tile(key.shape[-3], TILE)
    most = 1 if jax.default_backend() == "cpu" else 128
    programs = max(n for n in range(1, min(num_programs, most) + 1) if num_programs % n == 0)
    return Plan(float(scale), row_tile, column_tile, programs)


def _cudnn(query: Array, key: Array, value: Array, mask: Mask | None, bias: Tiled | None, scale: float) -> Array:
    reason = _why_not_cudnn(query, key, value, mask, bias)
    if reason is not None:
        raise ValueError(f"implementation 'cudnn' cannot do this call: {reason}")
    window = (mask.window - 1, 0) if isinstance(mask, Band) and mask.window is not None else None
    flat = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    out = jax.nn.dot_product_attention(
        *flat, scale=scale, is_causal=mask is not None, local_window_size=window, implementation="cudnn"
    )
    return out.reshape(query.shape)


def _why_not_cudnn(query: Array, key: Array, value: Array, mask: Mask | None, bias: Tiled | None) -> str | None:
    """None if cuDNN's attention does exactly this call on the default device."""
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda") or "rocm" in device.client.platform_version.lower():
        return f"the default device is no CUDA device but {device.platform}"
    if query.dtype not in (jnp.float16, jnp.bfloat16):
        return f"it takes float16 and bfloat16, not {query.dtype}"
    if bias is not None:
        return "it has no bias that is worked out tile by tile"
    if query.shape[-1] != value.shape[-1] or query.shape[-1] % 8 or query.shape[-1] > 256:
        return f"it needs one head size, a multiple of 8 up to 256, not {query.shape[-1]} and {value.shape[-1]}"
    if mask is None:
        return None
    if not isinstance(mask, Band) or jax.tree.leaves(mask) or mask.offset:
        return "of the masks it has causal and sliding_window only, by index, without offset or positions"
    if query.shape[-3] != key.shape[-3]:
        return f"its causal mask needs as many queries as keys here, not {query.shape[-3]} and {key.shape[-3]}"
    return None
