"""Nonlinear recurrence over a cell: the public functions, their checks and the choice of implementation."""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
from jax.tree_util import Partial

from jaxseq.ops import segments
from jaxseq.ops.implementations import Choice, choose_implementation, implementation_scope, is_symbolic, unavailable
from jaxseq.ops.recurrence.cells import Cell
from jaxseq.ops.recurrence.pipeline import recurrence_across_devices
from jaxseq.ops.recurrence.pointwise import reads_h, trace_cell, without_h
from jaxseq.ops.recurrence.reference import recurrence_reference
from jaxseq.ops.recurrence.run_fused import run_fused
from jaxseq.ops.rows import add_to_rows, multiply_rows
from jaxseq.ops.sequence_axis import find_sequence_axis
from jaxseq.typing import Array, Float, SegmentIds

RecurrenceImplementation = Literal["auto", "fused", "reference"]
Residuals = Literal["activations", "chunks"]


def recurrence(
    cell: Cell,
    state: Any,
    x: Float[Array, "*B T G F"],
    R: Float[Array, "N H G H"] | Float[Array, "1 P G F"],
    *,
    output_projection: Float[Array, "F P"] | None = None,
    segment_ids: SegmentIds | None = None,
    residuals: Residuals = "activations",
    implementation: RecurrenceImplementation = "auto",
) -> tuple[Any, Float[Array, "*B T F"] | Float[Array, "*B T P"]]:
    """Runs ``state_t = cell(state_{t-1}, x_t, h_{t-1} R)`` along time; returns the last state and all ``h_t``.

    The gradient of the fused implementation computes weight gradients as one product a chunk of time, where that of
    ``lax.scan`` adds to them at every step. Forward mode and second derivatives are supported.

    Args:
      cell: the equation of a row (see ``jaxseq.ops.cells``), pointwise for the fastest gradient; or a
        ``jax.tree_util.Partial`` of one whose first argument is the cell's own parameters (they get gradients).
      state: a NamedTuple of ``[*B, F]`` arrays; its first field is ``h``. Kept in its own dtype (float32 or wider).
      x: the input's projection for each gate, bias included.
      R: the recurrent matrix for each gate, block-diagonal over N heads of H units (one head: dense).
      output_projection: with it ``h`` is the cell's own h times this matrix, P wide, for a cell that reads h only
        through ``h R`` and has another part of the state, as an LSTM has c (Sak et al. 2014, arXiv:1402.1128). The
        state's first field is then ``[*B, P]``, and R is dense, ``[1, P, G, F]``.
      segment_ids: padded positions (0) are ignored; a change of id resets the state to zeros.
      residuals: what the forward pass stores for the gradient: ``"activations"`` (the cell's transcendental functions
        and its state: fastest) or ``"chunks"`` (√T states; the rest is recomputed by chunks: for long sequences).
      implementation: ``"fused"``, ``"reference"`` (a plain scan), or ``"auto"``: fused where it can compute the call. A
        cell that is not pointwise (it has a norm, say) is differentiated step by step in the fused form. All run under
        ``jax.shard_map`` and on the devices of an ambient mesh.

    Raises:
      ValueError: the shapes of ``state``, ``x``, ``R`` and ``output_projection`` do not agree, an option is unknown,
        ``"fused"`` is asked for a cell with states of several dtypes or parameters of integers, or an output projection
        for a cell that reads h.
    """
    _check(state, x, R, output_projection, segment_ids, residuals)
    chosen, traced = _choose(cell, state, R.shape[2], x.shape[-3], output_projection, implementation)
    options: dict[str, Any] = {"output_projection": output_projection, "segment_ids": segment_ids}
    if axis := find_sequence_axis(x.shape[-3]):
        run = functools.partial(_run_segment, recurrence, residuals, chosen)
        with implementation_scope("recurrence", "sequence"):
            weights = Partial(cell) if traced is None else traced, (R,), output_projection
            return recurrence_across_devices(run, axis, weights, state, x, segment_ids)
    if chosen == "reference":
        with implementation_scope("recurrence", "reference"):
            return recurrence_reference(cell, state, x, R, **options)
    with implementation_scope("recurrence", "fused"):
        return run_fused(cell, traced, state, x, None, None, R, **options, recompute=residuals == "chunks")


