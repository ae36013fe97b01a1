"""Attention tile by tile, with its own gradient: memory grows with the length, not with its square.

The forward pass visits the live tiles of a row of tiles with the online softmax (running maximum and sum) and stores
the log-sum-exp of each query; the backward pass recomputes the scores from it, tile by tile. Tiles that the mask leaves
empty are not visited; tiles that are fully visible come first and do not evaluate it. One *program* is a batch element
and a key-value head with all query heads that share it, their rows stacked: grouped heads repeat no key.

The backward pass works on transposed scores (keys by queries): no product then contracts over the rows of a tile (XLA's
CPU products do that at half speed), and two slices of queries are taken a step, each of which is a copy.

Rabe & Staats 2021 (Self-attention does not need O(n²) memory); Dao et al. 2022 (FlashAttention).
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

from jaxseq.ops.attention.masks import Mask, prefix
from jaxseq.ops.attention.tiled import MIN_SCORE, Span, Tiled
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array

TILE = 512
"""Queries and keys of a tile; on a CPU one or two of them at a time (measured: docs/performance.md)."""

NARROW_WINDOW, NARROW_TILE, NARROW_MIN_HEADS = 256, 128, 4
"""For a window of up to 256 keys and at least 4 heads: tiles of 128, of many heads at a time."""


class Plan(NamedTuple):
    """The static options: scale and cap of the scores, tile sizes, the largest number of programs side by side."""

    scale: float
    row_tile: int
    column_tile: int
    programs: int
    soft_cap: float | None = None


class Sizes(NamedTuple):
    """The dims of one call and of its grid of tiles."""

    batch: int
    kv_heads: int
    share: int  # query heads of one key-value head
    rows: int  # tiles of queries
    columns: int  # tiles of keys
    programs: int  # that run side by side
    groups: int  # of such programs, one after the other


def attention_tiles(query: Array, key: Array, value: Array, mask: Mask | None, bias: Tiled | None, plan: Plan) -> Array:
    """``tiled_attention`` with any batch dimensions."""
    batch = query.shape[:-3]
    flat = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    mask = None if mask is None else mask.flatten_batch(batch)
    bias = None if bias is None else bias.flatten_batch(batch)
    out = tiled_attention(*flat, mask, bias, plan)
    return out.reshape(*batch, *out.shape[1:])


def choose_plan(query: Array, key: Array, mask: Mask | None, scale: float, soft_cap: float | None) -> Plan:
    """Tiles as even as the lengths allow, small ones for a narrow window; the batch is not used, which vmap hides."""
    (T, N), (S, M) = query.shape[-3:-1], key.shape[-3:-1]
    share = N // M

    def tile(length: int, limit: int) -> int:
        count = max(-(-length // limit), 1)
        return -(-length // (16 * count)) * 16

    width = None if mask is None else mask.visibility().window
    if width is not None and width <= NARROW_WINDOW and N >= NARROW_MIN_HEADS:
        row_tile, column_tile = tile(T, NARROW_TILE), tile(S, NARROW_TILE)
    else:
        row_tile, column_tile = tile(T, max(TILE // share, 16)), tile(S, TILE)
    programs = 128
    if jax.default_backend() == "cpu":  # whose batched products take no bfloat16
        room = 2 * TILE * TILE // (share * row_tile * column_tile)
        programs = max(room, 1) if at_least_float32(query.dtype) == query.dtype else 1
    return Plan(scale, row_tile, column_tile, programs, None if soft_cap is None else float(soft_cap))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def tiled_attention(query: Array, key: Array, value: Array, mask: Mask | None, bias: Tiled | None, plan: Plan) -> Array:
    """``softmax(capped(scale · query keyᵀ) + bias, where mask) value``; arrays are ``[B, T, N, H]``.

    Reverse mode only, once: use ``attention_reference`` for forward mode and second derivatives.
    """
    return _kernel(_forward, plan)((query, key, value), (mask, bias))[0]


def _attention_forward(
    query: Array, key: Array, value: Array, mask: Mask | None, bias: Tiled | None, plan: Plan
) -> tuple[Array, tuple]:
    out, logsumexp = _kernel(_forward, plan)((query, key, value), (mask, bias))
    return out, (query, key, value, mask, bias, out, logsumexp)


def _attention_backward(plan: Plan, residuals: tuple, cotangent: Array) -> tuple:
    query, key, value, mask, bias, out, logsumexp = residuals
    grads = _kernel(_backward, plan)((query, key, value, out, logsumexp, cotangent), (mask, bias))
    return (*grads, None, None)


tiled_attention.defvjp(_attention_forward, _attention_backward)


@functools.lru_cache
def _kernel(function: Callable, plan: Plan) -> Callable:
    """``function(plan, arrays, shared)``, for which an axis of ``vmap`` is more batch.

    ``arrays`` lead with B; the arrays of masks and biases lead with B, or with 1 where the batch shares them.
    """
    kernel = custom_vmap(functools.partial(function, plan))

    @kernel.def_vmap
    def batch_rule(axis_size: int, batched: Any, arrays: Any, shared: Any) -> tuple[Any, Any]:
        batch = arrays[0].shape[1 if batched[0][0] else 0]

        def merge(x: Array, has_axis: bool) -> Array:
            x = x if has_axis else x[None]
            return jnp.broadcast_to(x, (axis_size, batch, *x.shape[2:])).reshape(-1, *x.shape[2:])

        def keep_shared(x: Array, has_axis: bool) -> Array:
            return merge(x, has_axis) if has_axis or x.shape[0] > 1 else x

        out = kernel(jax.tree.map(merge, arrays, batched[0]), jax.tree.map(keep_shared, shared, batched[1]))
        out = jax.tree.map(lambda x: x.reshape(axis_size, batch, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return kernel


def _forward(plan: Plan, arrays: tuple, shared: tuple) -> tuple[Array, Array]:
    """The output and the log-sum-exp of each query's scores, ``[B, T, N]``."""
    query, key, value = arrays
    sizes, scores, live, full = _prepare(plan, query, key, shared)
    order, counts = _full_first(live, full)

    def group(_: None, xs: tuple) -> tuple[None, tuple[Array, Array]]:
        queries, keys_t, values, program, order, counts = xs

        def row(_: None, xs: tuple) -> tuple[None, tuple[Array, Array]]:
            q, i, order, counts = xs

            def column(masked: bool, n: Array, carry: tuple) -> tuple:
                highest, total, mixed = carry
                j = order[n]
                s, _ = scores(_dot(q, keys_t[j]), program, i, j, masked=masked)
                higher = jnp.maximum(highest, s.max(-1))
                shrink, p = jnp.exp(highest - higher), jnp.exp(s - higher[..., None])
                mixed = mixed * shrink[..., None] + _dot(p.astype(values.dtype), values[j])
                return higher, total * shrink + p.sum(-1), mixed

            total = jnp.zeros(q.shape[:-1], at_least_float32(q.dtype))
            mixed = jnp.zeros((*q.shape[:-1], values.shape[-1]), total.dtype)
            highest, total, mixed = _loop_over_live(counts, column, (total + MIN_SCORE, total, mixed))
            safe = jnp.where(total == 0, 1, total)
            return None, ((mixed / safe[..., None]).astype(q.dtype), highest + jnp.log(safe))

        return None, lax.scan(row, None, (queries, jnp.arange(sizes.rows), order, counts))[1]

    xs = (
        _tile_rows(_scaled(query, plan), plan, sizes),
        _tile_columns(key, plan, sizes).mT,
        _tile_columns(value, plan, sizes),
    )
    _, (out, logsumexp) = lax.scan(group, None, (*xs, _programs(sizes), order, counts))
    logsumexp = _untile_rows(logsumexp[..., None], plan, sizes, query.shape[1])
    return _untile_rows(out, plan, sizes, query.shape[1]), logsumexp[..., 0]


