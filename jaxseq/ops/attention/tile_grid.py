"""The grid of tiles of one attention: its sizes, its live tiles, and the evaluation of a tile."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.ops.attention.masks import prefix
from jaxseq.ops.attention.parts import Parts
from jaxseq.ops.attention.tiled import Span, Tiled
from jaxseq.typing import Array


class Plan(NamedTuple):
    """The static options: scale and cap of the scores, tile sizes, the largest number of programs side by side."""

    scale: float
    row_tile: int
    column_tile: int
    programs: int
    soft_cap: float | None = None
    constant_loops: bool = False
    """Loops of constant length, through which reverse mode can pass: for second derivatives."""
    unrolled: bool = False
    """The functions of ``unrolled``, without loops over tiles."""


@dataclass(frozen=True)
class Grid:
    """Tiles of rows (queries) by columns (keys), for each program (a batch element and a key-value head)."""

    plan: Plan
    parts: Parts
    """Padded to the whole grid. Arrays lead with the batch, or 1 where it shares them, or a divisor of it (biases)."""
    batch: int
    kv_heads: int
    share: int
    """Query heads of one key-value head."""
    rows: int
    columns: int
    """Tiles of queries and of keys."""
    programs: int
    """Programs that run side by side."""
    groups: int
    """Groups of such programs, one after the other."""
    live: Array
    """``[groups, rows, columns]``: False where no program of the group sees a pair of the tile."""
    full: Array
    """``[groups, rows, columns]``: True where all programs of the group see all pairs of the tile."""

    def lengths(self) -> tuple[int, int]:
        """The padded numbers of queries and keys."""
        return self.rows * self.plan.row_tile, self.columns * self.plan.column_tile

    def program_indices(self) -> Array:
        return jnp.arange(self.batch * self.kv_heads, dtype=jnp.int32).reshape(self.groups, self.programs)

    def spans(self, i: Array, j: Array) -> tuple[Span, Span]:
        plan = self.plan
        return Span(i * plan.row_tile, plan.row_tile), Span(j * plan.column_tile, plan.column_tile)

    def evaluate(self, part: Tiled, program: Array, i: Array, j: Array, transposed: bool = False) -> Array:
        """The part on the tiles of these programs: ``[programs, share or 1, rows, columns]``, columns first if
        transposed.
        """
        spans = self.spans(i, j)
        cropped = part.crop(*spans)

        def one(program: Array) -> Array:
            heads = Span(program % self.kv_heads * self.share, self.share)
            return cropped.at_batch(program // self.kv_heads, self.batch).tile(*spans, heads)

        values = jax.vmap(one)(program)
        return values.transpose(0, 3, 1, 2) if transposed else values

    def split_heads(self, x: Array, transposed: bool = False) -> Array:
        """``[programs, heads · rows, columns]``, or its transpose, with an axis of heads."""
        by_head = (self.share, self.plan.row_tile)
        return x.reshape(len(x), *((x.shape[1], *by_head) if transposed else (*by_head, x.shape[2])))

    def scores(
        self, products: Array, program: Array, i: Array, j: Array, *, masked: bool, transposed: bool = False
    ) -> tuple[Array, Array | None]:
        """Scores of the scaled products ``[programs, heads · rows, columns]``, or of their transpose, and their slope.

        The slope is the derivative of a score by its product; None: it is 1.
        """
        s, slope = products, None
        if self.plan.soft_cap is not None:
            capped = jnp.tanh(s / self.plan.soft_cap)
            s, slope = self.plan.soft_cap * capped, 1 - capped * capped
        s = self.split_heads(s, transposed)
        if self.parts.bias is not None:
            s += self.evaluate(self.parts.bias, program, i, j, transposed).astype(s.dtype)
        if self.parts.mask is not None and masked:
            s = jnp.where(self.evaluate(self.parts.mask, program, i, j, transposed), s, -jnp.inf)
        return s.reshape(products.shape), slope

    def drop(self, program: Array, i: Array, j: Array, transposed: bool = False) -> Callable[[Array], Array]:
        """The function that drops weights, ``[programs, heads · rows, columns]``, or their transpose."""
        dropout = self.parts.dropout
        if dropout is None:
            return lambda weights: weights
        kept = self.evaluate(dropout, program, i, j, transposed)
        return lambda x: dropout.apply(self.split_heads(x, transposed), kept).reshape(x.shape)

    def zero_bias_gradient(self, dtype: Any) -> Array:
        """Zeros for the bias gradient of each program of a group, ``[programs, share or 1, ...]``."""
        assert self.parts.bias is not None
        _, heads, *rest = self.parts.bias.weights.shape
        return jnp.zeros((self.programs, heads // self.kv_heads if heads > 1 else 1, *rest), dtype)

    def add_bias_gradient(self, total: Array, cotangent: Array, program: Array, i: Array, j: Array) -> Array:
        """``total`` plus the bias gradient of the tiles; ``cotangent`` is that of the transposed scores."""
        bias = self.parts.bias
        assert bias is not None
        cotangent = self.split_heads(cotangent, transposed=True).transpose(0, 2, 3, 1)

        def one(total: Array, cotangent: Array, program: Array) -> Array:
            own = bias.at_batch(program // self.kv_heads, self.batch)
            return own.add_gradient(total, cotangent, *self.spans(i, j))

        return jax.vmap(one)(total, cotangent, program)

    def collect_bias_gradient(self, total: Array, of_programs: Array, program: Array) -> Array:
        """``total``, of the shape of the weights, plus the gradients of a group's programs."""
        by_kv_head = total.reshape(len(total), -1, *of_programs.shape[1:])
        element = program // self.kv_heads // (self.batch // len(total))
        head = program % by_kv_head.shape[1]
        return by_kv_head.at[element, head].add(of_programs).reshape(total.shape)

    def order(self, by_columns: bool = False) -> tuple[Array, Array]:
        """For each tile of rows: its tiles of columns, full ones first, then live ones, and the numbers of both.

        ``by_columns``: for each tile of columns its tiles of rows.
        """
        live, full = (self.live.mT, self.full.mT) if by_columns else (self.live, self.full)
        full = full & live
        order = jnp.argsort(jnp.where(full, 0, jnp.where(live, 1, 2)), axis=-1, stable=True).astype(jnp.int32)
        return order, jnp.stack([full.sum(-1, dtype=jnp.int32), live.sum(-1, dtype=jnp.int32)], -1)

    def loop_over_live(
        self, order: Array, counts: Array, body: Callable[[bool, Array, tuple], tuple], carry: tuple
    ) -> tuple:
        """``body(masked, tile, carry)`` for the full tiles, which need no mask, then for the others."""
        if self.plan.constant_loops:
            step = jax.checkpoint(functools.partial(body, True))

            def visit(carry: tuple, x: tuple) -> tuple:
                live, tile = x
                return lax.cond(live, step, lambda tile, carry: carry, tile, carry), None

            return lax.scan(visit, carry, (jnp.arange(len(order), dtype=jnp.int32) < counts[1], order))[0]
        carry = lax.fori_loop(0, counts[0], lambda n, carry: body(False, order[n], carry), carry)
        return lax.fori_loop(counts[0], counts[1], lambda n, carry: body(True, order[n], carry), carry)

    def tile_rows(self, x: Array, fill: float = 0.0) -> Array:
        """``[B, T, N, H]`` to ``[groups, row tiles, programs, heads · rows, H]``."""
        b, m, g, rows, width = self.batch, self.kv_heads, self.share, self.rows, x.shape[-1]
        x = _pad(x, rows * self.plan.row_tile, fill)
        x = x.reshape(b, rows, self.plan.row_tile, m, g, width).transpose(0, 3, 1, 4, 2, 5)
        return x.reshape(self.groups, self.programs, rows, g * self.plan.row_tile, width).swapaxes(1, 2)

    def untile_rows(self, x: Array, length: int) -> Array:
        b, m, g, rows, width = self.batch, self.kv_heads, self.share, self.rows, x.shape[-1]
        x = x.swapaxes(1, 2).reshape(b, m, rows, g, self.plan.row_tile, width).transpose(0, 2, 4, 1, 3, 5)
        return x.reshape(b, rows * self.plan.row_tile, m * g, width)[:, :length]

    def tile_columns(self, x: Array) -> Array:
        """``[B, S, M, H]`` to ``[groups, column tiles, programs, columns, H]``."""
        b, m, columns, size, width = self.batch, self.kv_heads, self.columns, self.plan.column_tile, x.shape[-1]
        x = _pad(x, columns * size, 0.0).reshape(b, columns, size, m, width).transpose(0, 3, 1, 2, 4)
        return x.reshape(self.groups, self.programs, columns, size, width).swapaxes(1, 2)

    def untile_columns(self, x: Array, length: int) -> Array:
        b, m, columns, size, width = self.batch, self.kv_heads, self.columns, self.plan.column_tile, x.shape[-1]
        x = x.swapaxes(1, 2).reshape(b, m, columns, size, width).transpose(0, 2, 3, 1, 4)
        return x.reshape(b, columns * size, m, width)[:, :length]


