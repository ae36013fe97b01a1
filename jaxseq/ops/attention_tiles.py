"""Attention tile by tile, with its own gradient: memory grows with the length, not with its square.

The forward pass goes over the live tiles of a row of tiles with the online softmax (running maximum and
sum) and keeps the log-sum-exp of each query; the backward pass computes the scores again from it, tile by
tile. Tiles that the mask leaves empty are not in the list that is gone over. One *program* is a batch
element and a key-value head with all the query heads that share it, their rows stacked: grouped heads
repeat no key.

The backward pass works on transposed scores (keys by queries): no product then contracts over the rows of a
tile (XLA's CPU products do that at half speed), and two slices of queries are taken a step, each of which
is a copy.

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

from jaxseq.ops.masks import Mask, prefix
from jaxseq.ops.tiled import Span, Tiled, at_least_float32
from jaxseq.typing import Array

FLOOR = -1e30
"""The maximum of no scores: finite, so that a row with nothing to see gives exp(-inf - FLOOR) = 0."""


class Plan(NamedTuple):
    """What is decided before tracing: the scores' scale, tile sizes, how many programs run side by side."""

    scale: float
    row_tile: int
    column_tile: int
    programs: int


class Sizes(NamedTuple):
    """The dims of one call and of its grid of tiles."""

    batch: int
    kv_heads: int
    share: int  # query heads of one key-value head
    rows: int  # tiles of queries
    columns: int  # tiles of keys
    groups: int  # of programs that run side by side


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attention_tiles(query: Array, key: Array, value: Array, mask: Mask | None, bias: Tiled | None, plan: Plan) -> Array:
    """``softmax(scale · query keyᵀ + bias, where mask) value``; arrays are ``[B, T, N, H]``.

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


attention_tiles.defvjp(_attention_forward, _attention_backward)


@functools.lru_cache
def _kernel(function: Callable, plan: Plan) -> Callable:
    """``function(plan, arrays, shared)``, which takes an axis of ``vmap`` as more batch.

    ``arrays`` lead with B; what masks and biases hold leads with B, or with 1 where all share it.
    """
    kernel = custom_vmap(functools.partial(function, plan))

    @kernel.def_vmap
    def fold(axis_size: int, batched: Any, arrays: Any, shared: Any) -> tuple[Any, Any]:
        batch = arrays[0].shape[1 if batched[0][0] else 0]

        def full(x: Array, has_axis: bool) -> Array:
            x = x if has_axis else x[None]
            return jnp.broadcast_to(x, (axis_size, batch, *x.shape[2:])).reshape(-1, *x.shape[2:])

        def sparing(x: Array, has_axis: bool) -> Array:
            return full(x, has_axis) if has_axis or x.shape[0] > 1 else x

        out = kernel(jax.tree.map(full, arrays, batched[0]), jax.tree.map(sparing, shared, batched[1]))
        out = jax.tree.map(lambda x: x.reshape(axis_size, batch, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return kernel


def _forward(plan: Plan, arrays: tuple, shared: tuple) -> tuple[Array, Array]:
    query, key, value = arrays
    sizes, finish, live = _prepare(plan, query, key, shared)
    order, count = _live_first(live)

    def group(_: None, xs: tuple) -> tuple[None, tuple[Array, Array]]:
        queries, keys_t, values, program, order, count = xs

        def row(_: None, xs: tuple) -> tuple[None, tuple[Array, Array]]:
            q, i, order, count = xs

            def column(n: Array, carry: tuple) -> tuple:
                highest, total, mixed = carry
                j = order[n]
                s = finish(_dot(q, keys_t[j]), program, i, j)
                higher = jnp.maximum(highest, s.max(-1))
                shrink, p = jnp.exp(highest - higher), jnp.exp(s - higher[..., None])
                mixed = mixed * shrink[..., None] + _dot(p.astype(values.dtype), values[j])
                return higher, total * shrink + p.sum(-1), mixed

            total = jnp.zeros(q.shape[:-1], at_least_float32(q.dtype))
            mixed = jnp.zeros((*q.shape[:-1], values.shape[-1]), total.dtype)
            highest, total, mixed = lax.fori_loop(0, count, column, (total + FLOOR, total, mixed))
            safe = jnp.where(total == 0, 1, total)
            return None, ((mixed / safe[..., None]).astype(q.dtype), highest + jnp.log(safe))

        return None, lax.scan(row, None, (queries, jnp.arange(sizes.rows), order, count))[1]

    xs = (
        _tile_rows(query, plan, sizes),
        _tile_columns(key, plan, sizes).mT,
        _tile_columns(value, plan, sizes),
    )
    _, (out, logsumexp) = lax.scan(group, None, (*xs, _programs(sizes), order, count))
    return _untile_rows(out, plan, sizes, query.shape[1]), logsumexp.reshape(sizes.batch, -1)


def _backward(plan: Plan, arrays: tuple, shared: tuple) -> tuple[Array, Array, Array]:
    query, key, value, out, logsumexp, cotangent = arrays
    sizes, finish, live = _prepare(plan, query, key, shared)
    order, count = _live_first(live.mT)
    wide = at_least_float32(query.dtype)

    def group(_: None, xs: tuple) -> tuple[None, tuple[Array, Array, Array]]:
        (queries, cotangents, logsumexps, deltas), columns, program, order, count = xs

        def column(dq_t: Array, xs: tuple) -> tuple[Array, tuple[Array, Array]]:
            (k, v), j, order, count = xs
            k_t = k.mT

            def row(n: Array, carry: tuple) -> tuple:
                dq_t, dk, dv = carry
                i = order[n]
                q, do = queries[i], cotangents[i]
                s_t = finish(_dot_rows(k, q), program, i, j, transposed=True)
                p_t = jnp.exp(s_t - logsumexps[i][:, None])
                ds_t = (p_t * (_dot_rows(v, do) - deltas[i][:, None])).astype(k.dtype)
                dq_t = lax.dynamic_update_index_in_dim(dq_t, dq_t[i] + _dot(k_t, ds_t), i, 0)
                return dq_t, dk + _dot(ds_t, q), dv + _dot(p_t.astype(k.dtype), do)

            zeros = jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)
            dq_t, dk, dv = lax.fori_loop(0, count, row, (dq_t, *zeros))
            return dq_t, (dk, dv)

        dq_t = jnp.zeros(queries.mT.shape, wide)
        dq_t, (dk, dv) = lax.scan(column, dq_t, (columns, jnp.arange(sizes.columns), order, count))
        return None, (dq_t.mT * plan.scale, dk * plan.scale, dv)

    delta = (out.astype(wide) * cotangent.astype(wide)).sum(-1, keepdims=True)
    row_arrays = (_tile_rows(query, plan, sizes), _tile_rows(cotangent.astype(query.dtype), plan, sizes))
    tiles = _tile_rows(delta, plan, sizes)[..., 0]
    column_arrays = (_tile_columns(key, plan, sizes), _tile_columns(value, plan, sizes))
    xs = ((*row_arrays, logsumexp.reshape(tiles.shape), tiles), column_arrays, _programs(sizes), order, count)
    _, (dq, dk, dv) = lax.scan(group, None, xs)
    dk, dv = (_untile_columns(x, plan, sizes, key.shape[1]) for x in (dk, dv))
    dq = _untile_rows(dq, plan, sizes, query.shape[1])
    return dq.astype(query.dtype), dk.astype(key.dtype), dv.astype(value.dtype)


def _prepare(plan: Plan, query: Array, key: Array, shared: tuple) -> tuple[Sizes, Callable, Any]:
    """The sizes, what makes scores of products, and which tiles are live in each group of programs."""
    (batch, T, N, _), (S, M) = query.shape, key.shape[1:3]
    rows, columns = -(-T // plan.row_tile), -(-S // plan.column_tile)
    sizes = Sizes(batch, M, N // M, rows, columns, batch * M // plan.programs)
    mask, bias = (x if x is None else x.pad(rows * plan.row_tile, columns * plan.column_tile) for x in shared)
    if S % plan.column_tile:
        mask = prefix(S) if mask is None else mask & prefix(S)
    live: Any = np.ones((1, rows, columns), bool)
    if mask is not None:
        tiles = mask.tiles(rows * plan.row_tile, columns * plan.column_tile, plan.row_tile, plan.column_tile)
        live = tiles.live.reshape(-1, rows, columns)
        if isinstance(tiles.full, np.ndarray) and (tiles.full | ~tiles.live).all():
            mask = None
    joint = (batch, M, rows, columns)
    live = jnp.broadcast_to(jnp.asarray(live)[:, None], joint).reshape(sizes.groups, -1, rows, columns).any(1)

    def evaluate(part: Tiled, program: Array, i: Array, j: Array) -> Array:
        rows, columns = Span(i * plan.row_tile, plan.row_tile), Span(j * plan.column_tile, plan.column_tile)
        heads = Span(program % M * sizes.share, sizes.share)
        return part.at_batch(program // M).tile(rows, columns, heads)

    def finish(products: Array, program: Array, i: Array, j: Array, transposed: bool = False) -> Array:
        """Scores of the products ``[programs, heads · rows, columns]``, or of their transpose."""
        by_head = (sizes.share, plan.row_tile)
        shape = (-1, plan.column_tile, *by_head) if transposed else (-1, *by_head, plan.column_tile)
        s = products.reshape(shape) * plan.scale
        turn = (lambda x: x.transpose(0, 3, 1, 2)) if transposed else (lambda x: x)
        if bias is not None:
            s += turn(jax.vmap(lambda p: evaluate(bias, p, i, j))(program)).astype(s.dtype)
        if mask is not None:
            s = jnp.where(turn(jax.vmap(lambda p: evaluate(mask, p, i, j))(program)), s, -jnp.inf)
        return s.reshape(products.shape)

    return sizes, finish, live


def _live_first(live: Array) -> tuple[Array, Array]:
    """For each tile of axis -2: the tiles of axis -1, live ones first and in order, and their number."""
    order = jnp.argsort(jnp.where(live, 0, 1), axis=-1, stable=True).astype(jnp.int32)
    return order, live.sum(-1, dtype=jnp.int32)


def _dot(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, preferred_element_type=at_least_float32(left.dtype))


def _dot_rows(left: Array, right: Array) -> Array:
    """``left rightᵀ`` with both as they lie."""
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
    return x.reshape(sizes.groups, plan.programs, rows, g * plan.row_tile, -1).swapaxes(1, 2)


def _untile_rows(x: Array, plan: Plan, sizes: Sizes, length: int) -> Array:
    b, m, g, rows = sizes.batch, sizes.kv_heads, sizes.share, sizes.rows
    x = x.swapaxes(1, 2).reshape(b, m, rows, g, plan.row_tile, -1).transpose(0, 2, 4, 1, 3, 5)
    return x.reshape(b, rows * plan.row_tile, m * g, -1)[:, :length]


def _tile_columns(x: Array, plan: Plan, sizes: Sizes) -> Array:
    """``[B, S, M, H]`` to ``[groups, column tiles, programs, columns, H]``."""
    b, m, columns = sizes.batch, sizes.kv_heads, sizes.columns
    x = _pad(x, columns * plan.column_tile).reshape(b, columns, plan.column_tile, m, -1)
    x = x.transpose(0, 3, 1, 2, 4).reshape(sizes.groups, plan.programs, columns, plan.column_tile, -1)
    return x.swapaxes(1, 2)


def _untile_columns(x: Array, plan: Plan, sizes: Sizes, length: int) -> Array:
    b, m, columns = sizes.batch, sizes.kv_heads, sizes.columns
    x = x.swapaxes(1, 2).reshape(b, m, columns, plan.column_tile, -1).transpose(0, 2, 3, 1, 4)
    return x.reshape(b, columns * plan.column_tile, m, -1)[:, :length]
