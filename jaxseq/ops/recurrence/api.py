"""Nonlinear recurrence over a pointwise cell, with a gradient that keeps the weights out of the loop.

``jax.grad`` of a ``lax.scan`` carries the gradient of the recurrent matrix through every reverse step. The fast form
(``jaxseq.ops.recurrence.fused``) makes weight gradients as one product a chunk of time. Forward mode, ``jacfwd`` and
second derivatives stay open.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.tree_util import Partial

from jaxseq.ops import segments
from jaxseq.ops.implementations import running
from jaxseq.ops.recurrence.fused import Rows, Weights, fused_recurrence
from jaxseq.ops.recurrence.pointwise import not_pointwise
from jaxseq.typing import Array, Float, SegmentIds

IMPLEMENTATIONS = ("auto", "fused", "reference")
RESIDUALS = ("activations", "chunks")


class _Marks(NamedTuple):
    """Where documents begin and what is real; both None without segment ids."""

    start: Any
    real: Any


def recurrence(
    cell: Callable,
    state: Any,
    x: Float[Array, "*B T G F"],
    R: Float[Array, "N H G H"],
    *,
    segment_ids: SegmentIds | None = None,
    residuals: str = "activations",
    implementation: str = "auto",
) -> tuple[Any, Float[Array, "*B T F"]]:
    """Runs ``state_t = cell(state_{t-1}, x_t, h_{t-1} R)`` along time; returns the last state and all ``h_t``.

    Args:
      cell: a pointwise equation ``cell(state, x, r) -> state`` (see ``jaxseq.ops.cells``), or a
        ``jax.tree_util.Partial`` of one whose first argument is the cell's own parameters (their gradient is given).
      x: the input's projection for each gate, bias included: one matrix product, done before.
      R: the recurrent matrix, block-diagonal over N heads of H units each (one head: dense), for each gate.
      state: a NamedTuple of ``[*B, F]`` arrays; its first field is ``h``. Kept in its own dtype (float32 or wider).
      segment_ids: 0 is padding (the state stands still), a change of id begins again from zeros.
      residuals: what is kept for the way back: ``"activations"`` (the cell's transcendental functions and its state,
        the fastest) or ``"chunks"`` (√T states, everything else computed again a chunk at a time: long sequences).
      implementation: ``"fused"`` is the fast form, ``"reference"`` the plain scan; ``"auto"`` takes the first for a
        pointwise cell, and the second for one whose units see one another (a norm, say). Under ``jax.shard_map`` the
        fast form needs ``check_vma=False``.

    Raises:
      ValueError: the shapes of ``x``, ``R`` and ``state`` do not agree, an option is unknown, or ``"fused"`` is asked
        for a cell that is not pointwise.
    """
    _check(state, x, R, segment_ids, residuals, implementation)
    traced = _trace(cell, R.shape[2], state, implementation)
    if traced is None:
        with running("recurrence", "reference"):
            return recurrence_reference(cell, state, x, R, segment_ids=segment_ids)
    flat = x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])
    return _run(traced, state, flat, None, None, R, segment_ids, residuals)


def recurrence_with_projection(
    cell: Callable,
    state: Any,
    xs: Float[Array, "*B T D"],
    kernel: Float[Array, "D GF"],
    bias: Float[Array, " GF"],
    R: Float[Array, "N H G H"],
    *,
    segment_ids: SegmentIds | None = None,
    residuals: str = "activations",
    implementation: str = "auto",
) -> tuple[Any, Float[Array, "*B T F"]]:
    """``recurrence(cell, state, project(xs, kernel, bias, G), R)``; the projection never exists for the whole sequence.

    Takes, returns and raises what ``recurrence`` does; ``kernel`` and ``bias`` hold the gates side by side.
    """
    if R.ndim != 4 or kernel.shape != (xs.shape[-1], bias.shape[0]) or bias.shape[0] % R.shape[2]:
        raise ValueError(
            f"kernel {kernel.shape} ([D, G F]), bias {bias.shape} ([G F]) and R {R.shape} ([N, H, G, H]) do not fit "
            f"xs of shape {xs.shape} ([*B, T, D]) and one another"
        )
    gates = R.shape[2]
    shape = (*xs.shape[:-1], gates, bias.shape[0] // gates)
    _check(state, jax.ShapeDtypeStruct(shape, xs.dtype), R, segment_ids, residuals, implementation)
    traced = _trace(cell, gates, state, implementation)
    if traced is None:
        x = project(xs, kernel, bias, gates)
        return recurrence(cell, state, x, R, segment_ids=segment_ids, implementation="reference")
    return _run(traced, state, xs, kernel, bias, R, segment_ids, residuals)


def project(
    xs: Float[Array, "*B T D"], kernel: Float[Array, "D GF"], bias: Float[Array, " GF"], gates: int
) -> Float[Array, "*B T {gates} F"]:
    """``xs @ kernel + bias`` for all gates."""
    out = xs @ kernel
    return (out + jnp.broadcast_to(bias, out.shape)).reshape(*xs.shape[:-1], gates, bias.shape[0] // gates)


def recurrence_reference(
    cell: Callable,
    state: Any,
    x: Float[Array, "*B T G F"],
    R: Float[Array, "N H G H"],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Any, Float[Array, "*B T F"]]:
    """``recurrence`` as it is written on paper: the oracle for values and gradients."""
    step_of_batch = _over_batch(cell, state[0].ndim - 1)

    def step(state: Any, x_t: Float[Array, "*B G F"]) -> Any:
        gates = tuple(x_t[..., g, :].astype(state[0].dtype) for g in range(x.shape[-2]))
        return step_of_batch(state, gates, _recur(state[0], R))

    return plain_recurrence(step, state, x, segment_ids=segment_ids, time_axis=-3)


def plain_recurrence(
    step: Callable[[Any, Any], Any],
    state: Any,
    x: Float[Array, "..."],
    *,
    segment_ids: SegmentIds | None = None,
    time_axis: int = -2,
) -> tuple[Any, Float[Array, "*B T F"]]:
    """``state_t = step(state_{t-1}, x_t)`` by ``lax.scan``, for cells that are not pointwise in ``h R``."""
    marks = jax.tree.map(lambda m: jnp.moveaxis(m, -1, 0), _marks(segment_ids))

    def body(state: Any, inputs: tuple) -> tuple[Any, Any]:
        x_t, mark = inputs
        state = _begin(state, mark)
        state = _hold(step(state, x_t), state, mark)
        return state, state[0]

    state, hs = lax.scan(body, state, (jnp.moveaxis(x, time_axis, 0), marks))
    return state, jnp.moveaxis(hs, 0, -2).astype(x.dtype)


def _check(state: Any, x: Any, R: Array, segment_ids: Any, residuals: str, implementation: str) -> None:
    if R.ndim != 4:
        raise ValueError(f"R of shape {R.shape} is not [N, H, G, H]")
    segments.check(segment_ids, x.shape[:-2])
    heads, size, gates, out = R.shape
    if size != out or heads * size != x.shape[-1] or gates != x.shape[-2]:
        raise ValueError(
            f"R of shape {R.shape} ([N, H, G, H]) does not fit x of shape {x.shape} ([*B, T, G, F]): "
            f"F = N * H and G must agree"
        )
    for leaf in jax.tree.leaves(state):
        if leaf.shape != (*x.shape[:-3], x.shape[-1]):
            needed = (*x.shape[:-3], x.shape[-1])
            raise ValueError(f"state of shape {leaf.shape}; x of shape {x.shape} needs {needed}")
    if residuals not in RESIDUALS:
        raise ValueError(f"residuals={residuals!r}; known: {', '.join(RESIDUALS)}")
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"implementation={implementation!r}; known: {', '.join(IMPLEMENTATIONS)}")


class _Traced:
    """A cell that was traced for a row; what it reads that is being transformed is its first argument.

    So its own parameters, bound by Partial or merely closed over, get gradients.
    """

    def __init__(self, closed: Any, structure: Any) -> None:
        self.jaxpr, self.structure = closed.jaxpr, structure
        self.constants = [None if isinstance(c, jax.core.Tracer) else c for c in closed.consts]

    def __call__(self, own: list[Array], *inputs: Any) -> Any:
        rest = iter(own)
        constants = [next(rest) if c is None else c for c in self.constants]
        out = jaxpr_as_fun(ClosedJaxpr(self.jaxpr, constants))(*jax.tree.leaves(inputs))
        return jax.tree.unflatten(self.structure, out)


def _trace(cell: Callable, gates: int, state: Any, implementation: str) -> Partial | None:
    """The cell for the fast form, or None: its units see one another, say, and it takes the plain scan."""
    if implementation == "reference":
        return None
    row = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape[-1:], s.dtype), state)
    gate = (row[0],) * gates
    closed, out = jax.make_jaxpr(lambda s, x, r: cell(s, x, r), return_shape=True)(row, gate, gate)
    own = [c for c in closed.consts if isinstance(c, jax.core.Tracer)]
    reason = not_pointwise(closed.jaxpr)
    if len({s.dtype for s in jax.tree.leaves(state)}) > 1:
        reason = "states of several dtypes"
    if not all(jnp.issubdtype(p.dtype, jnp.inexact) for p in own):
        reason = "parameters that are no floats"
    if reason is None:
        return Partial(_Traced(closed, jax.tree.structure(out)), own)
    if implementation == "fused":
        raise ValueError(f"implementation='fused' needs a pointwise cell of floats, but this one uses {reason}")
    return None


def _marks(segment_ids: SegmentIds | None) -> _Marks:
    if segment_ids is None:
        return _Marks(None, None)
    return _Marks(segments.starts(segment_ids, segments.no_ids(segment_ids)), segments.is_real(segment_ids))


def _begin(state: Any, mark: _Marks) -> Any:
    if mark.start is None:
        return state
    start = mark.start[..., None]
    return jax.tree.map(lambda s: jnp.where(start, jnp.zeros_like(s), s), state)


def _hold(new: Any, old: Any, mark: _Marks) -> Any:
    if mark.real is None:
        return new
    real = mark.real[..., None]
    return jax.tree.map(lambda n, o: jnp.where(real, n, o), new, old)


def _split_gates(x: Float[Array, "*A G F"]) -> tuple[Float[Array, "*A F"], ...]:
    """One array a gate, by the operation whose transpose puts them together again in one pass."""
    return tuple(jnp.squeeze(part, -2) for part in lax.split(x, (1,) * x.shape[-2], axis=x.ndim - 2))


def _recur(h: Float[Array, "*B F"], R: Float[Array, "N H G H"]) -> tuple[Float[Array, "*B F"], ...]:
    """``h @ R``, one product a gate: separate buffers keep the cell's loops simple, and the products side by side."""
    heads, size, _, _ = R.shape
    low = h.astype(R.dtype)
    blocks = _split_gates(R)
    if heads == 1:
        return tuple((low @ R_g[0]).astype(h.dtype) for R_g in blocks)
    split = low.reshape(*low.shape[:-1], heads, size)
    return tuple(jnp.einsum("...nh,nhk->...nk", split, R_g).reshape(h.shape).astype(h.dtype) for R_g in blocks)


