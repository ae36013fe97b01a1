"""Attention with its positions sharded over devices: each rank keeps its queries, keys and values go round in a ring.

Of n ranks, rank i computes the queries of the chunks i and 2n - 1 - i of 2n (zigzag: under a causal mask every rank
then sees the same number of keys). In each of n steps it attends to the keys it holds, a pair of chunks at a time,
merges the outputs by their log-sum-exp, and passes the keys on. A pair of which the mask sees nothing is skipped;
inside a pair the tiles do the same. The backward pass sends keys, values and their gradients round once more and
recomputes the weights, so that a device holds the keys of 1/n of the positions at any time (Liu et al. 2023, "Ring
attention", arXiv:2310.01889; the placement is that of Llama 3's context parallelism, arXiv:2407.21783, section
3.3.2).

Forward mode does not pass through the ring.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.attention.blocks import Block, align_batch, at_block, map_pairs, of_these_heads, part_specs
from jaxseq.ops.attention.masks import Mask
from jaxseq.ops.attention.parts import Parts
from jaxseq.ops.attention.tile_grid import Plan
from jaxseq.ops.attention.tiled import MIN_SCORE
from jaxseq.ops.attention.tiles import attend_block, choose_plan, transpose_block
from jaxseq.ops.sequence_axis import SEQUENCE, SequenceAxis, rotate, spec
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Float, Int


class _Ring(NamedTuple):
    """Static: the number of ranks, the positions of a chunk, the tiles of a pair of chunks."""

    size: int
    chunk: int
    plan: Plan


def ring_attention(
    axis: SequenceAxis,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B T M H"],
    value: Float[Array, "*B T M Hv"],
    parts: Parts,
    scale: float,
    soft_cap: float | None,
) -> Float[Array, "*B T N Hv"]:
    """Attention as a ring; T is a multiple of twice the number of ranks."""
    batch, rows = query.shape[:-3], axis.rows(query.shape[:-3])
    heads = axis.heads(query.shape[-2], key.shape[-2])
    chunk = query.shape[-3] // (2 * axis.size)
    plan = choose_plan(query[..., :chunk, :, :], key[..., :chunk, :, :], parts.mask, scale, soft_cap)
    parts = align_batch(parts, len(batch))

    def segment(query: Array, key: Array, value: Array, parts: Parts) -> Array:
        own = query.shape[:-3]
        parts = of_these_heads(parts.map(lambda part: part.flatten_batch(own)), query.shape[-2], heads)
        parts = map_pairs(parts, lambda x, at: _zigzag(x, axis.size, at))
        flat = (x.reshape(math.prod(own), *x.shape[-3:]) for x in (query, key, value))
        chunks = tuple(jnp.stack(jnp.split(_zigzag(x, axis.size, 1), 2, 1)) for x in flat)
        weights = None if parts.bias is None else parts.bias.weights
        out = _ring(_Ring(axis.size, chunk, plan), chunks, weights, _with_weights(parts, None))
        out = _zigzag(jnp.concatenate(list(out), 1), axis.size, 1, back=True)
        return out.reshape(*query.shape[:-1], value.shape[-1])

    along = spec(*rows, SEQUENCE, heads)
    in_specs = along, along, along, part_specs(axis, parts, rows, heads)
    out: Array = axis.map(segment, in_specs, along)(query, key, value, parts)
    return out


def gathered_attention(
    attend: Callable[[Array, Array, Array, Parts], Array],
    axis: SequenceAxis,
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    parts: Parts,
) -> Float[Array, "*B T N Hv"]:
    """``attend(query, key, value, parts)`` of every rank for its own queries, with the keys and values of all ranks."""
    batch, rows = query.shape[:-3], axis.rows(query.shape[:-3])
    heads = axis.heads(query.shape[-2], key.shape[-2])
    parts = align_batch(parts, len(batch))

    def segment(query: Array, key: Array, value: Array, parts: Parts) -> Array:
        own, shape = query.shape[:-3], (*query.shape[:-1], value.shape[-1])
        parts = of_these_heads(parts.map(lambda part: part.flatten_batch(own)), query.shape[-2], heads)
        block = Block(lax.axis_index(SEQUENCE) * query.shape[-3], query.shape[-3])
        parts = parts.map(lambda part: at_block(part, block, Block(0, key.shape[-3])))
        query, key_, value_ = (x.reshape(math.prod(own), *x.shape[-3:]) for x in (query, key, value))
        return attend(query, key_, value_, parts).reshape(shape)

    along, whole = spec(*rows, SEQUENCE, heads), spec(*rows, None, heads)
    in_specs = along, whole, whole, part_specs(axis, parts, rows, heads)
    out: Array = axis.map(segment, in_specs, along)(query, key, value, parts)
    return out


class _Pair(NamedTuple):
    """A pair of chunks: their slots on this rank, what they stand for in the sequence, and the parts cut to them."""

    q: Array
    k: Array
    rows: Block
    columns: Block
    parts: Parts


Visit = Callable[[_Pair, tuple, Any, Any], tuple[Any, Any]]
"""``visit(pair, keys, own, moving) -> (own, moving)``: ``own`` stays on the rank, ``moving`` goes with the keys."""


def _go_round(ring: _Ring, parts: Parts, visit: Visit, keys: tuple, own: Any, moving: Any) -> tuple[Any, Any]:
    """``own`` and ``moving`` after all visible pairs of chunks; ``moving`` is then one rank short of its own."""
    rank = lax.axis_index(SEQUENCE)

    def step(number: Any, keys: tuple, own: Any, moving: Any) -> tuple[Any, Any]:
        holder = (rank - number) % ring.size

        def one(carry: tuple, index: Array) -> tuple[tuple, None]:
            pair = _pair_at(ring, parts, rank, holder, index)
            live = _is_live(pair.parts, ring.chunk)
            return lax.cond(live, lambda c: visit(pair, keys, *c), lambda c: c, carry), None

        result: tuple[Any, Any] = lax.scan(one, (own, moving), jnp.arange(4, dtype=jnp.int32))[0]
        return result

    def step_and_pass(carry: tuple, number: Array) -> tuple[tuple, None]:
        keys, own, moving = carry
        following = rotate(keys, ring.size)
        own, moving = step(number, keys, own, moving)
        return (following, own, rotate(moving, ring.size)), None

    numbers = jnp.arange(ring.size - 1, dtype=jnp.int32)
    (keys, own, moving), _ = lax.scan(step_and_pass, (keys, own, moving), numbers)
    return step(ring.size - 1, keys, own, moving)


def _pair_at(ring: _Ring, parts: Parts, rank: Any, holder: Any, index: Any) -> _Pair:
    """Pair ``index`` of the four of a rank's chunks of queries and the chunks of keys of another rank."""
    q, k = index // 2, index % 2
    rows = Block(_chunk_at(ring.size, rank, q) * ring.chunk, ring.chunk, q * ring.chunk)
    columns = Block(_chunk_at(ring.size, holder, k) * ring.chunk, ring.chunk)
    return _Pair(q, k, rows, columns, parts.map(lambda part: at_block(part, rows, columns)))


