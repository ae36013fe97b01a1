"""The fused implementation of ``recurrence``: chunks of time, the projection inside them, a hand-written gradient.

Forward, the inputs of a chunk are projected by one product, then the cell runs along it. The cell's activations and the
states are stored. Backward, the Jacobians of a whole chunk are computed at once (the cell is pointwise: one number a
unit). The reverse loop is left with sums of products and one matrix product a step; the gradients of the chunk's inputs
and of the weights are products after it. So neither the projection nor the gates' cotangents are ever in memory for the
whole sequence. A cell that mixes units has no such Jacobian: its inputs are stored, and the reverse loop differentiates
it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxseq.ops import segments
from jaxseq.ops.batched_primitive import Operands, batched_call, batched_linear_call
from jaxseq.ops.recurrence.pointwise import Step, trace_step, without_h
from jaxseq.ops.row_groups import scan_rows
from jaxseq.ops.rows import sum_rows
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float


class Weights(NamedTuple):
    """The differentiable arrays that all steps and batch elements share."""

    cell: tuple
    """The cell's own parameters, the leaves of its Partial."""
    kernel: Float[Array, "D GF"] | None
    """None if the inputs are projected already."""
    bias: Float[Array, " GF"] | None
    R: Float[Array, "N H G H"] | Float[Array, "1 P G F"]
    output: Float[Array, "F P"] | None
    """The output projection, if there is one: ``h`` is the cell's h times this, ``[B, P]``."""


class Rows(NamedTuple):
    """Batch-first arrays: inputs, and the masks of document starts and real positions (both or neither)."""

    xs: Float[Array, "B T D"]
    start: Any = None
    real: Any = None


class Static(NamedTuple):
    """The static arguments: the pytrees of the cell and of its state, the number of gates, the length of a chunk."""

    structure: Any
    state: Any
    gates: int
    length: int
    recompute: bool
    """Store the first state of each chunk only, and recompute the chunk in the backward pass."""
    constant_weights: bool = False
    """The derivative is by the inputs and the state alone: no tangents or gradients of the weights."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def fused(static: Static, weights: Weights, rows: Rows, state: tuple) -> tuple[tuple, Array]:
    """The last state and all ``h_t``, ``[B, F]`` and ``[B, T, F]``."""
    out = batched_call(_forward, static, Operands(weights, rows, state))
    return out.steps[0], out.rows


@functools.partial(fused.defjvp, symbolic_zeros=True)
def _fused_jvp(static: Static, primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    weights, rows, state = primals
    d_weights, d_xs, d_state = tangents[0], tangents[1].xs, tangents[2]
    constant = all(isinstance(d, SymbolicZero) for d in jax.tree.leaves(d_weights))
    d_xs, d_state = jax.tree.map(_instantiate, (d_xs, d_state))
    d_weights = None if constant else jax.tree.map(_instantiate, d_weights)
    out = batched_call(_forward, static, Operands(weights, rows, state))
    last, kept = out.steps
    fixed = Operands(weights, (rows, out.rows), (state, kept))
    static = static._replace(constant_weights=constant)
    linear = Operands(d_weights, d_xs, d_state)
    d_out = batched_linear_call(_tangent, _pullback, static, fixed, linear, map_linear=True)
    return (last, out.rows), (d_out.steps, d_out.rows)


def _instantiate(tangent: Any) -> Any:
    return jnp.zeros(tangent.shape, tangent.dtype) if isinstance(tangent, SymbolicZero) else tangent


class _Chunk(NamedTuple):
    """The values of a chunk stored by the forward pass, time first; only ``first`` if the chunk is recomputed."""

    first: tuple
    activations: tuple | None
    inputs: tuple | None
    """The other inputs of the Jacobian: gates, products, parts of the state before a step."""
    projected: Array | None = None
    """With an output projection, the cell's h, before it."""


def _step(static: Static, weights: Weights, dtype: Any) -> Step:
    heads, _, _, size = weights.R.shape
    row = jax.ShapeDtypeStruct((heads * size,), dtype)
    cell = tuple(jax.ShapeDtypeStruct(p.shape, p.dtype, weak_type=jax.typeof(p).weak_type) for p in weights.cell)
    config: Any = jax.config
    context = config.jax_enable_x64, config.jax_numpy_dtype_promotion, jax.sharding.get_abstract_mesh()
    return _trace_step(static.structure, static.state, static.gates, row, cell, context)


@functools.lru_cache(maxsize=64)
def _trace_step(structure: Any, state: Any, gates: int, row: Any, cell: tuple, context: tuple) -> Step:
    """The step of a cell, traced once for the forward and the backward pass; ``context`` is what tracing depends on."""
    rebuild = functools.partial(jax.tree.unflatten, structure)
    return trace_step(rebuild, cell, gates, jax.tree.unflatten(state, [row] * state.num_leaves))


