"""Attention of short sequences: few tiles, unrolled, of all batch elements and heads at a time.

The functions are those of ``tiles``, which calls them where the plan says so: forward pass, tangent, and its transpose,
with the log-sum-exp of each query from the forward pass. A tile of queries meets all keys that it sees in one product,
and a tile of keys all queries that see it, so that a causal mask saves up to half of the products. Without loops XLA's
CPU backend divides each operation among the cores, and compiles no loop bodies. Only tiles that shapes alone show to be
empty are left out.

Scores of a part of the batch, of at most ``MAX_SCORES`` numbers, are in memory at a time.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.ops.attention.biases import DenseBias
from jaxseq.ops.attention.masks import And, Mask
from jaxseq.ops.attention.parts import Parts
from jaxseq.ops.attention.products import dot, dot_rows, row_deltas, scale_query
from jaxseq.ops.attention.tile_grid import Plan
from jaxseq.ops.attention.tiled import MIN_SCORE, Span, Tiled
from jaxseq.ops.rows import sum_features
from jaxseq.typing import Array

MAX_SCORES = 2**22
"""The most scores of the part of a batch that is computed at a time; the part holds at least one element."""


@dataclass(frozen=True)
class Layout:
    """Shapes of a call: ``[B, T, N, H]`` queries as ``[B M, share, T, H]``; scores ``[B M, share rows, columns]``."""

    plan: Plan
    parts: Parts
    batch: int
    kv_heads: int
    share: int
    queries: int
    keys: int

    def split(self, x: Array) -> Array:
        """``[B, T, N, H]`` to ``[B M, share, T, H]``."""
        b, length, heads, size = x.shape
        x = x.reshape(b, length, self.kv_heads, heads // self.kv_heads, size)
        return x.transpose(0, 2, 3, 1, 4).reshape(b * self.kv_heads, heads // self.kv_heads, length, size)

    def join(self, x: Array) -> Array:
        """``[B M, share, T, H]`` to ``[B, T, N, H]``."""
        _, share, length, size = x.shape
        x = x.reshape(self.batch, self.kv_heads, share, length, size).transpose(0, 3, 1, 2, 4)
        return x.reshape(self.batch, length, self.kv_heads * share, size)

    def stack(self, tiles: list[Array], of_keys: bool = False) -> Array:
        """Tiles ``[B M, share rows, H]`` along time as ``[B, T, N, H]``; those of keys are ``[B M, columns, H]``."""
        share = 1 if of_keys else self.share
        split = [x.reshape(len(x), share, x.shape[1] // share, x.shape[2]) for x in tiles]
        return self.join(jnp.concatenate(split, axis=2))

    def by_rows(self) -> Iterator[tuple[Span, Span]]:
        """For each tile of queries the keys that it may see."""
        live = self._live()
        for i, seen in enumerate(live):
            yield _span(i, i + 1, self.plan.row_tile, self.queries), self._hull(seen, self.keys)

    def by_columns(self) -> Iterator[tuple[Span, Span]]:
        """For each tile of keys the queries that may see it, and the keys."""
        for j, seen in enumerate(self._live().T):
            yield self._hull(seen, self.queries), _span(j, j + 1, self.plan.row_tile, self.keys)

    def _live(self) -> np.ndarray:
        """``[row tiles, column tiles]``: False where shapes alone show that no query sees a key."""
        tile = self.plan.row_tile
        grid = -(-self.queries // tile), -(-self.keys // tile)
        return np.broadcast_to(_static_live(self.parts.mask, self.queries, self.keys, tile), grid)

    def _hull(self, seen: np.ndarray, limit: int) -> Span:
        """The neighbouring tiles from the first that is seen to the last."""
        found = np.flatnonzero(seen)
        if not len(found):
            return Span(0, 0)
        return _span(int(found[0]), int(found[-1]) + 1, self.plan.row_tile, limit)

    def view(self, x: Array, transposed: bool = False) -> Array:
        """Scores as ``[B, M, share, rows, columns]``, transposed ones as ``[B, M, columns, share, rows]``."""
        _, first, second = x.shape
        by_head = (first, self.share, second // self.share) if transposed else (self.share, first // self.share, second)
        return x.reshape(self.batch, self.kv_heads, *by_head)

    def evaluate(self, part: Tiled, rows: Span, columns: Span, transposed: bool = False) -> Array:
        """The part on a tile, broadcastable to ``view``."""
        values = part.tile(rows, columns)
        values = values.reshape((1,) * (4 - values.ndim) + values.shape)
        heads = (self.kv_heads, self.share) if values.shape[1] > 1 else (1, 1)
        values = values.reshape(values.shape[0], *heads, *values.shape[2:])
        return values.transpose(0, 1, 4, 2, 3) if transposed else values

    def scores(self, products: Array, rows: Span, columns: Span, transposed: bool = False) -> tuple[Array, Any]:
        """Scores of the scaled products, and their slope by them (None: 1)."""
        s, slope = products, None
        if self.plan.soft_cap is not None:
            capped = jnp.tanh(s / self.plan.soft_cap)
            s, slope = self.plan.soft_cap * capped, 1 - capped * capped
        s = self.view(s, transposed)
        if self.parts.bias is not None:
            s += self.evaluate(self.parts.bias, rows, columns, transposed).astype(s.dtype)
        if self.parts.mask is not None:
            s = jnp.where(self.evaluate(self.parts.mask, rows, columns, transposed), s, -jnp.inf)
        return s.reshape(products.shape), slope

    def drop(self, rows: Span, columns: Span, transposed: bool = False) -> Callable[[Array], Array]:
        """The function that drops weights of a tile."""
        dropout = self.parts.dropout
        if dropout is None:
            return lambda weights: weights
        kept = self.evaluate(dropout, rows, columns, transposed)
        return lambda x: dropout.apply(self.view(x, transposed), kept).reshape(x.shape)


def _static_live(mask: Mask | None, queries: int, keys: int, tile: int) -> Any:
    """Which tiles may hold a visible pair, as far as shapes alone show."""
    if isinstance(mask, And):
        return _static_live(mask.left, queries, keys, tile) & _static_live(mask.right, queries, keys, tile)
    live = None if mask is None else mask.tiles(queries, keys, tile, tile).live
    return live if isinstance(live, np.ndarray) else np.ones((1, 1), bool)


def tiles_are_static(mask: Mask | None, queries: int, keys: int) -> bool:
    """Whether shapes alone show which tiles the mask leaves empty."""
    if isinstance(mask, And):
        return tiles_are_static(mask.left, queries, keys) and tiles_are_static(mask.right, queries, keys)
    return mask is None or isinstance(mask.tiles(queries, keys, 128, 128).live, np.ndarray)


def _span(first: int, end: int, tile: int, limit: int) -> Span:
    return Span(first * tile, min(end * tile, limit) - first * tile)


def _cut(x: Array, span: Span, axis: int) -> Array:
    return lax.slice_in_dim(x, span.start, span.start + span.size, axis=axis)


def _materialize(arrays: tuple[Array, ...]) -> Array:
    """The stacked arrays, by a product with the identity matrix.

    Else XLA computes them again for each score that reads one of their numbers (twice the time of the exponential).
    """
    stacked = jnp.stack(arrays)
    one = jnp.eye(len(arrays), dtype=stacked.dtype)
    flat = stacked.reshape(len(arrays), stacked[0].size)
    return jnp.matmul(one, flat, precision=lax.Precision.HIGHEST).reshape(stacked.shape)


def _of_keys(x: Array) -> Array:
    """``[P, 1, S, H]`` to ``[P, S, H]``."""
    return x[:, 0]


def _rows(x: Array, span: Span) -> Array:
    """``[P, share, T, H]`` to ``[P, share rows, H]``."""
    x = _cut(x, span, 2)
    return x.reshape(x.shape[0], x.shape[1] * x.shape[2], x.shape[3])


def forward(plan: Plan, rows: tuple) -> tuple[Array, Array, Array]:
    """The output ``[B, T, N, Hv]``, and the log-sum-exp of each query's scores in two parts ``[B, T, N]``."""
    query, key, value, parts = rows

    def run(parts: Parts, query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
        layout = _layout(plan, query, key, parts)
        q, k_t, v = (
            layout.split(scale_query(query, plan.scale)),
            _of_keys(layout.split(key)).mT,
            _of_keys(layout.split(value)),
        )
        found = []
        for seen_by, keys in layout.by_rows():
            s, _ = layout.scores(dot(_rows(q, seen_by), _cut(k_t, keys, 2)), seen_by, keys)
            highest = s.max(-1, keepdims=True, initial=MIN_SCORE)
            p = jnp.exp(s - highest)
            total = sum_features(p)
            safe = jnp.where(total == 0, 1, total)
            mixed = dot(layout.drop(seen_by, keys)(p).astype(v.dtype), _cut(v, keys, 1)) / safe
            found.append((mixed.astype(query.dtype), highest, jnp.log(safe)))
        out, highest, rest = (layout.stack(list(tiles)) for tiles in zip(*found, strict=True))
        return out, highest[..., 0], rest[..., 0]

    return _by_parts(run, query, key, parts.arrays, query, key, value)


def tangent(plan: Plan, fixed: tuple, linear: tuple) -> tuple[Array, Array]:
    """The tangents of output and log-sum-exp."""
    query, key, value, out, highest, rest, bias, parts = fixed

    def run(both: tuple, arrays: tuple, statistics: tuple, tangents: tuple) -> tuple[Array, Array]:
        (query, key, value), (out, highest, rest), (d_query, d_key, d_value) = arrays, statistics, tangents
        parts, d_bias = both
        layout = _layout(plan, query, key, parts)
        wide = highest.dtype
        q, dq = (layout.split(scale_query(x, plan.scale)) for x in (query, d_query))
        k_t, dk_t = (_of_keys(layout.split(x)).mT for x in (key, d_key))
        v, dv = (_of_keys(layout.split(x)) for x in (value, d_value))
        most, less = (layout.split(x[..., None]) for x in (highest, rest))
        found = []
        for seen_by, keys in layout.by_rows():
            q_i, dq_i, k_j, dk_j = _rows(q, seen_by), _rows(dq, seen_by), _cut(k_t, keys, 2), _cut(dk_t, keys, 2)
            s, slope = layout.scores(dot(q_i, k_j), seen_by, keys)
            p = jnp.exp((s - _rows(most, seen_by)) - _rows(less, seen_by))
            ds = dot(dq_i, k_j) + dot(q_i, dk_j)
            ds = ds if slope is None else ds * slope
            if d_bias is not None:
                ds = (layout.view(ds) + layout.evaluate(d_bias, seen_by, keys).astype(wide)).reshape(ds.shape)
            p_ds = jnp.where(p == 0, 0, p * ds)
            drop = layout.drop(seen_by, keys)
            mixed = dot(drop(p_ds).astype(v.dtype), _cut(v, keys, 1)) + dot(drop(p).astype(v.dtype), _cut(dv, keys, 1))
            found.append((mixed, sum_features(p_ds)))
        mixed, mean = (layout.stack(list(tiles)) for tiles in zip(*found, strict=True))
        return (mixed - mean * out.astype(wide)).astype(out.dtype), mean[..., 0]

    *tangents, d_weights = linear
    d_bias = None if bias is None else bias.with_weights(d_weights)
    both = (parts.arrays if bias is None else parts.arrays._replace(bias=bias)), d_bias
    return _by_parts(run, query, key, both, (query, key, value), (out, highest, rest), tuple(tangents))


def transpose(plan: Plan, fixed: tuple, cotangents: tuple) -> tuple[Array, Array, Array, Any]:
    """The transpose of ``tangent``: gradients of query, key, value, and of the bias's weights (None without them)."""
    query, key, value, out, highest, rest, bias, parts = fixed
    cotangent, d_logsumexp = cotangents

    def run(parts: Parts, arrays: tuple, statistics: tuple, cotangent: Array) -> tuple:
        (query, key, value), (highest, rest, delta) = arrays, statistics
        layout = _layout(plan, query, key, parts)
        wide = highest.dtype
        q, do = layout.split(scale_query(query, plan.scale)), layout.split(cotangent.astype(query.dtype))
        k, v = _of_keys(layout.split(key)), _of_keys(layout.split(value))
        most, less, delta = _materialize(tuple(layout.split(x[..., None]) for x in (highest, rest, delta)))
        dq_t = jnp.zeros((len(k), k.shape[2], layout.share, layout.queries), wide)
        found, of_bias = [], None
        if bias is not None:
            of_bias = jnp.zeros((1 if _is_shared(bias) else layout.batch, *bias.weights.shape[1:]), wide)
        for rows, columns in layout.by_columns():
            q_i, do_i, k_j, v_j = _rows(q, rows), _rows(do, rows), _cut(k, columns, 1), _cut(v, columns, 1)
            s_t, slope_t = layout.scores(dot_rows(k_j, q_i), rows, columns, transposed=True)
            p_t = jnp.exp((s_t - _rows(most, rows).mT) - _rows(less, rows).mT)
            drop = layout.drop(rows, columns, transposed=True)
            ds_t = p_t * (drop(dot_rows(v_j, do_i)) - _rows(delta, rows).mT)
            if of_bias is not None:
                of_bias = _add_bias_gradient(parts.bias, of_bias, layout.view(ds_t, transposed=True), rows, columns)
            ds_t = (ds_t if slope_t is None else ds_t * slope_t).astype(k.dtype)
            moved = dot(k_j.mT, ds_t).reshape(*dq_t.shape[:3], rows.size)
            outside = (rows.start, layout.queries - rows.start - rows.size)
            dq_t += jnp.pad(moved, [(0, 0)] * 3 + [outside])
            found.append((dot(ds_t, q_i), dot(drop(p_t).astype(k.dtype), do_i)))
        dk, dv = (layout.stack(list(tiles), of_keys=True) for tiles in zip(*found, strict=True))
        return layout.join(dq_t.transpose(0, 2, 3, 1) * plan.scale), dk, dv, of_bias

    parts = parts.arrays if bias is None else parts.arrays._replace(bias=bias)
    statistics = highest, rest, row_deltas(out, cotangent, d_logsumexp)
    dq, dk, dv, of_bias = _by_parts(run, query, key, parts, (query, key, value), statistics, cotangent)
    if bias is not None:
        weights = bias.weights
        of_bias = of_bias.reshape(weights.shape[0], -1, *weights.shape[1:]).sum(1).astype(weights.dtype)
    return dq.astype(query.dtype), dk.astype(key.dtype), dv.astype(value.dtype), of_bias


def _add_bias_gradient(bias: Any, total: Array, cotangent: Array, rows: Span, columns: Span) -> Array:
    """``total`` of each batch element plus a tile's gradient; ``cotangent`` is ``[B, M, columns, share, rows]``."""
    cotangent = cotangent.transpose(0, 1, 3, 4, 2)
    cotangent = cotangent.sum(0, keepdims=True) if _is_shared(bias) else cotangent
    batch = len(cotangent)
    cotangent = cotangent.reshape(batch, -1, *cotangent.shape[3:])

    def one(index: Array, total: Array, cotangent: Array) -> Array:
        return bias.at_batch(index, batch).add_gradient(total, cotangent, rows, columns)

    return jax.vmap(one)(jnp.arange(batch), total, cotangent)


def _is_shared(bias: Any) -> bool:
    """Whether all elements of the batch have the same array as their bias."""
    return isinstance(bias, DenseBias) and bias.weights.shape[0] == 1


def _layout(plan: Plan, query: Array, key: Array, parts: Parts) -> Layout:
    (batch, queries, heads, _), (keys, kv_heads) = query.shape, key.shape[1:3]
    return Layout(plan, parts, batch, kv_heads, heads // kv_heads, queries, keys)


def _by_parts(function: Callable, query: Array, key: Array, parts: Any, *arguments: Any) -> Any:
    """``function(parts, *arguments)``, or of a part of the batch after the other if the scores are too many for one.

    The arrays of ``parts`` lead with the batch, or with a divisor of it; all others, and the results, with the batch. A
    result may have one entry for each part instead.
    """
    batch, scores = query.shape[0], query.shape[1] * query.shape[2] * key.shape[1]
    count = next(n for n in range(1, batch + 1) if batch % n == 0 and (n == batch or batch // n * scores <= MAX_SCORES))
    parts = jax.tree.map(lambda part: part.fill_batch(batch), parts, is_leaf=lambda part: isinstance(part, Tiled))
    if count == 1:
        return function(parts, *arguments)
    leaves, structure = jax.tree.flatten((parts, *arguments))
    shared = [leaf.shape[0] == 1 for leaf in leaves]

    def body(_: None, own: list[Array]) -> tuple[None, Any]:
        rest = iter(own)
        found = [leaf if is_shared else next(rest) for leaf, is_shared in zip(leaves, shared, strict=True)]
        return None, function(*jax.tree.unflatten(structure, found))

    split = [
        x.reshape(count, batch // count, *x.shape[1:])
        for x, is_shared in zip(leaves, shared, strict=True)
        if not is_shared
    ]
    found = lax.scan(body, None, split)[1]
    return jax.tree.map(lambda x: x.reshape(x.shape[0] * x.shape[1], *x.shape[2:]), found)