def _is_live(parts: Parts, chunk: int) -> Bool[Array, ""]:
    """False if no query of the pair sees any of its keys."""
    if parts.mask is None:
        return jnp.asarray(True)
    return jnp.asarray(parts.mask.tiles(chunk, chunk, chunk, chunk).live).any()


def count_live_pairs(mask: Mask, length: int, size: int) -> Int[Array, "{size}"]:
    """The pairs of chunks that each of ``size`` ranks computes under a mask, of the 4 · size in a ring; for reports."""
    chunk = length // (2 * size)
    ring = _Ring(size, chunk, Plan(1.0, chunk, chunk, 1))
    parts = Parts(mask.flatten_batch(()))
    counts = [
        sum(
            _is_live(_pair_at(ring, parts, rank, holder, index).parts, ring.chunk).astype(jnp.int32)
            for holder in range(size)
            for index in range(4)
        )
        for rank in range(size)
    ]
    return jnp.stack(counts)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ring(ring: _Ring, arrays: tuple[Array, Array, Array], weights: Array | None, parts: Parts) -> Array:
    """The output of a rank's queries, ``[2, B, C, N, Hv]``; ``parts`` has the bias without its weights."""
    return _ring_forward(ring, arrays, weights, parts)[0]


def _ring_forward(ring: _Ring, arrays: tuple, weights: Array | None, parts: Parts) -> tuple[Array, tuple]:
    query, *keys = arrays
    wide = at_least_float32(query.dtype)

    def visit(pair: _Pair, keys: tuple, own: tuple, moving: None) -> tuple[tuple, None]:
        key, value = (x[pair.k] for x in keys)
        out, most, rest = attend_block(query[pair.q], key, value, pair.parts, ring.plan)
        mixed, old, total = (x[pair.q] for x in own)
        higher = jnp.maximum(old, most)
        shrink, weight = jnp.exp(old - higher), jnp.exp((most - higher) + rest)
        mixed = mixed * shrink[..., None] + weight[..., None] * out.astype(wide)
        new = mixed, higher, total * shrink + weight
        return tuple(x.at[pair.q].set(n) for x, n in zip(own, new, strict=True)), moving

    nothing = jnp.zeros(query.shape[:-1], wide)
    begin = jnp.zeros((*query.shape[:-1], keys[1].shape[-1]), wide), nothing + MIN_SCORE, nothing
    (mixed, most, total), _ = _go_round(ring, _with_weights(parts, weights), visit, tuple(keys), begin, None)
    safe = jnp.where(total == 0, 1, total)
    out = (mixed / safe[..., None]).astype(query.dtype)
    return out, (arrays, weights, parts, out, most, jnp.log(safe))


