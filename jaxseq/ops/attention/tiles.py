"""Attention tile by tile, with its own derivatives: memory grows with the length, not with its square.

The forward pass visits the live tiles of a row of tiles with the online softmax (running maximum and sum) and stores
the log-sum-exp of each query; the backward pass recomputes the weights from it, tile by tile. It is stored as the
maximum and the logarithm of what is left: their sum would lose the latter where a bias is large (-1e9). Tiles that the
mask leaves empty are not visited; tiles that are fully visible come first and do not evaluate it. One *program* is a
batch element and a key-value head with all query heads that share it, their rows stacked: grouped heads repeat no key.

The backward pass works on transposed scores (keys by queries): no product then contracts over the rows of a tile (XLA's
CPU products do that at half speed), and two slices of queries are taken a step, each of which is a copy.

Forward mode evaluates the tangent tile by tile too, from the same log-sum-exp; it is a linear function whose transpose
is the backward pass. JAX differentiates tangent and backward pass further, with loops of constant length.

With weights p, kept weights p' (dropout), scores s and their tangents or cotangents ds: ``out = p' v``,
``d_out = (p' ∘ ds) v + p' dv - mean out`` and ``d_logsumexp = mean``, where ``mean = sum(p ∘ ds)``.

Rabe & Staats 2021 (Self-attention does not need O(n²) memory); Dao et al. 2022 (FlashAttention).
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxseq.ops.attention import unrolled
from jaxseq.ops.attention.masks import Mask
from jaxseq.ops.attention.parts import Parts
from jaxseq.ops.attention.products import dot, dot_rows, row_deltas, scale_query
from jaxseq.ops.attention.tile_grid import Plan, make_grid
from jaxseq.ops.attention.tiled import MIN_SCORE
from jaxseq.ops.batch_shards import by_batch_shard, tensor_shards
from jaxseq.ops.batched_primitive import Operands, PerhapsShared, batched_call, batched_linear_call
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array

TILE = 512
"""Queries and keys of a tile; on a CPU one or two of them at a time (measured: docs/performance.md)."""

UNROLLED_TILE, UNROLLED_TILES = 128, 4
"""The unrolled form has tiles of at least 128 queries and keys, and about four of them along each axis."""

NARROW_WINDOW, NARROW_TILE, NARROW_MIN_HEADS = 256, 128, 4
"""For a window of up to 256 keys and at least 4 heads: tiles of 128, of many heads at a time."""


def attention_tiles(query: Array, key: Array, value: Array, parts: Parts, plan: Plan) -> Array:
    """``tiled_attention`` with any batch dimensions."""
    batch = query.shape[:-3]
    size = math.prod(batch)
    query, key, value = (x.reshape(size, *x.shape[-3:]) for x in (query, key, value))
    leaves, structure = jax.tree.flatten(parts.map(lambda part: part.flatten_batch(batch)))
    shared = [leaf if leaf.shape[0] == 1 else None for leaf in leaves]
    own = [None if leaf.shape[0] == 1 else leaf for leaf in leaves]

    def run(shared: list, rows: tuple) -> Array:
        (query, key, value), own = rows
        leaves = [a if b is None else b for a, b in zip(shared, own, strict=True)]
        return tiled_attention(query, key, value, jax.tree.unflatten(structure, leaves), plan)

    alone = tensor_shards(key.shape[-2]) == 1  # else XLA's partitioner cuts between the heads
    out = by_batch_shard(run, shared, ((query, key, value), own), batch=(size,), replicate=alone)
    return out.reshape(*batch, *out.shape[1:])


def choose_plan(
    query: Array, key: Array, mask: Mask | None, scale: float, soft_cap: float | None, unrolled: bool = False
) -> Plan:
    """Tiles as even as the lengths allow, small ones for a narrow window; the batch is not used, which vmap hides."""
    (T, N), (S, M) = query.shape[-3:-1], key.shape[-3:-1]
    share = N // M
    cap = None if soft_cap is None else float(soft_cap)

    def tile(length: int, limit: int) -> int:
        count = max(-(-length // limit), 1)
        return -(-length // (16 * count)) * 16

    if unrolled:
        size = tile(max(T, S), max(UNROLLED_TILE, max(T, S) // UNROLLED_TILES))
        return Plan(scale, size, size, 1, cap, unrolled=True)

    width = None if mask is None else mask.visibility().window
    if width is not None and width <= NARROW_WINDOW and N >= NARROW_MIN_HEADS:
        row_tile, column_tile = tile(T, NARROW_TILE), tile(S, NARROW_TILE)
    else:
        row_tile, column_tile = tile(T, max(TILE // share, 16)), tile(S, TILE)
    programs = 128
    if jax.default_backend() == "cpu":  # whose batched products take no bfloat16
        room = 2 * TILE * TILE // (share * row_tile * column_tile)
        programs = max(room, 1) if at_least_float32(query.dtype) == query.dtype else 1
    return Plan(scale, row_tile, column_tile, programs, cap)


def tiled_attention(query: Array, key: Array, value: Array, parts: Parts, plan: Plan) -> Array:
    """``drop(softmax(capped(scale · query keyᵀ) + bias, where mask)) value``; arrays are ``[B, T, N, H]``."""
    return _attend(plan, (query, key, value), parts)[0]


def attend_block(query: Array, key: Array, value: Array, parts: Parts, plan: Plan) -> tuple[Array, Array, Array]:
    """Attention to a block of the keys: the output, and the log-sum-exp of its scores in two parts, ``[B, T, N]``."""
    operands = Operands(None, (query, key, value, PerhapsShared(parts)), ())
    found: tuple[Array, Array, Array] = batched_call(_forward, plan, operands).rows
    return found


def transpose_block(operands: tuple, parts: Parts, plan: Plan, cotangent: Array) -> tuple:
    """The gradients of query, key, value and the bias's weights by a block of the keys.

    ``operands`` are query, key and value, the output and the two parts of the log-sum-exp over all keys.
    """
    fixed = Operands(None, (*operands, parts.bias, PerhapsShared(parts._replace(bias=None))), ())
    found: tuple = _transpose(plan, fixed, [cotangent, jnp.zeros_like(operands[-1])]).rows
    return found


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _attend(plan: Plan, arrays: tuple[Array, Array, Array], parts: Parts) -> tuple[Array, Array, Array]:
    """The output and the log-sum-exp of each query's scores in two parts, both ``[B, T, N]``."""
    return batched_call(_forward, plan, Operands(None, (*arrays, PerhapsShared(parts)), ())).rows