def _backward(plan: Plan, arrays: tuple, shared: tuple) -> tuple[Array, Array, Array]:
    query, key, value, out, logsumexp, cotangent = arrays
    sizes, scores, live, full = _prepare(plan, query, key, shared)
    order, counts = _full_first(live.mT, full.mT)
    wide = at_least_float32(query.dtype)

    def group(_: None, xs: tuple) -> tuple[None, tuple[Array, Array, Array]]:
        (queries, cotangents, logsumexps, deltas), columns, program, order, counts = xs

        def column(dq_t: Array, xs: tuple) -> tuple[Array, tuple[Array, Array]]:
            (k, v), j, order, counts = xs
            k_t = k.mT

            def row(masked: bool, n: Array, carry: tuple) -> tuple:
                dq_t, dk, dv = carry
                i = order[n]
                q, do = queries[i], cotangents[i]
                s_t, slope_t = scores(_dot_rows(k, q), program, i, j, transposed=True, masked=masked)
                p_t = jnp.exp(s_t - logsumexps[i][:, None])
                ds_t = p_t * (_dot_rows(v, do) - deltas[i][:, None])
                ds_t = (ds_t if slope_t is None else ds_t * slope_t).astype(k.dtype)
                dq_t = lax.dynamic_update_index_in_dim(dq_t, dq_t[i] + _dot(k_t, ds_t), i, 0)
                return dq_t, dk + _dot(ds_t, q), dv + _dot(p_t.astype(k.dtype), do)

            zeros = jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)
            dq_t, dk, dv = _loop_over_live(counts, row, (dq_t, *zeros))
            return dq_t, (dk, dv)

        dq_t = jnp.zeros(queries.mT.shape, wide)
        dq_t, (dk, dv) = lax.scan(column, dq_t, (columns, jnp.arange(sizes.columns), order, counts))
        return None, (dq_t.mT * plan.scale, dk, dv)

    # A sum over the last axis of a product takes XLA's CPU backend 30 times as long as this.
    delta = jnp.einsum("...h,...h->...", out.astype(wide), cotangent.astype(wide))
    rows = (_scaled(query, plan), cotangent.astype(query.dtype), logsumexp[..., None], delta[..., None])
    queries, cotangents, logsumexps, deltas = (_tile_rows(x, plan, sizes) for x in rows)
    row_arrays = queries, cotangents, logsumexps[..., 0], deltas[..., 0]
    column_arrays = (_tile_columns(key, plan, sizes), _tile_columns(value, plan, sizes))
    xs = (row_arrays, column_arrays, _programs(sizes), order, counts)
    _, (dq, dk, dv) = lax.scan(group, None, xs)
    dk, dv = (_untile_columns(x, plan, sizes, key.shape[1]) for x in (dk, dv))
    dq = _untile_rows(dq, plan, sizes, query.shape[1])
    return dq.astype(query.dtype), dk.astype(key.dtype), dv.astype(value.dtype)


