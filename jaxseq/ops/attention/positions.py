"""Position encodings: sinusoids for the input, rotary queries and keys, biases on the scores (ALiBi, T5)."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.ops.attention.biases import Bias
from jaxseq.ops.attention.tiled import STATIC, Span, align_ranks, as_index, as_int32, leaf, slice_span, span_positions
from jaxseq.ops.ids import check_ids, nan_where_invalid
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float, Int

Table: TypeAlias = Float[Array | np.ndarray, "L K"]
"""A number for each position 0 .. L - 1 and each pair of features."""


def sinusoid(positions: Int[Array, "*B T"], features: int, *, base: float = 10000.0) -> Float[Array, "*B T {features}"]:
    """``sin(t / base^(2i/D))`` in the first half of the features, the cosines in the second.

    The paper interleaves the two; any linear map after it makes the order of features irrelevant. Vaswani et al. 2017.

    Raises:
        ValueError: features is odd.
    """
    angles = _angles(positions, features, base, "features")
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def rotary(
    x: Float[Array, "*B T N H"],
    positions: Int[Array, "*#B T"],
    *,
    base: float = 10000.0,
    interleaved: bool = False,
    features: int | None = None,
    tables: tuple[Table, Table] | None = None,
) -> Float[Array, "*B T N H"]:
    """Rotates each pair of features by ``position / base^(2i/k)``; products then depend on the distance only.

    The first k features form the pairs i = 0 .. k/2 - 1; the others are unchanged. The angles are at least float32.
    Su et al. 2021 (RoFormer).

    Args:
        x: queries or keys.
        positions: integers.
        base: 10,000 in the paper; larger for longer contexts (LLaMA 3: 500,000).
        interleaved: pair feature 2i with 2i + 1 (the paper, GPT-J) instead of i with i + k/2 (GPT-NeoX, LLaMA).
        features: k; by default all H (GPT-J rotates 64 of 256, GPT-NeoX a quarter).
        tables: the cosines and the sines ``[L, k/2]`` of every angle at positions 0 .. L - 1, for scaled angles; then
            ``base`` is not read.

    Raises:
        ValueError: k is odd or more than H, tables of another shape, or a position outside [0, L). Under ``jit`` the
            features at such a position are NaN.
    """
    width = x.shape[-1] if features is None else features
    if not 0 < width <= x.shape[-1]:
        raise ValueError(f"features={features} cannot be rotated of a head size of {x.shape[-1]}")
    if tables is None:
        angles = _angles(positions, width, base, "head size H" if features is None else "features")
        cos, sin = jnp.cos(angles), jnp.sin(angles)
    else:
        cos, sin = _looked_up(tables, positions, width)
    wide = at_least_float32(x.dtype)
    cos, sin = (align_ranks(part[..., None, :].astype(wide), x)[0] for part in (cos, sin))
    left, right = _pairs(x[..., :width].astype(wide), interleaved)
    axis = x.ndim if interleaved else x.ndim - 1
    join = jnp.stack if interleaved else jnp.concatenate
    turned = join([left * cos - right * sin, right * cos + left * sin], axis=axis)
    turned = turned.reshape(*x.shape[:-1], width).astype(x.dtype)
    return turned if width == x.shape[-1] else jnp.concatenate([turned, x[..., width:]], axis=-1)


def _pairs(x: Array, interleaved: bool) -> tuple[Array, Array]:
    """The first and the second feature of each pair."""
    if interleaved:
        return x[..., ::2], x[..., 1::2]
    left, right = jnp.split(x, 2, axis=-1)
    return left, right


def _looked_up(tables: tuple[Table, Table], positions: Array, features: int) -> tuple[Array, Array]:
    """The rows of cosines and sines at the positions, NaN outside the tables."""
    cos, sin = (jnp.asarray(table) for table in tables)
    if cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[-1] != features:
        raise ValueError(
            f"rotary tables for {features} features are cosines and sines [L, {features / 2:g}], "
            f"not {cos.shape} and {sin.shape}"
        )
    check_ids("positions", positions, cos.shape[0])
    positions = jnp.asarray(as_int32("positions", positions))
    cos, sin = (nan_where_invalid(table[positions], positions, cos.shape[0]) for table in (cos, sin))
    return cos, sin


def _angles(positions: Array, features: int, base: float, name: str) -> Array:
    if features % 2:
        raise ValueError(f"{name} must be even to be split into pairs, got {features}")
    wide = jnp.result_type(float)
    exponents = jnp.arange(0, features, 2, dtype=wide) / features
    steps = jnp.asarray(base, wide) ** -exponents
    return positions[..., None].astype(wide) * steps.reshape((1,) * positions.ndim + steps.shape)


def alibi_slopes(num_heads: int) -> Float[Array, "{num_heads}"]:
    """The paper's slopes: ``2^(-8 i / N)`` for i = 1..N when N is a power of two.

    Else those of the largest power of two below N, and after them every second one of twice as many. Press
    et al. 2022.

    Raises:
        ValueError: there is no head.
    """
    if num_heads < 1:
        raise ValueError(f"num_heads must be at least 1, got {num_heads}")
    power = 2 ** (num_heads.bit_length() - 1)
    slopes = 2.0 ** (-8.0 * np.arange(1, power + 1) / power)
    more = 2.0 ** (-8.0 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    return jnp.asarray(np.concatenate([slopes, more])[:num_heads], jnp.result_type(float))


def alibi(
    slopes: Float[Array, " N"],
    q_positions: Int[Array, "*B T"] | None = None,
    kv_positions: Int[Array, "*#B S"] | None = None,
    *,
    offset: int = 0,
) -> Bias:
    """The bias ``-slope · |q - k|`` on the scores: ``attention(..., bias=alibi(alibi_slopes(N)))``.

    Without positions, query i is at ``i + offset`` and key j at j. Evaluated tile by tile. Slopes that depend on
    parameters receive a gradient. Press et al. 2022 (Train short, test long).

    Raises:
        ValueError: both an offset and q_positions.
    """
    q, k, offset = _positions(q_positions, kv_positions, offset)
    return Alibi(offset=offset, slopes=jnp.asarray(slopes), q_positions=q, kv_positions=k)


def relative_buckets(
    distance: Int[Array, "..."], num_buckets: int = 32, max_distance: int = 128, bidirectional: bool = True
) -> Int[Array, "..."]:
    """T5's bucket of each distance ``k - q``, in [0, num_buckets).

    Half of the buckets hold one distance each, the others grow logarithmically up to max_distance; all distances from
    there on share the last one. Bidirectional: the first half of the buckets is for keys at or before the query, the
    second half for those after it. Otherwise keys after the query count as distance 0. Raffel et al. 2020 (Exploring
    the limits of transfer learning, section 2.1); equal to ``transformers``' ``_relative_position_bucket``.

    Raises:
        ValueError: there are fewer than 4 buckets (2 if not bidirectional), or max_distance is too small for them.
    """
    table = _bucket_table(num_buckets, max_distance, bidirectional)
    distance = jnp.clip(as_int32("distance", distance), -max_distance, max_distance)
    return jnp.asarray(table)[distance + max_distance]


def _bucket_table(num_buckets: int, max_distance: int, bidirectional: bool) -> np.ndarray:
    """The buckets of the distances -max_distance, ..., max_distance."""
    side = num_buckets // 2 if bidirectional else num_buckets
    exact = side // 2
    if exact < 1:
        raise ValueError(f"num_buckets must be at least {4 if bidirectional else 2}, got {num_buckets}")
    if max_distance <= exact:
        raise ValueError(f"max_distance must exceed {exact}, the buckets of one distance each, got {max_distance}")
    distance = np.arange(-max_distance, max_distance + 1)
    size = np.abs(distance) if bidirectional else np.maximum(-distance, 0)
    # In float32, as in transformers: some distances are on the border of two buckets. The logarithm is rounded once.
    logs = np.log((np.maximum(size, 1).astype(np.float32) / np.float32(exact)).astype(np.float64)).astype(np.float32)
    share = logs / np.float32(math.log(max_distance / exact)) * np.float32(side - exact)
    large = np.minimum(exact + share.astype(np.int32), side - 1)
    after = side if bidirectional else 0
    return (np.where(size < exact, size, large) + after * (distance > 0)).astype(np.int32)


def relative_bias(
    table: Float[Array, "N K"],
    q_positions: Int[Array, "*B T"] | None = None,
    kv_positions: Int[Array, "*#B S"] | None = None,
    *,
    bidirectional: bool,
    offset: int = 0,
    max_distance: int = 128,
) -> Bias:
    """T5's bias: ``table[head, bucket(k - q)]``, evaluated tile by tile, so memory is O(T).

    Args:
        table: a learned number for each head and bucket; receives a gradient.
        q_positions, kv_positions: without them, query i is at ``i + offset`` and key j at j.
        bidirectional: True for an encoder; False for a decoder, in which no key is after its query.
        offset, max_distance: see above and ``relative_buckets``.

    Raises:
        ValueError: both an offset and q_positions; else as ``relative_buckets``.
    """
    q, k, offset = _positions(q_positions, kv_positions, offset)
    table = jnp.asarray(table)
    _bucket_table(table.shape[-1], max_distance, bidirectional)
    return RelativeBias(offset, max_distance, bidirectional, table, q, k)


def _positions(q_positions: Any, kv_positions: Any, offset: Any) -> tuple[Array | None, Array | None, int]:
    offset = as_index("offset", offset)
    if offset and q_positions is not None:
        raise ValueError(f"offset={offset} and q_positions both give the positions of queries; pass one")
    return as_int32("q_positions", q_positions), as_int32("kv_positions", kv_positions), offset


def _add_transpose(bias: Bias, total: Array, cotangent: Array, rows: Span, columns: Span) -> Array:
    """``Bias.add_gradient`` for weights that are small, by the transpose of ``tile``."""
    (gradient,) = jax.linear_transpose(lambda w: bias.with_weights(w).tile(rows, columns), total)(cotangent)
    return total + gradient


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Alibi(Bias):
    """``-slope · |q - k|``, made by ``alibi``."""

    offset: int = field(default=0, metadata=STATIC)
    slopes: Any = field(default=None, metadata=leaf("N"))
    q_positions: Any = field(default=None, metadata=leaf("T"))
    kv_positions: Any = field(default=None, metadata=leaf("S"))
    weights_name: ClassVar[str] = "slopes"

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        q, k = span_positions(self.q_positions, rows, self.offset), span_positions(self.kv_positions, columns)
        slopes = self.slopes if heads is None else slice_span(self.slopes, heads)
        q, k, slopes = align_ranks(q[..., None, :, None], k[..., None, None, :], slopes[..., None, None])
        return -slopes * jnp.abs(q - k).astype(slopes.dtype)

    def add_gradient(self, total: Array, cotangent: Array, rows: Span, columns: Span) -> Array:
        return _add_transpose(self, total, cotangent, rows, columns)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class RelativeBias(Bias):
    """``table[head, bucket(k - q)]``, made by ``relative_bias``."""

    offset: int = field(default=0, metadata=STATIC)
    max_distance: int = field(default=128, metadata=STATIC)
    bidirectional: bool = field(default=True, metadata=STATIC)
    table: Any = field(default=None, metadata=leaf("NK"))
    q_positions: Any = field(default=None, metadata=leaf("T"))
    kv_positions: Any = field(default=None, metadata=leaf("S"))
    weights_name: ClassVar[str] = "table"

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        table = self.table if heads is None else slice_span(self.table, heads, axis=-2)
        buckets = _bucket_table(table.shape[-1], self.max_distance, self.bidirectional)
        by_distance = table[..., buckets]
        if self.q_positions is None and self.kv_positions is None:
            first = jnp.asarray(columns.start, jnp.int32) - jnp.asarray(rows.start, jnp.int32) - self.offset
            distance = first + jnp.arange(1 - rows.size, columns.size, dtype=jnp.int32)
            return _diagonals(by_distance[..., self._index(distance)], rows.size, columns.size)
        q, k = span_positions(self.q_positions, rows, self.offset), span_positions(self.kv_positions, columns)
        q, k = align_ranks(q[..., :, None], k[..., None, :])
        index = self._index(k - q)
        lead = jnp.broadcast_shapes(index.shape[:-2], by_distance.shape[:-2])
        index = jnp.broadcast_to(index, (*lead, *index.shape[-2:])).reshape(*lead, 1, -1)
        by_distance = jnp.broadcast_to(by_distance, (*lead, *by_distance.shape[-2:]))
        values = jnp.take_along_axis(by_distance, index, axis=-1, mode="clip")
        return values.reshape(*values.shape[:-1], rows.size, columns.size)

    def _index(self, distance: Array) -> Array:
        return jnp.clip(distance, -self.max_distance, self.max_distance) + self.max_distance

    def add_gradient(self, total: Array, cotangent: Array, rows: Span, columns: Span) -> Array:
        return _add_transpose(self, total, cotangent, rows, columns)


def _diagonals(values: Array, rows: int, columns: int) -> Array:
    """``out[..., i, j] = values[..., rows - 1 + j - i]``, without a gather: slices of the repeated values."""
    lead, width = values.shape[:-1], rows + columns
    padded = jnp.concatenate([values, jnp.zeros((*lead, 1), values.dtype)], axis=-1)
    repeated = jnp.broadcast_to(padded[..., None, :], (*lead, rows, width)).reshape(*lead, rows * width)
    return repeated[..., : rows * (width - 1)].reshape(*lead, rows, width - 1)[..., rows - 1 :]
