"""Position encodings: sinusoids for the input, rotary queries and keys, and a bias on the scores (ALiBi)."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.ops.attention.tiled import STATIC, Span, Tiled, align_ranks, as_int32, leaf, slice_span, span_positions
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
    positions: Int[Array, "*B T"],
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
    cos, sin = (part[..., None, :].astype(wide) for part in (cos, sin))
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
) -> Tiled:
    """The bias ``-slope · |q - k|`` on the scores: ``attention(..., bias=alibi(alibi_slopes(N)))``.

    Without positions, query i is at ``i + offset`` and key j at j. Evaluated tile by tile. The slopes are
    constants: no gradient reaches them. Press et al. 2022 (Train short, test long).
    """
    if offset and q_positions is not None:
        raise ValueError(f"offset={offset} and q_positions both give the positions of queries; pass one")
    q, k = as_int32("q_positions", q_positions), as_int32("kv_positions", kv_positions)
    return Alibi(offset=offset, slopes=lax.stop_gradient(jnp.asarray(slopes)), q_positions=q, kv_positions=k)


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Alibi(Tiled):
    """``-slope · |q - k|``, made by ``alibi``."""

    offset: int = field(default=0, metadata=STATIC)
    slopes: Any = field(default=None, metadata=leaf("N"))
    q_positions: Any = field(default=None, metadata=leaf("T"))
    kv_positions: Any = field(default=None, metadata=leaf("S"))

    def tile(self, rows: Span, columns: Span, heads: Span | None = None) -> Array:
        q, k = span_positions(self.q_positions, rows, self.offset), span_positions(self.kv_positions, columns)
        slopes = self.slopes if heads is None else slice_span(self.slopes, heads)
        q, k, slopes = align_ranks(q[..., None, :, None], k[..., None, None, :], slopes[..., None, None])
        return -slopes * jnp.abs(q - k).astype(slopes.dtype)