@functools.partial(_attend.defjvp, symbolic_zeros=True)
def _attend_jvp(plan: Plan, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    arrays, parts = primals
    out, highest, rest = _attend(plan, arrays, parts)
    d_arrays = tuple(
        jnp.zeros(x.shape, x.dtype) if isinstance(d, SymbolicZero) else d
        for x, d in zip(arrays, tangents[0], strict=True)
    )
    bias, d_weights = None, None
    if parts.bias is not None and not isinstance(tangents[1].bias.weights, SymbolicZero):
        bias, d_weights = parts.bias, tangents[1].bias.weights
        parts = parts._replace(bias=None)
    # A bias that is differentiated is among the rows: its gradient then leads with the batch as its weights do.
    fixed = Operands(None, (*arrays, out, highest, rest, bias, PerhapsShared(parts)), ())
    linear = Operands(None, (*d_arrays, d_weights), ())
    derivative = plan._replace(constant_loops=True)
    d_out, d_rest = batched_linear_call(_tangent, _transpose, plan, fixed, linear, derivative=derivative).rows
    # Everything depends on the sum of both parts, so the derivative of the sum may be that of one of them.
    return (out, highest, rest), (d_out, jnp.zeros_like(highest), d_rest)


def _transpose(plan: Plan, fixed: Operands, cotangents: list[Array]) -> Operands:
    linear = Operands(None, tuple(cotangents), ())
    return batched_call(_backward, plan, fixed, linear, derivative=plan._replace(constant_loops=True))


def _forward(plan: Plan, operands: Operands) -> Operands:
    query, key, value, parts = operands.rows
    wide, shape = at_least_float32(query.dtype), query.shape[:3]
    if 0 in (query.shape[0], key.shape[2]):
        nothing = jnp.zeros(shape, wide)
        return Operands(None, (jnp.zeros((*shape, value.shape[3]), query.dtype), nothing, nothing), ())
    if plan.unrolled:
        return Operands(None, unrolled.forward(plan, operands.rows), ())
    grid = make_grid(plan, query, key, parts.arrays)

    def group(_: None, xs: tuple) -> tuple[None, tuple[Array, ...]]:
        queries, keys_t, values, program, order, counts = xs

        def row(_: None, xs: tuple) -> tuple[None, tuple[Array, ...]]:
            q, i, order, counts = xs

            def column(masked: bool, j: Array, carry: tuple) -> tuple:
                highest, total, mixed = carry
                s, _ = grid.scores(dot(q, keys_t[j]), program, i, j, masked=masked)
                higher = jnp.maximum(highest, s.max(-1))
                shrink, p = jnp.exp(highest - higher), jnp.exp(s - higher[..., None])
                kept = grid.drop(program, i, j)(p).astype(values.dtype)
                return higher, total * shrink + p.sum(-1), mixed * shrink[..., None] + dot(kept, values[j])

            total = jnp.zeros(q.shape[:-1], wide)
            mixed = jnp.zeros((*q.shape[:-1], values.shape[-1]), wide)
            highest, total, mixed = grid.loop_over_live(order, counts, column, (total + MIN_SCORE, total, mixed))
            safe = jnp.where(total == 0, 1, total)
            return None, ((mixed / safe[..., None]).astype(q.dtype), highest, jnp.log(safe))

        return None, lax.scan(row, None, (queries, jnp.arange(grid.rows), order, counts))[1]

    xs = grid.tile_rows(scale_query(query, plan.scale)), grid.tile_columns(key).mT, grid.tile_columns(value)
    _, (out, *statistics) = lax.scan(group, None, (*xs, grid.program_indices(), *grid.order()))
    T = query.shape[1]
    statistics = [grid.untile_rows(x[..., None], T)[..., 0] for x in statistics]
    return Operands(None, (grid.untile_rows(out, T), *statistics), ())


def _tangent(plan: Plan, fixed: Operands, linear: Operands) -> Operands:
    """The tangents of output and log-sum-exp."""
    query, key, value, out, highest, rest, bias, parts = fixed.rows
    d_query, d_key, d_value, d_weights = linear.rows
    if 0 in (query.shape[0], key.shape[2]):
        return Operands(None, (out, rest), ())
    if plan.unrolled:
        return Operands(None, unrolled.tangent(plan, fixed.rows, linear.rows), ())
    grid = make_grid(plan, query, key, parts.arrays if bias is None else parts.arrays._replace(bias=bias))
    d_bias = None if bias is None else bias.with_weights(d_weights).pad(*grid.lengths())
    wide = at_least_float32(query.dtype)

    def group(_: None, xs: tuple) -> tuple[None, tuple[Array, Array]]:
        rows, (keys_t, d_keys_t, values, d_values), program, order, counts = xs

        def row(_: None, xs: tuple) -> tuple[None, tuple[Array, Array]]:
            (q, dq, most, less), i, order, counts = xs

            def column(masked: bool, j: Array, carry: tuple) -> tuple:
                mean, mixed = carry
                k, dk, v, dv = keys_t[j], d_keys_t[j], values[j], d_values[j]
                s, slope = grid.scores(dot(q, k), program, i, j, masked=masked)
                p = jnp.exp((s - most) - less)
                ds = dot(dq, k) + dot(q, dk)
                ds = ds if slope is None else ds * slope
                if d_bias is not None:
                    ds = (grid.split_heads(ds) + grid.evaluate(d_bias, program, i, j).astype(wide)).reshape(ds.shape)
                p_ds = jnp.where(p == 0, 0, p * ds)
                drop = grid.drop(program, i, j)
                mixed += dot(drop(p_ds).astype(v.dtype), v) + dot(drop(p).astype(v.dtype), dv)
                return mean + p_ds.sum(-1), mixed

            zeros = jnp.zeros(q.shape[:-1], wide), jnp.zeros((*q.shape[:-1], values.shape[-1]), wide)
            return None, grid.loop_over_live(order, counts, column, zeros)

        return None, lax.scan(row, None, (rows, jnp.arange(grid.rows), order, counts))[1]

    T = query.shape[1]
    statistics = grid.tile_rows(highest[..., None], jnp.inf), grid.tile_rows(rest[..., None])
    rows = grid.tile_rows(scale_query(query, plan.scale)), grid.tile_rows(scale_query(d_query, plan.scale)), *statistics
    columns = *(grid.tile_columns(x).mT for x in (key, d_key)), *(grid.tile_columns(x) for x in (value, d_value))
    _, (mean, mixed) = lax.scan(group, None, (rows, columns, grid.program_indices(), *grid.order()))
    mean, mixed = grid.untile_rows(mean[..., None], T), grid.untile_rows(mixed, T)
    return Operands(None, ((mixed - mean * out.astype(wide)).astype(out.dtype), mean[..., 0]), ())


def _backward(plan: Plan, fixed: Operands, cotangents: Operands) -> Operands:
    """The transpose of ``_tangent``: gradients of query, key, value and of the bias's weights (None without them)."""
    query, key, value, out, highest, rest, bias, parts = fixed.rows
    cotangent, d_logsumexp = cotangents.rows
    if 0 in (query.shape[0], key.shape[2]):
        weights = None if bias is None else jnp.zeros_like(bias.weights)
        return Operands(None, (query, key, value, weights), ())
    if plan.unrolled:
        return Operands(None, unrolled.transpose(plan, fixed.rows, cotangents.rows), ())
    grid = make_grid(plan, query, key, parts.arrays if bias is None else parts.arrays._replace(bias=bias))
    wide = at_least_float32(query.dtype)

    def group(total: Any, xs: tuple) -> tuple[Any, tuple[Array, Array, Array]]:
        (queries, cotangents, most, less, deltas), columns, program, order, counts = xs

        def column(carry: tuple, xs: tuple) -> tuple[tuple, tuple[Array, Array]]:
            (k, v), j, order, counts = xs
            k_t = k.mT

            def row(masked: bool, i: Array, carry: tuple) -> tuple:
                dq_t, of_bias, dk, dv = carry
                q, do = queries[i], cotangents[i]
                s_t, slope_t = grid.scores(dot_rows(k, q), program, i, j, transposed=True, masked=masked)
                p_t = jnp.exp((s_t - most[i][:, None]) - less[i][:, None])
                drop = grid.drop(program, i, j, transposed=True)
                ds_t = p_t * (drop(dot_rows(v, do)) - deltas[i][:, None])
                if of_bias is not None:
                    of_bias = grid.add_bias_gradient(of_bias, ds_t, program, i, j)
                ds_t = (ds_t if slope_t is None else ds_t * slope_t).astype(k.dtype)
                dq_t = lax.dynamic_update_index_in_dim(dq_t, dq_t[i] + dot(k_t, ds_t), i, 0)
                return dq_t, of_bias, dk + dot(ds_t, q), dv + dot(drop(p_t).astype(k.dtype), do)

            zeros = jnp.zeros(k.shape, wide), jnp.zeros(v.shape, wide)
            dq_t, of_bias, dk, dv = grid.loop_over_live(order, counts, row, (*carry, *zeros))
            return (dq_t, of_bias), (dk, dv)

        of_bias = None if bias is None else grid.zero_bias_gradient(wide)
        first = jnp.zeros(queries.mT.shape, wide), of_bias
        (dq_t, of_bias), (dk, dv) = lax.scan(column, first, (columns, jnp.arange(grid.columns), order, counts))
        total = None if of_bias is None else grid.collect_bias_gradient(total, of_bias, program)
        return total, (dq_t.mT * plan.scale, dk, dv)

    delta = row_deltas(out, cotangent, d_logsumexp)
    most = grid.tile_rows(highest[..., None], jnp.inf)[..., 0]
    less, delta = (grid.tile_rows(x[..., None])[..., 0] for x in (rest, delta))
    rows = (
        grid.tile_rows(scale_query(query, plan.scale)),
        grid.tile_rows(cotangent.astype(query.dtype)),
        most,
        less,
        delta,
    )
    columns = grid.tile_columns(key), grid.tile_columns(value)
    total = None if bias is None else jnp.zeros(bias.pad(*grid.lengths()).weights.shape, wide)
    xs = (rows, columns, grid.program_indices(), *grid.order(by_columns=True))
    total, (dq, dk, dv) = lax.scan(group, total, xs)
    dk, dv = (grid.untile_columns(x, key.shape[1]).astype(key.dtype) for x in (dk, dv))
    dq = grid.untile_rows(dq, query.shape[1]).astype(query.dtype)
    if total is not None:
        total = lax.slice(total, (0,) * total.ndim, bias.weights.shape).astype(bias.weights.dtype)
    return Operands(None, (dq, dk, dv, total), ())
