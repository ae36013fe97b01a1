"""The recurrence as a plain ``lax.scan`` over time, for cells of any kind."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
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
        r = _recurrent_product(state[0], R)
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


def _split_gates(x: Float[Array, "*A G F"]) -> tuple[Float[Array, "*A F"], ...]:
    """One array a gate, by ``lax.split``, whose transpose is a single concatenation."""
    return tuple(jnp.squeeze(part, -2) for part in lax.split(x, (1,) * x.shape[-2], axis=x.ndim - 2))


def _recurrent_product(h: Float[Array, "*B P"], R: Float[Array, "N H G K"]) -> tuple[Float[Array, "*B F"], ...]:
    """``h @ R``, one product a gate."""
    heads, size, _, _ = R.shape
    low = h.astype(R.dtype)
    blocks = _split_gates(R)
    if heads == 1:
        return tuple((low @ R_g[0]).astype(h.dtype) for R_g in blocks)
    split = low.reshape(*low.shape[:-1], heads, size)
    return tuple(jnp.einsum("...nh,nhk->...nk", split, R_g).reshape(h.shape).astype(h.dtype) for R_g in blocks)


def _map_over_batch(cell: Callable, batch_rank: int) -> Callable:
    """The cell over ``[*B, F]`` arrays; its own parameters, bound by Partial, are shared."""
    for _ in range(batch_rank):
        cell = jax.vmap(cell)
    return cell
