"""Masked attention: the equation, a fast form with its own gradient, and the choice between them."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.attention.masks import And, Band, Mask, Prefix
from jaxseq.ops.attention.tiled import Span, Tiled, align
from jaxseq.ops.attention.tiles import FLOOR, Plan, attention_tiles
from jaxseq.ops.implementations import running
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float

IMPLEMENTATIONS = ("auto", "reference", "decode", "tiles", "cudnn")

FEW_SCORES, FEW_QUERIES = 8192, 16
"""Up to so many scores a head: the plain equation. With fewer queries than that (a decoding step): "decode"."""

TILE = 512
"""Queries and keys of a tile; on a CPU one or two of them at a time (measured: docs/performance.md)."""

NARROW, NARROW_TILE, FEW_HEADS = 256, 128, 4
"""For a window of up to so many keys: tiles of 128, of many heads at a time, where there are as many as 4."""


def attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    *,
    mask: Mask | None = None,
    bias: Tiled | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    implementation: str = "auto",
) -> Float[Array, "*B T N Hv"]:
    """``softmax(capped(scale · query keyᵀ) + bias, over the keys that the mask lets see) · value``, exact.

    N is a multiple of M: each key-value head serves N / M query heads in a row and is not repeated in
    memory. A query with nothing to see gives zeros and zero gradients. ``scale`` is 1/√H unless given;
    ``capped(s) = soft_cap · tanh(s / soft_cap)`` where there is a soft cap (Gemma 2, arXiv:2408.00118, section 2),
    else s: it bounds the scaled products alone. ``bias``, ``positions.alibi(...)``, is added after it.
    Softmax statistics and sums are at least float32.

    What the mask rules out for good (keys of segment 0, padding, empty slots, queries of segment 0) may hold
    anything, NaN included: it is zeroed on entry. A NaN in a key that some query may see reaches all queries.

    ``implementation``: "reference" is the equation, with T × S scores in memory and every derivative; "decode" is
    the same for a few queries, for which keys and values are not turned round in memory;
    "tiles" has O(T) memory and one reverse-mode gradient (JAX refuses forward mode and second derivatives:
    take "reference"); "cudnn" is ``jax.nn.dot_product_attention`` on a CUDA device; "auto" chooses
    (``attention_implementation``).

    Raises:
        ValueError: shapes that do not fit, a soft cap that is not positive, an unknown implementation, or one that
        cannot do this call, and why. TypeError: the mask is an array; wrap it as ``masks.dense(array)``.
    """
    _check(query, key, value, mask, bias, soft_cap)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {implementation!r}; known: {', '.join(IMPLEMENTATIONS)}")
    if implementation == "auto":
        implementation = attention_implementation(query, key, value, mask, bias=bias, soft_cap=soft_cap)
    if implementation == "cudnn":
        reason = _why_not_cudnn(query, key, value, mask, bias, soft_cap)
        if reason is not None:
            raise ValueError(f"implementation 'cudnn' cannot do this call: {reason}")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if 0 in (query.shape[-3], key.shape[-3]):
        implementation = "reference"
    with running("attention", implementation):
        if implementation == "reference":
            return attention_reference(query, key, value, mask=mask, bias=bias, scale=scale, soft_cap=soft_cap)
        query, key, value = _without_the_unseen(query, key, value, mask)
        if implementation == "decode":
            return _zero_unseen(_few(query, key, value, mask, bias, scale, soft_cap), mask)
        if implementation == "cudnn":
            return _cudnn(query, key, value, mask, scale)
        plan = _plan(query, key, mask, float(scale), soft_cap)
        return _zero_unseen(_tiles(query, key, value, mask, bias, plan), mask)


def attention_implementation(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    mask: Mask | None = None,
    *,
    bias: Tiled | None = None,
    soft_cap: float | None = None,
) -> str:
    """What ``implementation="auto"`` takes for this call on the default device, for reports.

    cuDNN where it can do exactly this; the plain equation where there are few scores, or few queries (a decoding
    step), which on a CPU take "decode"; else tiles.
    """
    if _why_not_cudnn(query, key, value, mask, bias, soft_cap) is None:
        return "cudnn"
    T, S = query.shape[-3], key.shape[-3]
    if T < FEW_QUERIES and S > FEW_QUERIES and jax.default_backend() == "cpu":
        return "decode"
    return "reference" if T * S <= FEW_SCORES or T < FEW_QUERIES else "tiles"


def attention_reference(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    *,
    mask: Mask | None = None,
    bias: Tiled | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "*B T N Hv"]:
    """``weights · value``: the equation of ``attention``, differentiable in every mode and order."""
    _check(query, key, value, mask, bias, soft_cap)
    _, _, value = _without_the_unseen(query, key, value, mask)
    weights = attention_weights(query, key, mask=mask, bias=bias, scale=scale, soft_cap=soft_cap).astype(value.dtype)
    wide = at_least_float32(query.dtype)
    groups = key.shape[-2], query.shape[-2] // key.shape[-2]
    grouped = weights.reshape(*weights.shape[:-3], *groups, *weights.shape[-2:])
    out = jnp.einsum("...mgts,...smh->...tmgh", grouped, value, preferred_element_type=wide)
    return _zero_unseen(out.reshape(*query.shape[:-1], value.shape[-1]).astype(query.dtype), mask)


def attention_weights(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    *,
    mask: Mask | None = None,
    bias: Tiled | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
) -> Float[Array, "*B N T S"]:
    """``softmax(capped(scale · query keyᵀ) + bias)`` over the visible keys, at least float32; zeros if none."""
    _check(query, key, key, mask, bias, soft_cap)
    query, key, _ = _without_the_unseen(query, key, key, mask)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    wide = at_least_float32(query.dtype)
    groups = key.shape[-2], query.shape[-2] // key.shape[-2]
    grouped = query.reshape(*query.shape[:-2], *groups, query.shape[-1])
    products = jnp.einsum("...tmgh,...smh->...mgts", grouped, key, preferred_element_type=wide)
    return _softmax(
        products.reshape(*query.shape[:-3], query.shape[-2], *products.shape[-2:]), mask, bias, scale, soft_cap
    )


def masked_softmax(scores: Float[Array, "*B N T S"], mask: Mask | None = None) -> Float[Array, "*B N T S"]:
    """``softmax(scores)`` over the visible keys, at least float32; zeros where there are none."""
    return _softmax(scores.astype(at_least_float32(scores.dtype)), mask, None, 1.0, None)


def _softmax(products: Array, mask: Mask | None, bias: Tiled | None, scale: float, soft_cap: float | None) -> Array:
    """The weights that belong to the products ``query keyᵀ``, ``[*B, N, T, S]``."""
    T, S = products.shape[-2:]
    scores = products * scale
    if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    if bias is not None:
        scores += align(bias.tile(Span(0, T), Span(0, S)), scores)[0].astype(scores.dtype)
    seen = jnp.ones((1,) * scores.ndim, bool) if mask is None else align(mask.materialize(T, S), scores)[0]
    scores = jnp.where(seen, scores, FLOOR)
    highest = lax.stop_gradient(scores.max(-1, keepdims=True, initial=FLOOR))
    exponents = jnp.where(seen, jnp.exp(scores - highest), 0)
    total = exponents.sum(-1, keepdims=True)
    return exponents / jnp.where(total == 0, 1, total)


def _check(query: Array, key: Array, value: Array, mask: Any, bias: Any, soft_cap: float | None) -> None:
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
    if soft_cap is not None and not soft_cap > 0:
        raise ValueError(f"a soft cap of the scores must be positive, got {soft_cap}")
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


def _few(
    query: Array, key: Array, value: Array, mask: Mask | None, bias: Tiled | None, scale: float, soft_cap: float | None
) -> Array:
    """The equation as two products with keys and values as they lie, ``[S, M · H]``.

    A query stands in the columns of its key-value head and has zeros in the others': more products, but keys and
    values are read once and not copied, which is what a decoding step takes its time for.
    """
    (T, N, H), (S, M, Hv) = query.shape[-3:], value.shape[-3:]
    batch, wide = query.shape[:-3], at_least_float32(query.dtype)
    own = jnp.repeat(jnp.eye(M, dtype=query.dtype), N // M, axis=0)[:, None, :, None]  # [N, 1, M, 1]
    rows = align(query.swapaxes(-3, -2)[..., None, :], own)
    rows = (rows[0] * rows[1]).reshape(*batch, N * T, M * H)
    keys, values = key.reshape(*batch, S, M * H), value.reshape(*batch, S, M * Hv)
    # Behind a barrier: XLA would turn the product round, and run far slower where the cache is large.
    products = lax.optimization_barrier(jnp.matmul(keys, rows.mT, preferred_element_type=wide))
    products = products.mT.reshape(*batch, N, T, S)
    weights = _softmax(products, mask, bias, scale, soft_cap).astype(value.dtype).reshape(*batch, N * T, S)
    mixed = jnp.matmul(weights, values, preferred_element_type=wide).reshape(*batch, N, T, M, Hv)
    # Each query's own head, picked out: a product with zeros and ones would be fused into the matrix product.
    picked = (jnp.arange(N) // (N // M)).reshape((1,) * len(batch) + (N, 1, 1, 1))
    mixed = jnp.take_along_axis(mixed, picked, axis=-2)[..., 0, :]
    return mixed.swapaxes(-3, -2).astype(query.dtype)


def _tiles(query: Array, key: Array, value: Array, mask: Mask | None, bias: Tiled | None, plan: Plan) -> Array:
    batch = query.shape[:-3]
    flat = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    mask = None if mask is None else mask.flatten_batch(batch)
    bias = None if bias is None else bias.flatten_batch(batch)
    out = attention_tiles(*flat, mask, bias, plan)
    return out.reshape(*batch, *out.shape[1:])


def _plan(query: Array, key: Array, mask: Mask | None, scale: float, soft_cap: float | None) -> Plan:
    """Tiles as even as the lengths allow, small ones for a narrow window; never by the batch, which vmap hides."""
    (T, N), (S, M) = query.shape[-3:-1], key.shape[-3:-1]
    share = N // M

    def tile(length: int, most: int) -> int:
        count = max(-(-length // most), 1)
        return -(-length // (16 * count)) * 16

    width = None if mask is None else mask.width()
    if width is not None and width <= NARROW and N >= FEW_HEADS:
        row_tile, column_tile = tile(T, NARROW_TILE), tile(S, NARROW_TILE)
    else:
        row_tile, column_tile = tile(T, max(TILE // share, 16)), tile(S, TILE)
    programs = 128
    if jax.default_backend() == "cpu":  # whose batched products take no bfloat16
        room = 2 * TILE * TILE // (share * row_tile * column_tile)
        programs = max(room, 1) if at_least_float32(query.dtype) == query.dtype else 1
    return Plan(scale, row_tile, column_tile, programs, None if soft_cap is None else float(soft_cap))


def _cudnn(query: Array, key: Array, value: Array, mask: Mask | None, scale: float) -> Array:
    """cuDNN's attention with a mask that ``_why_not_cudnn`` lets pass; no array is copied on the way."""
    bands = [part for part in _parts(mask) if isinstance(part, Band)]
    window = (bands[0].window - 1, 0) if bands and bands[0].window is not None else None
    run = partial(
        jax.nn.dot_product_attention,
        *(x.reshape(-1, *x.shape[-3:]) for x in (query, key, value)),
        scale=scale,
        is_causal=bool(bands),
        local_window_size=window,
        implementation="cudnn",
    )
    prefixes = [part for part in _parts(mask) if isinstance(part, Prefix)]
    if not prefixes:
        return run().reshape(query.shape)
    given = prefixes[0].size if prefixes[0].sizes is None else prefixes[0].sizes
    lengths = jnp.broadcast_to(jnp.asarray(given, jnp.int32), query.shape[:-3]).reshape(-1)
    # It is never told of a row without keys: such rows are taken out afterwards, and so is their gradient.
    out = run(key_value_seq_lengths=jnp.clip(lengths, 1, key.shape[-3]))
    return jnp.where((lengths > 0)[:, None, None, None], out, jnp.zeros((), out.dtype)).reshape(query.shape)