def make_grid(plan: Plan, query: Array, key: Array, parts: Parts) -> Grid:
    """The grid of a call that has at least one program, query and key."""
    (batch, T, N, _), (S, M) = query.shape, key.shape[1:3]
    rows, columns = -(-T // plan.row_tile), -(-S // plan.column_tile)
    programs = max(n for n in range(1, min(batch * M, plan.programs) + 1) if batch * M % n == 0)
    size = (rows * plan.row_tile, columns * plan.column_tile)
    parts = parts.map(lambda part: part.pad(*size))
    mask = None if parts.mask is None else parts.mask.fill_batch(batch)
    if S % plan.column_tile:
        mask = prefix(S) if mask is None else mask & prefix(S)
    live: Any = np.ones((1, rows, columns), bool)
    full: Any = live
    if mask is not None:
        tiles = mask.tiles(*size, plan.row_tile, plan.column_tile)
        live, full = (x.reshape(-1, rows, columns) for x in tiles)
    joint, groups = (batch, M, rows, columns), batch * M // programs
    live, full = (
        jnp.broadcast_to(jnp.asarray(x)[:, None], joint).reshape(groups, programs, rows, columns) for x in (live, full)
    )
    return Grid(
        plan, parts._replace(mask=mask), batch, M, N // M, rows, columns, programs, groups, live.any(1), full.all(1)
    )


def _pad(x: Array, length: int, fill: float) -> Array:
    if x.shape[1] == length:
        return x
    return jnp.pad(x, [(0, 0), (0, length - x.shape[1]), (0, 0), (0, 0)], constant_values=fill)