def _ring_backward(ring: _Ring, kept: tuple, cotangent: Array) -> tuple:
    (query, key, value), weights, parts, *result = kept
    wide = at_least_float32(query.dtype)

    def visit(pair: _Pair, keys: tuple, own: tuple, moving: tuple) -> tuple[tuple, tuple]:
        d_query, d_weights = own
        operands = query[pair.q], *(x[pair.k] for x in keys), *(x[pair.q] for x in result)
        dq, *d_keys, dw = transpose_block(operands, pair.parts, ring.plan, cotangent[pair.q])
        if weights is not None:
            cut: Any = lambda w: at_block(parts.bias.with_weights(w), pair.rows, pair.columns).weights  # noqa: E731
            d_weights += jax.vjp(cut, weights)[1](dw)[0].astype(d_weights.dtype)
        d_query = d_query.at[pair.q].add(dq.astype(wide))
        moving = tuple(x.at[pair.k].add(d.astype(wide)) for x, d in zip(moving, d_keys, strict=True))
        return (d_query, d_weights), moving

    d_query, *d_keys = (jnp.zeros(x.shape, wide) for x in (query, key, value))
    begin = d_query, None if weights is None else jnp.zeros(weights.shape, at_least_float32(weights.dtype))
    parts_ = _with_weights(parts, weights)
    (d_query, d_weights), d_keys = _go_round(ring, parts_, visit, (key, value), begin, tuple(d_keys))
    d_key, d_value = rotate(d_keys, ring.size)
    arrays = d_query.astype(query.dtype), d_key.astype(key.dtype), d_value.astype(value.dtype)
    return arrays, None if weights is None else d_weights.astype(weights.dtype), None


_ring.defvjp(_ring_forward, _ring_backward)


def _with_weights(parts: Parts, weights: Array | None) -> Parts:
    return parts if parts.bias is None else parts._replace(bias=parts.bias.with_weights(weights))


def _chunk_at(size: int, rank: Any, slot: Any) -> Array:
    """The chunk in a slot of a rank: of its two, the even one is in slot 0, the odd one in slot 1."""
    return jnp.where(rank % 2 == slot, rank, 2 * size - 1 - rank)


def _zigzag(x: Array, size: int, axis: int, back: bool = False) -> Array:
    """From the chunks 2i and 2i + 1 on rank i to its chunks i and 2n - 1 - i, or back: two permutations of halves."""
    moved = []
    for odd, half in enumerate(jnp.split(x, 2, axis)):
        pairs = [(i, min(2 * i + odd, 2 * size - 1 - (2 * i + odd))) for i in range(size)]
        moved.append(lax.ppermute(half, SEQUENCE, [(b, a) for a, b in pairs] if back else pairs))
    return jnp.concatenate(moved, axis)
