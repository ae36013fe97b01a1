"""Nonlinear recurrence over a pointwise cell, with a gradient that keeps the weights out of the loop.

``jax.grad`` of a ``lax.scan`` carries the gradient of the recurrent matrix through every reverse step. Here the
rule is a JVP, in which the tangent of R enters once, as one product ``h_prev @ dR`` over the whole sequence ahead of
a linear scan; JAX transposes that into a reverse scan which carries the state's cotangent alone, followed by one
weight product. Forward mode, ``jacfwd`` and second derivatives stay open.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from jaxseq.ops import segments
from jaxseq.ops.rows import rows_product
from jaxseq.typing import Array, Bool, Float, SegmentIds

IMPLEMENTATIONS = ("auto", "fused", "reference")
RESIDUALS = ("activations", "chunks")


class _Marks(NamedTuple):
    """Where documents begin and what is real, time first; both None without segment ids."""

    start: Bool[Array, "T *B"] | None
    real: Bool[Array, "T *B"] | None


def recurrence(
    cell: Callable,
    x: Float[Array, "*B T G F"],
    R: Float[Array, "N H G H"],
    state: Any,
    *,
    segment_ids: SegmentIds | None = None,
    residuals: str = "activations",
    implementation: str = "auto",
) -> tuple[Any, Float[Array, "*B T F"]]:
    """Runs ``state_t = cell(x_t, h_{t-1} R, state_{t-1})`` along time; returns the last state and all ``h_t``.

    Args:
      cell: a pointwise equation ``cell(x, r, state) -> state`` (see ``jaxseq.ops.cells``), or a
        ``jax.tree_util.Partial`` of one whose first argument is the cell's own parameters (their gradient is given).
      x: the input's projection for each gate, bias included: one matrix product, done before.
      R: the recurrent matrix, block-diagonal over N heads of H units each (one head: dense), for each gate.
      state: a NamedTuple of ``[*B, F]`` arrays; its first field is ``h``. Kept in its own dtype (float32 or wider).
      segment_ids: 0 is padding (the state stands still), a change of id begins again from zeros.
      residuals: what is kept for the way back: ``"activations"`` (the cell's transcendental functions and inputs,
        the fastest) or ``"chunks"`` (about ``2 √T`` states, everything else computed again: long sequences).
      implementation: ``"fused"`` is this module's gradient, ``"reference"`` the plain scan; ``"auto"`` takes the first.

    Raises:
      ValueError: the shapes of ``x``, ``R`` and ``state`` do not agree, or an option is unknown.
    """
    _check(x, R, state, residuals, implementation)
    if implementation == "reference":
        return recurrence_reference(cell, x, R, state, segment_ids=segment_ids)
    if not isinstance(cell, Partial):
        cell = Partial(cell)
    marks = _marks(segment_ids)
    time_major = _split_gates(jnp.moveaxis(x, -3, 0))
    run = _in_chunks if residuals == "chunks" else _run
    parameters, structure = jax.tree.flatten(cell)
    state, hs = run(structure, tuple(parameters), time_major, R, state, marks)
    return state, jnp.moveaxis(hs, 0, -2).astype(x.dtype)


def project(
    xs: Float[Array, "*B T D"], kernel: Float[Array, "D GF"], bias: Float[Array, " GF"], gates: int
) -> Float[Array, "*B T {gates} F"]:
    """``xs @ kernel + bias`` for all gates: products over the whole sequence, ahead of ``recurrence``.

    They are made time first and gate by gate, as the loop will read them: of input and projection the input is
    the smaller one to turn round.
    """
    time_major = jnp.moveaxis(xs, -2, 0)
    rows = time_major.reshape(-1, xs.shape[-1])
    kernels, biases = _split_gates(kernel.reshape(-1, gates, bias.size // gates)), _split_gates(bias.reshape(gates, -1))
    out = [rows_product(rows, k) + b[None] for k, b in zip(kernels, biases, strict=True)]
    out = [projection.reshape(*time_major.shape[:-1], bias.size // gates) for projection in out]
    return jnp.moveaxis(jnp.stack(out, axis=-2), 0, -3)


def recurrence_reference(
    cell: Callable,
    x: Float[Array, "*B T G F"],
    R: Float[Array, "N H G H"],
    state: Any,
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Any, Float[Array, "*B T F"]]:
    """``recurrence`` as it is written on paper: the oracle for values and gradients."""
    step_of_batch = _over_batch(cell, state[0].ndim - 1)

    def step(state: Any, x_t: Float[Array, "*B G F"]) -> Any:
        gates = tuple(x_t[..., g, :].astype(state[0].dtype) for g in range(x.shape[-2]))
        return step_of_batch(gates, _recur(state[0], R), state)

    return plain_recurrence(step, x, state, segment_ids=segment_ids, time_axis=-3)


def plain_recurrence(
    step: Callable[[Any, Any], Any],
    x: Float[Array, "..."],
    state: Any,
    *,
    segment_ids: SegmentIds | None = None,
    time_axis: int = -2,
) -> tuple[Any, Float[Array, "*B T F"]]:
    """``state_t = step(state_{t-1}, x_t)`` by ``lax.scan``, for cells that are not pointwise in ``h R``."""
    marks = _marks(segment_ids)

    def body(state: Any, inputs: tuple) -> tuple[Any, Any]:
        x_t, mark = inputs
        state = _begin(state, mark)
        state = _hold(step(state, x_t), state, mark)
        return state, state[0]

    state, hs = lax.scan(body, state, (jnp.moveaxis(x, time_axis, 0), marks))
    return state, jnp.moveaxis(hs, 0, -2).astype(x.dtype)


def _check(x: Array, R: Array, state: Any, residuals: str, implementation: str) -> None:
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


def _marks(segment_ids: SegmentIds | None) -> _Marks:
    if segment_ids is None:
        return _Marks(None, None)
    start = segments.starts(segment_ids, segments.no_ids(segment_ids))
    return _Marks(jnp.moveaxis(start, -1, 0), jnp.moveaxis(segments.is_real(segment_ids), -1, 0))


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


# The cell's transcendental functions are worth keeping; sums and products are cheaper to compute again than to store.
_KEPT = {"tanh", "logistic", "exp", "log", "log1p", "expm1", "erf", "sqrt", "rsqrt", "sin", "cos", "pow"}


def _worth_keeping(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in _KEPT


def _reads_sum(cell: Callable, x: tuple, state: Any) -> tuple[bool, ...]:
    """For each gate: does the cell read ``x_g + r_g`` and neither of them otherwise? Then their cotangent is one."""
    row = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[-1:], a.dtype), state)
    gates = tuple(jax.ShapeDtypeStruct(g.shape[-1:], row[0].dtype) for g in x)
    jaxpr = jax.make_jaxpr(lambda x, r, s: cell(x, r, s))(gates, gates, row).jaxpr
    count = len(gates)

    def readers(variable: Any) -> list[int]:
        return [i for i, equation in enumerate(jaxpr.eqns) for v in equation.invars if v is variable]

    def one_sum(g: int) -> bool:
        x_g, r_g = jaxpr.invars[g], jaxpr.invars[count + g]
        if any(out is x_g or out is r_g for out in jaxpr.outvars):
            return False
        by_x, by_r = readers(x_g), readers(r_g)
        return len(by_x) == 1 and by_x == by_r and jaxpr.eqns[by_x[0]].primitive.name == "add"

    return tuple(one_sum(g) for g in range(count))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _run(
    structure: Any, parameters: tuple, x: tuple, R: Array, state: Any, marks: _Marks
) -> tuple[Any, Float[Array, "T *B F"]]:
    cell = _over_batch(jax.tree.unflatten(structure, parameters), state[0].ndim - 1)

    def body(state: Any, inputs: tuple) -> tuple[Any, Array]:
        x_t, mark = inputs
        state = _begin(state, mark)
        x_t = tuple(g.astype(state[0].dtype) for g in x_t)
        state = _hold(cell(x_t, _recur(state[0], R), state), state, mark)
        return state, state[0]

    return lax.scan(body, state, (x, marks))


@_run.defjvp
def _run_jvp(structure: Any, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    parameters, x, R, state, marks = primals
    d_parameters, d_x, d_R, d_state, _ = tangents
    dtype = state[0].dtype
    summed = _reads_sum(jax.tree.unflatten(structure, parameters), x, state)

    def equation(parameters: tuple, z: tuple, r: tuple, state: Any, mark: _Marks) -> Any:
        """One step; z is x + r for a summed gate and x for any other, r holds the others' products alone."""
        cell = _over_batch(jax.tree.unflatten(structure, parameters), state[0].ndim - 1)
        others = iter(r)
        r = tuple(jnp.zeros_like(z_g) if s else next(others) for s, z_g in zip(summed, z, strict=True))
        state = _begin(state, mark)
        return _hold(cell(z, r, state), state, mark)

    equation = jax.checkpoint(equation, policy=_worth_keeping, prevent_cse=False)
    linear_structure = None

    def forward(state: Any, inputs: tuple) -> tuple[Any, tuple]:
        nonlocal linear_structure
        x_t, mark = inputs
        h = _begin(state, mark)[0]
        z, r = _joined(summed, tuple(g.astype(dtype) for g in x_t), _recur(h, R))
        new, linear = jax.linearize(lambda p, z, r, s: equation(p, z, r, s, mark), parameters, z, r, state)
        kept, linear_structure = jax.tree.flatten(linear)
        return new, (new[0], h, kept)

    last, (hs, h_before, kept) = lax.scan(forward, state, (x, marks))
    d_z, d_r = _joined(summed, tuple(g.astype(dtype) for g in d_x), _weight_tangent(h_before, d_R))

    def tangent(d_state: Any, inputs: tuple) -> tuple[Any, Array]:
        d_z_t, d_r_t, kept_t, mark = inputs
        linear = jax.tree.unflatten(linear_structure, kept_t)
        into_z, into_r = _joined(summed, d_z_t, _recur(_begin(d_state, mark)[0], R))
        into_r = tuple(map(jnp.add, into_r, d_r_t))
        d_state = linear(d_parameters, into_z, into_r, d_state)
        return d_state, d_state[0]

    d_last, d_hs = lax.scan(tangent, d_state, (d_z, d_r, kept, marks))
    return (last, hs), (d_last, d_hs)