def _parts(mask: Mask | None) -> list[Mask]:
    """The masks that all have to let a key pass."""
    if isinstance(mask, And):
        return _parts(mask.left) + _parts(mask.right)
    return [] if mask is None else [mask]


def _why_not_cudnn(
    query: Array, key: Array, value: Array, mask: Mask | None, bias: Tiled | None, soft_cap: float | None
) -> str | None:
    """None if cuDNN's attention does exactly this call on the default device."""
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda") or "rocm" in device.client.platform_version.lower():
        return f"the default device is no CUDA device but {device.platform}"
    if query.dtype not in (jnp.float16, jnp.bfloat16):
        return f"it takes float16 and bfloat16, not {query.dtype}"
    if bias is not None:
        return "it has no bias that is worked out tile by tile"
    if soft_cap is not None:
        return f"it has no soft cap of the scores, here {soft_cap}"
    most = 256 if float(device.compute_capability) >= 9 else 128
    if query.shape[-1] != value.shape[-1] or query.shape[-1] % 8 or query.shape[-1] > most:
        return f"it needs one head size, a multiple of 8 up to {most}, not {query.shape[-1]} and {value.shape[-1]}"
    return _why_no_cudnn_mask(mask, query.shape[-3], key.shape[-3])


def _why_no_cudnn_mask(mask: Mask | None, num_queries: int, num_keys: int) -> str | None:
    parts = _parts(mask)
    bands = [part for part in parts if isinstance(part, Band)]
    prefixes = [part for part in parts if isinstance(part, Prefix)]
    if len(bands) + len(prefixes) < len(parts) or max(len(bands), len(prefixes)) > 1:
        return "of the masks it has causal, sliding_window and prefix only, one of each, joined by &"
    if any(jax.tree.leaves(band) or band.offset for band in bands):
        return "its causal mask goes by index, without offset or positions"
    if bands and prefixes and bands[0].window is not None:
        return "it has no sliding window with a prefix"
    if bands and num_queries != num_keys:
        return f"its causal mask needs as many queries as keys here, not {num_queries} and {num_keys}"
    return None