def _over_batch(cell: Callable, batch_rank: int) -> Callable:
    """The cell over ``[*B, F]`` arrays, its own parameters (inside a Partial) shared."""
    for _ in range(batch_rank):
        cell = jax.vmap(cell)
    return cell


def _run(
    cell: Partial,
    state: Any,
    xs: Float[Array, "*B T D"],
    kernel: Array | None,
    bias: Array | None,
    R: Array,
    segment_ids: SegmentIds | None,
    residuals: str,
) -> tuple[Any, Float[Array, "*B T F"]]:
    """The fast form, with one batch axis."""
    own, structure = jax.tree.flatten(cell)
    batch, (steps, width) = xs.shape[:-2], xs.shape[-2:]
    size = math.prod(batch)

    def one_axis(a: Array, *rest: int) -> Array:
        return a.reshape(size, *rest)

    marks = () if segment_ids is None else tuple(one_axis(m, steps) for m in _marks(segment_ids))
    with running("recurrence", "fused"):
        last, ys = fused_recurrence(
            structure,
            Weights(tuple(own), kernel, bias, R),
            Rows(one_axis(xs, steps, width), *marks),
            jax.tree.map(lambda s: one_axis(s, s.shape[-1]), state),
            again=residuals == "chunks",
        )
    ys = ys.reshape(*batch, steps, ys.shape[-1])
    return jax.tree.map(lambda s: s.reshape(*batch, s.shape[-1]), last), ys.astype(xs.dtype)
