"""Causal convolution along time, depthwise or full, over documents packed in a row and padding anywhere.

Segment ids ask for the last *real* inputs of the same document. So real positions are first moved to the front of
their row (a permutation); there a tap is a plain shift, and a document is one stretch.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
from jaxseq.ops.convolution.primitives import permute_rows, shifted, shifted_sum
from jaxseq.ops.convolution.row_product import rows_product
from jaxseq.typing import Array, Bool, Float, Int, SegmentIds


def causal_convolution(
    state: Float[Array, "*B P D"],
    xs: Float[Array, "*B T D"],
    kernel: Float[Array, "J D"] | Float[Array, "J D F"],
    *,
    dilation: int = 1,
    segment_ids: SegmentIds | None = None,
) -> tuple[Float[Array, "*B P D"], Float[Array, "*B T F"]]:
    """Runs ``y_t = Σ_j kernel[J-1-j] x_{t - j·dilation}`` along time; returns the last inputs and all ``y_t``.

    Args:
      xs: the inputs.
      kernel: one weight a tap and channel (``[J, D]``, depthwise: F = D) or one matrix a tap (``[J, D, F]``); its
        last row meets the present input. Of the dtype of ``xs``.
      state: the ``P = (J - 1) · dilation`` real inputs before these, oldest first; zeros before a document. Kept in
        its own dtype.
      dilation: the distance between taps, in real inputs.
      segment_ids: 0 is padding (as if it were not there; outputs are zero), a change of id begins again from zeros.

    Raises:
      ValueError: shapes or dtypes do not agree, or ``dilation`` is not positive.
    """
    _check(state, xs, kernel, dilation)
    segments.check(segment_ids, xs.shape[:-1])
    if segment_ids is None:
        return _continued(state, xs, kernel, dilation)
    real = segments.is_real(segment_ids)
    xs = jnp.where(real[..., None], xs, jnp.zeros_like(xs))
    if xs.shape[-2] == 1:  # a step goes on with the state, whatever its id
        last, ys = _continued(state, xs, kernel, dilation)
        return jnp.where(real[..., None], last, state), jnp.where(real[..., None], ys, jnp.zeros_like(ys))
    source, to = _real_first(real)
    xs = permute_rows(xs, source, to)
    documents = _documents(segment_ids, source, state.shape[-2])
    ys = _convolved(_after(state.astype(xs.dtype), xs), kernel, documents, dilation)
    ys = permute_rows(ys, to, source)
    last = _last(_after(state, xs), documents, real.sum(-1, dtype=jnp.int32), state.shape[-2])
    return last, jnp.where(real[..., None], ys, jnp.zeros_like(ys))


def causal_convolution_reference(
    state: Float[Array, "*B P D"],
    xs: Float[Array, "*B T D"],
    kernel: Float[Array, "J D"] | Float[Array, "J D F"],
    *,
    dilation: int = 1,
    segment_ids: SegmentIds | None = None,
) -> tuple[Float[Array, "*B P D"], Float[Array, "*B T F"]]:
    """``causal_convolution`` one position after another: the oracle for values and gradients."""
    ids = jnp.ones(xs.shape[:-1], jnp.int32) if segment_ids is None else segment_ids
    start = segments.starts(ids, segments.no_ids(ids))

    def step(state: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        x, start, real = (a[..., None, :] for a in inputs)
        before = jnp.where(start, jnp.zeros_like(state), state)
        window = jnp.concatenate([before, jnp.where(real, x, jnp.zeros_like(x)).astype(state.dtype)], axis=-2)
        taps = window[..., ::dilation, :].astype(x.dtype)
        y = jnp.einsum("...jd,jd->...d" if kernel.ndim == 2 else "...jd,jdf->...f", taps, kernel)
        return jnp.where(real, window[..., 1:, :], state), jnp.where(real[..., 0, :], y, jnp.zeros_like(y))

    inputs = xs, start[..., None], segments.is_real(ids)[..., None]
    state, ys = lax.scan(step, state, jax.tree.map(lambda a: jnp.moveaxis(a, xs.ndim - 2, 0), inputs))
    return state, jnp.moveaxis(ys, 0, -2)


def _check(state: Array, xs: Array, kernel: Array, dilation: int) -> None:
    if dilation < 1:
        raise ValueError(f"dilation={dilation} must be at least 1")
    if kernel.ndim not in (2, 3) or kernel.shape[0] < 1 or kernel.shape[1] != xs.shape[-1]:
        raise ValueError(f"kernel {kernel.shape} ([J, D] or [J, D, F]) does not fit xs {xs.shape} ([*B, T, D])")
    needed = (*xs.shape[:-2], (kernel.shape[0] - 1) * dilation, xs.shape[-1])
    if state.shape != needed:
        raise ValueError(f"state {state.shape}; {kernel.shape[0]} taps, dilation={dilation} and xs need {needed}")
    if kernel.dtype != xs.dtype:
        raise ValueError(f"xs ({xs.dtype}) and kernel ({kernel.dtype}) must share one dtype")


def _after(state: Float[Array, "*B P D"], xs: Float[Array, "*B T D"]) -> Float[Array, "*B S D"]:
    return jnp.concatenate([state, xs.astype(state.dtype)], axis=-2)


def _continued(state: Array, xs: Array, kernel: Array, dilation: int) -> tuple[Array, Array]:
    """One document without padding."""
    ys = _convolved(_after(state.astype(xs.dtype), xs), kernel, None, dilation)
    return _after(state, xs)[..., xs.shape[-2] :, :], ys


def _convolved(
    seen: Float[Array, "*B S D"],
    kernel: Float[Array, "J D"] | Float[Array, "J D F"],
    documents: Int[Array, "*B S"] | None,
    dilation: int,
) -> Float[Array, "*B T F"]:
    """The sum over the taps, of inputs of the same document alone."""
    count = kernel.shape[0]
    start = (count - 1) * dilation
    own = None if documents is None else documents[..., start:]
    if kernel.ndim == 2:
        return shifted_sum(seen, kernel, documents, own, dilation)
    *batch, total, width = seen.shape
    features = kernel.shape[-1]
    if own is None:
        flat = seen.reshape(math.prod(batch), total, width)
        ys = lax.conv_general_dilated(
            flat, kernel, (1,), "VALID", rhs_dilation=(dilation,), dimension_numbers=("NWC", "WIO", "NWC")
        )
        return ys.reshape(*batch, total - start, features)
    every = rows_product(seen.reshape(-1, width), jnp.moveaxis(kernel, 0, 1).reshape(width, count * features))
    by_tap = jnp.split(every.reshape(*batch, total, count * features), count, axis=-1)
    taps = [shifted(rows, documents, own, j * dilation, total - start) for j, rows in enumerate(by_tap)]
    return sum(taps[1:], taps[0])


def _real_first(real: Bool[Array, "*B T"]) -> tuple[Int[Array, "*B T"], Int[Array, "*B T"]]:
    """The permutation that puts real positions first, in order: where each place is filled from, and its inverse."""
    padding = ~real
    count = real.sum(-1, keepdims=True, dtype=jnp.int32)
    to = jnp.where(real, real.cumsum(-1, dtype=jnp.int32), count + padding.cumsum(-1, dtype=jnp.int32)) - 1
    return jnp.argsort(padding, axis=-1, stable=True).astype(jnp.int32), to


def _documents(segment_ids: SegmentIds, source: Int[Array, "*B T"], before: int) -> Int[Array, "*B S"]:
    """Documents counted from 0, real positions first; the ``before`` inputs ahead of them belong to the first."""
    starts = segments.starts(segment_ids, segments.no_ids(segment_ids)).cumsum(-1, dtype=jnp.int32)
    documents = jnp.take_along_axis(starts, source, axis=-1)
    return jnp.pad(documents, [(0, 0)] * (documents.ndim - 1) + [(before, 0)])


def _last(
    seen: Float[Array, "*B S D"], documents: Int[Array, "*B S"], count: Int[Array, "*B"], size: int
) -> Float[Array, "*B P D"]:
    """The ``size`` inputs up to the ``count``-th new one that are of its document, zeros before it."""
    if size == 0:
        return seen[..., :0, :]

    def last(seen: Array, documents: Array, count: Array) -> Array:
        tail = lax.dynamic_slice_in_dim(seen, count, size)
        ids = lax.dynamic_slice_in_dim(documents, count, size)
        return jnp.where((ids == ids[-1:])[:, None], tail, jnp.zeros_like(tail))

    return _over_batch(last, count.ndim)(seen, documents, count)


def _over_batch(function: Callable, rank: int) -> Callable:
    for _ in range(rank):
        function = jax.vmap(function)
    return function