def _prepare(plan: Plan, query: Array, key: Array, shared: tuple) -> tuple[Sizes, Callable, Array, Array]:
    """The sizes, the function from products to scores, and the live and the full tiles of each group of programs."""
    (batch, T, N, _), (S, M) = query.shape, key.shape[1:3]
    rows, columns = -(-T // plan.row_tile), -(-S // plan.column_tile)
    programs = max(n for n in range(1, min(batch * M, plan.programs) + 1) if batch * M % n == 0)
    sizes = Sizes(batch, M, N // M, rows, columns, programs, batch * M // programs)
    mask, bias = (x if x is None else x.pad(rows * plan.row_tile, columns * plan.column_tile) for x in shared)
    if S % plan.column_tile:
        mask = prefix(S) if mask is None else mask & prefix(S)
    live: Any = np.ones((1, rows, columns), bool)
    full: Any = live
    if mask is not None:
        tiles = mask.tiles(rows * plan.row_tile, columns * plan.column_tile, plan.row_tile, plan.column_tile)
        live, full = (x.reshape(-1, rows, columns) for x in tiles)
    joint = (batch, M, rows, columns)
    live, full = (
        jnp.broadcast_to(jnp.asarray(x)[:, None], joint).reshape(sizes.groups, -1, rows, columns) for x in (live, full)
    )

    def evaluate(part: Tiled, program: Array, i: Array, j: Array) -> Array:
        rows, columns = Span(i * plan.row_tile, plan.row_tile), Span(j * plan.column_tile, plan.column_tile)
        heads = Span(program % M * sizes.share, sizes.share)
        return part.at_batch(program // M).tile(rows, columns, heads)

    def scores(
        products: Array, program: Array, i: Array, j: Array, *, masked: bool, transposed: bool = False
    ) -> tuple[Array, Array | None]:
        """Scores of the scaled products ``[programs, heads · rows, columns]``, or of their transpose, and their slope.

        The slope is the derivative of a score by its product; None: it is 1.
        """
        by_head = (sizes.share, plan.row_tile)
        shape = (-1, plan.column_tile, *by_head) if transposed else (-1, *by_head, plan.column_tile)
        s, slope = products, None
        if plan.soft_cap is not None:
            capped = jnp.tanh(s / plan.soft_cap)
            s, slope = plan.soft_cap * capped, 1 - capped * capped
        s = s.reshape(shape)
        transpose = (lambda x: x.transpose(0, 3, 1, 2)) if transposed else (lambda x: x)
        if bias is not None:
            s += transpose(jax.vmap(lambda p: evaluate(bias, p, i, j))(program)).astype(s.dtype)
        if mask is not None and masked:
            s = jnp.where(transpose(jax.vmap(lambda p: evaluate(mask, p, i, j))(program)), s, -jnp.inf)
        return s.reshape(products.shape), slope

    return sizes, scores, live.any(1), full.all(1)


def _full_first(live: Array, full: Array) -> tuple[Array, Array]:
    """For each tile of axis -2: the tiles of axis -1, full ones first, then live ones; the numbers of both."""
    full = full & live
    order = jnp.argsort(jnp.where(full, 0, jnp.where(live, 1, 2)), axis=-1, stable=True).astype(jnp.int32)
    return order, jnp.stack([full.sum(-1, dtype=jnp.int32), live.sum(-1, dtype=jnp.int32)], -1)


def _loop_over_live(counts: Array, body: Callable[[bool, Array, tuple], tuple], carry: tuple) -> tuple:
    """``body(masked, n, carry)`` for the full tiles, which need no mask, then for the others."""
    carry = lax.fori_loop(0, counts[0], functools.partial(body, False), carry)
    return lax.fori_loop(counts[0], counts[1], functools.partial(body, True), carry)


def _scaled(query: Array, plan: Plan) -> Array:
    return (query.astype(at_least_float32(query.dtype)) * plan.scale).astype(query.dtype)


def _dot(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, preferred_element_type=at_least_float32(left.dtype))


def _dot_rows(left: Array, right: Array) -> Array:
    """``left rightᵀ`` without transposing either operand."""
    dims = (((2,), (2,)), ((0,), (0,)))
    return lax.dot_general(left, right, dims, preferred_element_type=at_least_float32(left.dtype))


def _programs(sizes: Sizes) -> Array:
    return jnp.arange(sizes.batch * sizes.kv_heads, dtype=jnp.int32).reshape(sizes.groups, -1)


def _pad(x: Array, length: int) -> Array:
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)]) if x.shape[1] < length else x