def _slice_chunk(x: Array | None, at: Any, length: int) -> Any:
    """``[B, T, ...]`` to ``[length, B, ...]``, from step ``at`` on."""
    return None if x is None else jnp.swapaxes(lax.dynamic_slice_in_dim(x, at, length, axis=1), 0, 1)


def _recurrent_product(h: Float[Array, "B P"], R: Float[Array, "N H G K"]) -> Float[Array, "B GF"]:
    """``h R`` by one product, gate by gate."""
    heads, size, gates, out = R.shape
    low = h.astype(R.dtype)
    if heads == 1:
        return (low @ R.reshape(size, gates * out)).astype(h.dtype)
    r = jnp.einsum("bnh,nhgk->bgnk", low.reshape(h.shape[0], heads, size), R)
    return r.reshape(h.shape[0], gates * heads * out).astype(h.dtype)


def _recurrent_product_transpose(d_r: Float[Array, "B GF"], R: Array) -> Float[Array, "B P"]:
    """The transpose of ``_recurrent_product`` in h, with R as ``_transpose_recurrent`` returns it."""
    if R.ndim == 2:
        return (d_r.astype(R.dtype) @ R).astype(d_r.dtype)
    heads, gates, size, _ = R.shape
    low = d_r.astype(R.dtype).reshape(d_r.shape[0], gates, heads, size)
    return jnp.einsum("bgnk,ngkh->bnh", low, R).reshape(d_r.shape[0], heads * size).astype(d_r.dtype)


def _transpose_recurrent(R: Float[Array, "N H G K"]) -> Array:
    heads, size, gates, out = R.shape
    return R.reshape(size, gates * out).T if heads == 1 else jnp.moveaxis(R, 1, 3)


def _run_chunk(step: Step, weights: Weights, rows: Rows, state: tuple, at: Any, length: int) -> tuple:
    """The state after a chunk, and for each step: the state, and the parts of ``_Chunk`` after the first."""
    gates, dtype = len(step.summed), state[0].dtype
    z = _slice_chunk(rows.xs, at, length)
    if weights.kernel is not None:
        z = z @ weights.kernel
    bias = None if weights.bias is None else weights.bias.astype(dtype)[None]

    def body(state: tuple, inputs: tuple) -> tuple:
        z_t, start, real = inputs
        old = segments.reset(state, start)
        all_r = _recurrent_product(old[0], weights.R)
        all_x = z_t.astype(dtype) if bias is None else z_t.astype(dtype) + bias
        known = _joint_activations(step, all_x, all_r)
        x, r = (jnp.split(a, gates, axis=-1) for a in (all_x, all_r))
        z = [a + b if s else a for a, b, s in zip(x, r, step.summed, strict=True)]
        read = (*z, *(r[g] for g in step.others), *_read_by_cell(weights, old))
        new, activations = step(weights.cell, read, known)
        cell_h = None
        if weights.output is not None:
            cell_h = new[0]
            new = ((cell_h.astype(weights.output.dtype) @ weights.output).astype(dtype), *new[1:])
        new = segments.hold(new, old, real)
        others = len(read) - len(old)
        kept = tuple(a for a, n in zip(read[:others], step.needed, strict=False) if n)
        return new, (new, activations, kept, cell_h)

    return scan_rows(body, state, (z, _slice_chunk(rows.start, at, length), _slice_chunk(rows.real, at, length)))


def _joint_activations(step: Step, x: Float[Array, "B GF"], r: Float[Array, "B GF"]) -> tuple | None:
    """The activations of the joint gates by one function, as ``known`` for the step; None without such gates."""
    if step.joint is None:
        return None
    first, factors, kept = step.joint
    width = x.shape[-1] // len(step.summed)
    rows = slice(first * width, (first + len(factors)) * width)
    joint = jnp.tanh((x[:, rows] + r[:, rows]) * jnp.repeat(jnp.asarray(factors, x.dtype), width)[None])
    values = dict(zip(kept, jnp.split(joint, len(factors), axis=-1), strict=True))
    return tuple((None, values[i]) if i in values else None for i in range(len(step.kept)))


def _read_by_cell(weights: Weights, state: tuple) -> tuple:
    """The state as the cell reads it: a cell with an output projection does not read h; another part replaces it."""
    return state if weights.output is None else without_h(state)


def _scan_chunks(static: Static, steps: int, body: Callable, carry: Any, extra: Any, reverse: bool = False) -> tuple:
    """``carry, out = body(carry, first step, length, extra)`` for all whole chunks and for the remainder."""
    count, rest = divmod(steps, static.length)
    main, tail = (None, None) if extra is None else extra
    outs: list = [None, None]

    def run_main(carry: Any) -> Any:
        if count:
            starts = jnp.arange(count) * static.length
            one = lambda c, e: body(c, e[0], static.length, e[1])  # noqa: E731
            carry, outs[0] = lax.scan(one, carry, (starts, main), reverse=reverse)
        return carry

    def run_tail(carry: Any) -> Any:
        if rest:
            carry, outs[1] = body(carry, count * static.length, rest, tail)
        return carry

    carry = run_main(run_tail(carry)) if reverse else run_tail(run_main(carry))
    return carry, tuple(outs)