def recurrence_with_projection(
    cell: Cell,
    state: Any,
    xs: Float[Array, "*B T D"],
    kernel: Float[Array, "D GF"],
    bias: Float[Array, " GF"],
    R: Float[Array, "N H G H"] | Float[Array, "1 P G F"],
    *,
    output_projection: Float[Array, "F P"] | None = None,
    segment_ids: SegmentIds | None = None,
    residuals: Residuals = "activations",
    implementation: RecurrenceImplementation = "auto",
) -> tuple[Any, Float[Array, "*B T F"] | Float[Array, "*B T P"]]:
    """``recurrence(cell, state, project(xs, kernel, bias, G), R, ...)``.

    The fused implementation projects the input a chunk of time at a time: the projection of the whole sequence is never
    in memory. Takes, returns and raises what ``recurrence`` does; ``kernel`` and ``bias`` hold the gates side by side.
    """
    if R.ndim != 4 or kernel.shape != (xs.shape[-1], bias.shape[0]) or bias.shape[0] % R.shape[2]:
        raise ValueError(
            f"kernel {kernel.shape} ([D, G F]), bias {bias.shape} ([G F]) and R {R.shape} ([N, H, G, H]) do not fit "
            f"xs of shape {xs.shape} ([*B, T, D]) and one another"
        )
    gates = R.shape[2]
    shape = (*xs.shape[:-1], gates, bias.shape[0] // gates)
    _check(state, jax.ShapeDtypeStruct(shape, xs.dtype), R, output_projection, segment_ids, residuals)
    chosen, traced = _choose(cell, state, gates, xs.shape[-2], output_projection, implementation)
    options: dict[str, Any] = {"output_projection": output_projection, "segment_ids": segment_ids}
    if axis := find_sequence_axis(xs.shape[-2]):
        run = functools.partial(_run_segment, recurrence_with_projection, residuals, chosen)
        with implementation_scope("recurrence", "sequence"):
            weights = Partial(cell) if traced is None else traced, (kernel, bias, R), output_projection
            return recurrence_across_devices(run, axis, weights, state, xs, segment_ids)
    if chosen == "reference":
        x = project(segments.without_padding(xs, segment_ids), kernel, bias, gates)
        with implementation_scope("recurrence", "reference"):
            return recurrence_reference(cell, state, x, R, **options)
    with implementation_scope("recurrence", "fused"):
        return run_fused(cell, traced, state, xs, kernel, bias, R, **options, recompute=residuals == "chunks")


def _run_segment(
    op: Callable, residuals: str, chosen: str, weights: tuple, state: Any, xs: Array, segment_ids: SegmentIds | None
) -> tuple[Any, Array]:
    """The op on the segment of one device; ``weights`` are its cell, the arrays after ``xs``, the output projection."""
    cell, arrays, output_projection = weights
    options = {"residuals": residuals, "implementation": chosen, "segment_ids": segment_ids}
    result: tuple[Any, Array] = op(cell, state, xs, *arrays, output_projection=output_projection, **options)
    return result


def project(
    xs: Float[Array, "*B T D"], kernel: Float[Array, "D GF"], bias: Float[Array, " GF"], gates: int
) -> Float[Array, "*B T {gates} F"]:
    """``xs @ kernel + bias`` for all gates."""
    out = add_to_rows(multiply_rows(xs, kernel), bias)
    return out.reshape(*xs.shape[:-1], gates, bias.shape[0] // gates)


def _choose(
    cell: Cell, state: Any, gates: int, steps: int, output_projection: Array | None, implementation: str
) -> tuple[str, Any]:
    """The implementation, and the traced cell if that is the fused one."""
    traced: Any = None
    reason: str | None = None
    if output_projection is not None:
        state = without_h(state)
        if reads_h(cell, state, gates):
            raise ValueError(f"output_projection of shape {output_projection.shape}: the cell must not read h itself")
    if implementation in ("auto", "fused"):
        traced, reason = trace_cell(cell, state, gates)
    auto = Choice("fused", "the cell is of floats of one dtype")
    if traced is None:
        auto = Choice("reference", f"the cell uses {reason}")
    elif is_symbolic(steps):
        auto = Choice("reference", "the number of steps is free")
    chosen = choose_implementation("recurrence", implementation, RecurrenceImplementation, lambda: auto)
    if chosen == "fused" and traced is None:
        raise unavailable("recurrence", "fused", f"it needs a cell of floats of one dtype, but this one uses {reason}")
    return chosen, traced


def _check(state: Any, x: Any, R: Array, output_projection: Array | None, segment_ids: Any, residuals: str) -> None:
    if R.ndim != 4:
        raise ValueError(f"R of shape {R.shape} is not [N, H, G, H]")
    segments.check("recurrence", segment_ids, x.shape[:-2])
    heads, size, gates, out = R.shape
    batch, features = x.shape[:-3], x.shape[-1]
    first, *others = jax.tree.leaves(state)
    if output_projection is not None:
        wanted = (features, size)
        if heads != 1 or output_projection.shape != wanted or (out, gates) != (features, x.shape[-2]) or not others:
            raise ValueError(
                f"output_projection of shape {output_projection.shape} ([F, P]) needs one head, R of [1, P, G, F], not "
                f"{R.shape}, x of [*B, T, G, F], not {x.shape}, and a state of two parts or more"
            )
    elif size != out or heads * size != features or gates != x.shape[-2]:
        raise ValueError(
            f"R of shape {R.shape} ([N, H, G, H]) does not fit x of shape {x.shape} ([*B, T, G, F]): "
            f"F = N * H and G must agree"
        )
    for leaf, width in ((first, heads * size), *((leaf, features) for leaf in others)):
        if leaf.shape != (*batch, width):
            raise ValueError(f"state of shape {leaf.shape}; x of shape {x.shape} needs {(*batch, width)}")
    if residuals not in get_args(Residuals):
        raise ValueError(f"residuals={residuals!r}; known: {', '.join(get_args(Residuals))}")