def _joined(summed: tuple[bool, ...], x: tuple, r: tuple) -> tuple[tuple, tuple]:
    """``x + r`` for a summed gate and ``x`` for any other; then the others' ``r``."""
    z = tuple(x_g + r_g if s else x_g for s, x_g, r_g in zip(summed, x, r, strict=True))
    return z, tuple(r_g for s, r_g in zip(summed, r, strict=True) if not s)


def _weight_tangent(h: Float[Array, "T *B F"], d_R: Float[Array, "N H G H"]) -> tuple[Float[Array, "T *B F"], ...]:
    """``h_prev @ dR`` over the whole sequence; its transpose is the one weight product of the gradient."""
    heads, size, _, _ = d_R.shape
    if heads > 1:
        return _recur(h, d_R)
    rows = h.reshape(-1, size).astype(d_R.dtype)
    return tuple(rows_product(rows, block[0]).reshape(h.shape).astype(h.dtype) for block in _split_gates(d_R))


def _in_chunks(
    structure: Any, parameters: tuple, x: tuple, R: Array, state: Any, marks: _Marks
) -> tuple[Any, Float[Array, "T *B F"]]:
    """The same over chunks of about √T steps, each computed again on the way back."""
    steps = x[0].shape[0]
    length = max(1, round(steps**0.5))
    whole = steps // length * length
    run = jax.checkpoint(functools.partial(_run, structure), prevent_cse=False)

    def body(state: Any, inputs: tuple) -> tuple[Any, Array]:
        return run(parameters, inputs[0], R, state, inputs[1])

    head = jax.tree.map(lambda a: a[:whole].reshape(whole // length, length, *a.shape[1:]), (x, marks))
    tail = jax.tree.map(lambda a: a[whole:], (x, marks))
    state, hs = lax.scan(body, state, head)
    state, rest = body(state, tail)
    return state, jnp.concatenate([hs.reshape(whole, *hs.shape[2:]), rest])