def _concatenate_chunks(parts: tuple, like: tuple[int, ...], dtype: Any) -> Array:
    """Batch-first chunks ``[n, B, K, F]`` and ``[B, k, F]`` as one ``[B, T, F]``."""
    main, tail = parts
    found = [] if main is None else [jnp.swapaxes(main, 0, 1).reshape(like[0], main.shape[0] * main.shape[2], like[-1])]
    found += [] if tail is None else [tail]
    if not found:
        return jnp.zeros(like, dtype)
    return found[0] if len(found) == 1 else jnp.concatenate(found, axis=1)


def _forward(static: Static, operands: Operands) -> Operands:
    weights, rows, state = operands
    step = _step(static, weights, state[0].dtype)
    batch, steps = rows.xs.shape[:2]

    def body(state: tuple, at: Any, length: int, extra: Any) -> tuple:
        last, (states, activations, inputs, cell_h) = _run_chunk(step, weights, rows, state, at, length)
        ys = jnp.swapaxes(states[0], 0, 1)
        if static.recompute:
            return last, (ys, _Chunk(state, None, None))
        return last, (ys, _Chunk(state, activations, (states[1:], inputs), cell_h))

    last, parts = _scan_chunks(static, steps, body, state, None)
    ys, kept = (tuple(None if p is None else p[i] for p in parts) for i in range(2))
    return Operands(None, _concatenate_chunks(ys, (batch, steps, state[0].shape[-1]), state[0].dtype), (last, kept))


def _pullback(static: Static, fixed: Operands, cotangents: list) -> Operands:
    weights, (rows, ys), (state, kept) = fixed
    step = _step(static, weights, state[0].dtype)
    d_ys, *d_last = cotangents
    steps, R_transposed = rows.xs.shape[1], _transpose_recurrent(weights.R)
    kernel_back = None if weights.kernel is None else weights.kernel.T

    def body(carry: tuple, at: Any, length: int, kept: _Chunk) -> tuple:
        d_state, d_weights = carry
        if static.recompute:
            _, (states, activations, inputs, cell_h) = _run_chunk(step, weights, rows, kept.first, at, length)
            states = states[1:]
        else:
            activations, (states, inputs), cell_h = kept.activations, kept.inputs, kept.projected
        start, real = _slice_chunk(rows.start, at, length), _slice_chunk(rows.real, at, length)
        states = (_slice_chunk(ys, at, length), *states)
        before = tuple(jnp.concatenate([a[None], s[:-1]]) for a, s in zip(kept.first, states, strict=True))
        before = segments.reset(before, start)
        read = _fill_inputs(step, inputs, _read_by_cell(weights, before))
        derivatives = step.derivatives(weights.cell, read, activations)
        along = _slice_chunk(d_ys, at, length), start, real
        recurrent = R_transposed, weights.output
        d_state, (d_r, d_x, d_new, d_h) = _reverse(step, weights.cell, derivatives, recurrent, d_state, along)
        low = weights.R.dtype
        d_cell = step.pull_parameters(weights.cell, read, activations, d_new) if weights.cell else ()
        d_z = d_x.astype(rows.xs.dtype)
        x = _slice_chunk(rows.xs, at, length)
        d_xs = jnp.swapaxes(d_z if kernel_back is None else d_z @ kernel_back, 0, 1)
        if static.constant_weights:
            return (d_state, None), d_xs
        found = Weights(
            d_cell,
            None if weights.kernel is None else _transposed_product(x, d_z),
            None if weights.bias is None else sum_rows(d_x),
            _weight_gradient(before[0].astype(low), d_r.astype(low), weights.R),
            None if cell_h is None else _weight_gradient(cell_h.astype(low), d_h.astype(low), weights.output),
        )
        d_weights = jax.tree.map(lambda total, part: total + part.astype(total.dtype), d_weights, found)
        return (d_state, d_weights), d_xs

    varied = None if static.constant_weights else weights
    begin = tuple(d_last), jax.tree.map(lambda w: jnp.zeros(w.shape, at_least_float32(w.dtype)), varied)
    (d_state, d_weights), parts = _scan_chunks(static, steps, body, begin, kept, reverse=True)
    d_weights = jax.tree.map(lambda w, d: d.astype(w.dtype), varied, d_weights)
    return Operands(d_weights, _concatenate_chunks(parts, rows.xs.shape, rows.xs.dtype), d_state)


