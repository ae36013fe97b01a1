"""The recurrence as a plain ``lax.scan`` over time, for cells of any kind."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun

from jaxseq.ops import segments
from jaxseq.ops.batch_shards import auto_batch_axes, count_shards, shard_leading, vary_alike
from jaxseq.ops.recurrence.cells import Cell
from jaxseq.ops.recurrence.pointwise import without_h
from jaxseq.typing import Array, Float, SegmentIds


def recurrence_reference(
    cell: Cell,
    state: Any,
    x: Float[Array, "*B T G F"],
    R: Float[Array, "N H G H"] | Float[Array, "1 P G F"],
    *,
    output_projection: Float[Array, "F P"] | None = None,
    segment_ids: SegmentIds | None = None,
) -> tuple[Any, Float[Array, "*B T F"] | Float[Array, "*B T P"]]:
    """The equation of ``recurrence``, with the gradient of ``lax.scan``."""
    step_of_batch = _map_over_batch(cell, state[0].ndim - 1)

    def step(state: Any, x_t: Float[Array, "*B G F"]) -> Any:
        gates = tuple(x_t[..., g, :].astype(state[0].dtype) for g in range(x.shape[-2]))
        r = recurrent_product(state[0], R)
        if output_projection is None:
            return step_of_batch(state, gates, r)
        new = step_of_batch(without_h(state), gates, r)
        h = (new[0].astype(output_projection.dtype) @ output_projection).astype(state[0].dtype)
        return jax.tree.unflatten(jax.tree.structure(new), [h, *jax.tree.leaves(new)[1:]])

    return plain_recurrence(step, state, x, segment_ids=segment_ids)


def plain_recurrence(
    step: Callable[[Any, Any], Any],
    state: Any,
    x: Float[Array, "..."],
    *,
    segment_ids: SegmentIds | None = None,
) -> tuple[Any, Float[Array, "*B T F"]]:
    """Runs ``state_t = step(state_{t-1}, x_t)`` by ``lax.scan``; returns the last state and all ``h_t``.

    For cells that are not pointwise in ``h R``. The state is a NamedTuple of ``[*B, F]`` arrays, ``h`` first; ``x`` is
    ``[*B, T, ...]``. Padded positions leave the state as it is; a change of id resets it to zeros.
    """
    state, x, segment_ids = vary_alike((state, x, segment_ids))
    batch = state[0].shape[:-1]
    axes = auto_batch_axes(batch)
    if axes is None or not batch:
        return _scan(step, state, x, segment_ids)
    # One copy of the weights for each device, so that a gradient is summed over the devices after the loop.
    count = count_shards(axes)
    step, weights = _hoist_weights(step, state, x, (batch[0] // count, *batch[1:]))
    weights = shard_leading([jnp.broadcast_to(w, (count, *w.shape)) for w in weights], axes)
    rows = shard_leading(jax.tree.map(lambda a: a.reshape(count, -1, *a.shape[1:]), (state, x, segment_ids)), axes)
    last, ys = _scan(lambda state, x_t: jax.vmap(step)(weights, state, x_t), *rows)
    return jax.tree.map(lambda a: a.reshape(*batch, *a.shape[len(batch) + 1 :]), (last, ys))


def _scan(step: Callable, state: Any, x: Array, segment_ids: SegmentIds | None) -> tuple[Any, Array]:
    axis = state[0].ndim - 1
    x = segments.without_padding(x, segment_ids)
    masks = jax.tree.map(lambda m: jnp.moveaxis(m, -1, 0), segments.masks(segment_ids))

    def body(state: Any, inputs: tuple) -> tuple[Any, Any]:
        x_t, (start, real) = inputs
        state = segments.reset(state, start)
        state = segments.hold(step(state, x_t), state, real)
        return state, state[0]

    state, hs = lax.scan(body, state, (jnp.moveaxis(x, axis, 0), masks))
    return state, jnp.moveaxis(hs, 0, -2).astype(x.dtype)


def _hoist_weights(step: Callable, state: Any, x: Array, batch: tuple[int, ...]) -> tuple[Callable, list[Array]]:
    """The step as a function of the arrays that it closes over as well, and these, for that batch."""
    rank = len(batch)
    state = jax.tree.map(lambda s: jax.ShapeDtypeStruct((*batch, *s.shape[rank:]), s.dtype), state)
    x_t = jax.ShapeDtypeStruct((*batch, *x.shape[rank + 1 :]), x.dtype)
    closed, out = jax.make_jaxpr(step, return_shape=True)(state, x_t)

    def hoisted(weights: list[Array], state: Any, x_t: Array) -> Any:
        leaves = jaxpr_as_fun(ClosedJaxpr(closed.jaxpr, weights))(*jax.tree.leaves((state, x_t)))
        return jax.tree.unflatten(jax.tree.structure(out), leaves)

    return hoisted, closed.consts


def split_gates(x: Float[Array, "*A G F"]) -> tuple[Float[Array, "*A F"], ...]:
    """One array a gate, by ``lax.split``, whose transpose is a single concatenation."""
    return tuple(jnp.squeeze(part, -2) for part in lax.split(x, (1,) * x.shape[-2], axis=x.ndim - 2))


def recurrent_product(h: Float[Array, "*B P"], R: Float[Array, "N H G K"]) -> tuple[Float[Array, "*B F"], ...]:
    """``h @ R``, one product a gate."""
    heads, size, _, _ = R.shape
    low = h.astype(R.dtype)
    blocks = split_gates(R)
    if heads == 1:
        return tuple((low @ R_g[0]).astype(h.dtype) for R_g in blocks)
    split = low.reshape(*low.shape[:-1], heads, size)
    return tuple(jnp.einsum("...nh,nhk->...nk", split, R_g).reshape(h.shape).astype(h.dtype) for R_g in blocks)


def _map_over_batch(cell: Callable, batch_rank: int) -> Callable:
    """The cell over ``[*B, F]`` arrays; its own parameters, bound by Partial, are shared."""
    for _ in range(batch_rank):
        cell = jax.vmap(cell)
    return cell
