"""Mask, bias and dropout of one block of queries by keys, cut from those of the whole sequence.

What is given by index (positions that are none, prefixes, the pairs of dropout) is told the indices of the block.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.attention.biases import DenseBias
from jaxseq.ops.attention.dropout import Dropout
from jaxseq.ops.attention.masks import And, Band, Dense, DenseByHead, FiniteKeys, Or, Padding, Prefix, Segments
from jaxseq.ops.attention.parts import Parts
from jaxseq.ops.attention.positions import Alibi, RelativeBias
from jaxseq.ops.attention.tiled import Tiled
from jaxseq.ops.sequence_axis import SEQUENCE, SequenceAxis, spec
from jaxseq.typing import Array

_KNOWN = (And, Band, Dense, DenseByHead, FiniteKeys, Or, Padding, Prefix, Segments, DenseBias, Alibi, RelativeBias)

Part = TypeVar("Part", bound=Tiled)


class Block(NamedTuple):
    """``size`` neighbouring queries or keys from index ``start`` on, whose rows begin at ``local`` on this device."""

    start: Any
    size: int
    local: Any = 0


def can_cut(part: Tiled | None) -> bool:
    """Whether ``at_block`` knows masks and biases of this class, and those that they are made of."""
    if isinstance(part, And | Or):
        return can_cut(part.left) and can_cut(part.right)
    if isinstance(part, FiniteKeys):
        return can_cut(part.mask)
    return part is None or isinstance(part, _KNOWN)


def at_block(part: Any, rows: Block, columns: Block) -> Any:
    """The part for these queries and keys alone.

    Its arrays lead with the batch or with 1 (``flatten_batch``). Arrays of queries by keys hold the rows of this device
    alone, all others the whole sequence.
    """
    if isinstance(part, And | Or):
        return replace(part, left=at_block(part.left, rows, columns), right=at_block(part.right, rows, columns))
    if isinstance(part, FiniteKeys):
        return replace(part, mask=at_block(part.mask, rows, columns))
    if isinstance(part, Prefix):
        size = jnp.full((1,), part.size or 0, jnp.int32) if part.sizes is None else part.sizes
        return Prefix(sizes=size - columns.start)

    def cut(name: str, dims: str, fill: Any, leaf: Array) -> Array:
        starts = {"T": rows.local if _is_pairs(dims) else rows.start, "S": columns.start}
        sizes = {"T": rows.size, "S": columns.size}
        for axis, dim in enumerate(dims, leaf.ndim - len(dims)):
            letter = dim.upper()
            if letter in starts and not (dim.islower() and leaf.shape[axis] == 1):
                leaf = lax.dynamic_slice_in_dim(leaf, starts[letter], sizes[letter], axis)
        return leaf

    return _with_indices(part.map_leaves(cut), rows, columns)


def _with_indices(part: Any, rows: Block, columns: Block) -> Any:
    """The part with the indices of a block where it had none."""
    q, k = (jnp.arange(b.size, dtype=jnp.int32)[None] + jnp.asarray(b.start, jnp.int32) for b in (rows, columns))
    if isinstance(part, Dropout):
        return replace(part, q_indices=q, kv_indices=k)
    if isinstance(part, Band | Alibi | RelativeBias):
        q = q + part.offset if part.q_positions is None else part.q_positions
        return replace(
            part, q_positions=q, kv_positions=k if part.kv_positions is None else part.kv_positions, offset=0
        )
    return part


def _is_pairs(dims: str) -> bool:
    """Whether an array with these dimensions has one entry a query and key."""
    return {"T", "S"} <= set(dims.upper())


def align_batch(parts: Parts, rank: int) -> Parts:
    """The arrays with ``rank`` batch dimensions, where new ones are 1."""

    def align(name: str, dims: str, fill: Any, leaf: Array) -> Array:
        return leaf.reshape((1,) * (rank + len(dims) - leaf.ndim) + leaf.shape)

    return parts.map(lambda part: part.map_leaves(align))


def part_specs(axis: SequenceAxis, parts: Parts, rows: tuple[Any, ...], heads: str | None) -> Parts:
    """The shardings of the arrays: batch and heads as those of the queries, rows of queries by keys over "sequence"."""

    def place(name: str, dims: str, fill: Any, leaf: Array) -> Any:
        split = leaf.ndim - len(dims)
        lead = [a if n > 1 else None for a, n in zip(rows, leaf.shape[:split], strict=True)]
        own = {"N": heads, "T": SEQUENCE if _is_pairs(dims) else None}
        rest = [own.get(d.upper()) if n > 1 else None for d, n in zip(dims, leaf.shape[split:], strict=True)]
        return spec(*lead, *rest)

    return parts.map(lambda part: part.map_leaves(place))


def map_pairs(parts: Parts, function: Callable[[Array, int], Array]) -> Parts:
    """The parts with ``function(array, axis)`` of the arrays of queries by keys, along their axis of queries."""

    def place(name: str, dims: str, fill: Any, leaf: Array) -> Array:
        if not _is_pairs(dims):
            return leaf
        axis = leaf.ndim - len(dims) + dims.upper().index("T")
        return leaf if leaf.shape[axis] == 1 and dims.islower() else function(leaf, axis)

    return parts.map(lambda part: part.map_leaves(place))


def of_these_heads(parts: Parts, count: int, heads: str | None) -> Parts:
    """The parts whose dropout knows which heads of the call these ``count`` are, the device's own along ``heads``."""
    if parts.dropout is None:
        return parts
    first = 0 if heads is None else jax.lax.axis_index(heads) * count
    indices = jnp.arange(count, dtype=jnp.int32)[None] + jnp.asarray(first, jnp.int32)
    return parts._replace(dropout=replace(parts.dropout, num_heads=count, head_indices=indices))