def _fill_inputs(step: Step, inputs: tuple, before: tuple) -> list[Array]:
    """All inputs of the step, with zeros for those that were not stored because nothing needs them."""
    kept = iter(inputs)
    count = len(step.reads) - len(before)
    return [next(kept) if n else jnp.zeros_like(before[0]) for n in step.needed[:count]] + list(before)


def _reverse(
    step: Step, parameters: tuple, derivatives: tuple, recurrent: tuple, d_state: tuple, along: tuple
) -> tuple:
    """The reverse loop of a chunk: the state's cotangent; of each step those of r, x, the cell's new state and h."""
    gates, total = len(step.summed), len(step.reads)
    R_transposed, output = recurrent

    def body(d_state: tuple, inputs: tuple) -> tuple:
        (d_y, start, real), derivatives = inputs
        d_state = (d_state[0] + d_y.astype(d_state[0].dtype), *d_state[1:])
        none = tuple(jnp.zeros_like(d) for d in d_state)
        d_new, d_held = segments.hold(d_state, none, real), segments.hold(none, d_state, real)
        d_h = None
        if output is not None:
            d_h = d_new[0]
            d_new = ((d_h.astype(output.dtype) @ output.T).astype(d_h.dtype), *d_new[1:])
        d_in = step.pull(parameters, derivatives, d_new)
        d_z, d_other, d_old = d_in[:gates], iter(d_in[gates:]), d_in[total - len(d_state) :]
        d_r = jnp.concatenate([d if s else next(d_other) for d, s in zip(d_z, step.summed, strict=True)], axis=-1)
        d_recurrent = _recurrent_product_transpose(d_r, R_transposed)
        d_old[0] = d_recurrent if output is not None else d_old[0] + d_recurrent
        d_all = tuple(d_old) if real is None else tuple(map(jnp.add, d_old, d_held))
        return segments.reset(d_all, start), (d_r, tuple(d_z[g] for g in step.others), d_new, d_h)

    result: tuple = scan_rows(body, d_state, (along, derivatives), reverse=True)
    d_state, (d_r, d_alone, d_new, d_h) = result
    if not step.others:
        return d_state, (d_r, d_r, d_new, d_h)
    alone = iter(d_alone)
    parts = zip(jnp.split(d_r, gates, axis=-1), step.summed, strict=True)
    d_x = jnp.concatenate([d if s else next(alone) for d, s in parts], axis=-1)
    return d_state, (d_r, d_x, d_new, d_h)


def _weight_gradient(h: Float[Array, "K B F"], d_r: Float[Array, "K B GF"], R: Array) -> Array:
    if R.ndim == 2 or R.shape[0] == 1:
        return _transposed_product(h, d_r).reshape(R.shape)
    heads, size, gates, _ = R.shape
    h, d_r = h.reshape(*h.shape[:2], heads, size), d_r.reshape(*h.shape[:2], gates, heads, size)
    return jnp.einsum("abnh,abgnk->nhgk", h, d_r, preferred_element_type=at_least_float32(h.dtype))


def _transposed_product(x: Float[Array, "K B D"], y: Float[Array, "K B F"]) -> Float[Array, "D F"]:
    """``xᵀ y`` summed over time and batch, which stay two dimensions: a mesh shards the batch alone."""
    dims = (((0, 1), (0, 1)), ((), ()))
    return lax.dot_general(x, y, dims, preferred_element_type=at_least_float32(x.dtype))


def _tangent(static: Static, fixed: Operands, linear: Operands) -> Operands:
    """Forward mode: one plain scan over the steps, each of which is recomputed."""
    weights, (rows, _), (state, _) = fixed
    d_weights, d_xs, d_state = linear
    step = _step(static, weights, state[0].dtype)

    def one(weights: Weights, xs: Array, state: tuple, start: Array | None, real: Array | None) -> tuple:
        return _run_chunk(step, weights, Rows(xs, start, real), state, 0, 1)[0]

    def body(both: tuple, inputs: tuple) -> tuple:
        x, d_x, start, real = (None if a is None else a[:, None] for a in inputs)
        if static.constant_weights:
            f: Callable = lambda x, s: one(weights, x, s, start, real)  # noqa: E731
            state, d_state = jax.jvp(f, (x, both[0]), (d_x, both[1]))
        else:
            f = lambda w, x, s: one(w, x, s, start, real)  # noqa: E731
            state, d_state = jax.jvp(f, (weights, x, both[0]), (d_weights, d_x, both[1]))
        return (state, d_state), d_state[0]

    along = tuple(None if a is None else jnp.moveaxis(a, 1, 0) for a in (rows.xs, d_xs, rows.start, rows.real))
    result: tuple = lax.scan(body, (state, d_state), along)
    (_, d_last), d_ys = result
    return Operands(None, jnp.moveaxis(d_ys, 0, 1), d_last)