def _tile_rows(x: Array, plan: Plan, sizes: Sizes) -> Array:
    """``[B, T, N, H]`` to ``[groups, row tiles, programs, heads · rows, H]``."""
    b, m, g, rows = sizes.batch, sizes.kv_heads, sizes.share, sizes.rows
    x = _pad(x, rows * plan.row_tile).reshape(b, rows, plan.row_tile, m, g, -1).transpose(0, 3, 1, 4, 2, 5)
    return x.reshape(sizes.groups, sizes.programs, rows, g * plan.row_tile, -1).swapaxes(1, 2)


def _untile_rows(x: Array, plan: Plan, sizes: Sizes, length: int) -> Array:
    b, m, g, rows = sizes.batch, sizes.kv_heads, sizes.share, sizes.rows
    x = x.swapaxes(1, 2).reshape(b, m, rows, g, plan.row_tile, -1).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(b, rows * plan.row_tile, m * g, -1)[:, :length]


def _tile_columns(x: Array, plan: Plan, sizes: Sizes) -> Array:
    """``[B, S, M, H]`` to ``[groups, column tiles, programs, columns, H]``."""
    b, m, columns = sizes.batch, sizes.kv_heads, sizes.columns
    x = _pad(x, columns * plan.column_tile).reshape(b, columns, plan.column_tile, m, -1)
    x = x.transpose(0, 3, 1, 2, 4).reshape(sizes.groups, sizes.programs, columns, plan.column_tile, -1)
    return x.swapaxes(1, 2)


def _untile_columns(x: Array, plan: Plan, sizes: Sizes, length: int) -> Array:
    b, m, columns = sizes.batch, sizes.kv_heads, sizes.columns
    x = x.swapaxes(1, 2).reshape(b, m, columns, plan.column_tile, -1).transpose(0, 2, 3, 1, 4)
    return x.reshape(b, columns * plan.column_tile, m, -1)[:, :length]
