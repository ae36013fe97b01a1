"""Smooth forms of max, argmax and one-hot(argmax), with a sharpness t: exact as t grows, smooth where t is moderate.

With ``s = softmax(t x)`` along one axis::

    smooth_max(x, t)  = log(Σ_i exp(t x_i)) / t       max(x) <= smooth_max <= max(x) + log(n) / t
    soft_argmax(x, t) = Σ_i i s_i
    hardmax(x, t)     = one-hot(argmax x)             with the derivatives of s

``t`` is a number, or an array that broadcasts against the shape of x without the axis (one t a row, for example). It is
positive and finite: another value is an error outside ``jit``, and gives NaN under it.

Entries of -inf are excluded: their weight and their gradient are 0. If all are excluded, ``smooth_max`` is -inf,
``soft_argmax`` is 0, ``hardmax`` is all zeros, and all gradients are 0. Entries of +inf share the whole weight equally.
NaN gives NaN. The functions can be differentiated any number of times by x and by t, in forward and reverse mode.
Half-precision inputs are computed in float32.
"""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Float

Sharpness: TypeAlias = float | int | Array | np.ndarray
"""A positive number, or an array of them."""


def smooth_max(x: Float[Array, "..."], t: Sharpness, axis: int = -1) -> Float[Array, "..."]:
    """The maximum along an axis as ``log(Σ_i exp(t x_i)) / t`` (Boyd & Vandenberghe 2004, section 3.1.5).

    The gradient is ``softmax(t x)`` by x, and ``-H / t²`` by t, where H is the entropy of ``softmax(t x)`` in nats.

    >>> float(smooth_max(jnp.array([0.0, 0.0]), t=2.0))  # log(2) / 2
    0.3465735912322998

    Args:
        x: the values. The axis must not be empty.
        t: the sharpness; the result exceeds the maximum by at most ``log(n) / t``.
        axis: the axis, which the result lacks.

    Raises:
        ValueError: x is not of a real floating dtype, there is no such axis or it is empty, t is not positive and
            finite, or t does not broadcast against the result.
    """
    values, sharpness = _prepare("smooth_max", x, t, axis)
    largest = jax.lax.stop_gradient(values.max(-1))
    return (largest + _excess(values, sharpness)).astype(x.dtype)


def soft_argmax(x: Float[Array, "..."], t: Sharpness, axis: int = -1) -> Float[Array, "..."]:
    """The index of the maximum along an axis, as the mean index ``m = Σ_i i s_i`` under ``s = softmax(t x)``.

    The gradient by x is ``t s_i (i - m)``. (The form ``t i s_i (1 - s_i)`` that is often written lacks the terms of the
    other weights, which change with x_i too.) Equal maxima give the mean of their indices as t grows.

    >>> float(soft_argmax(jnp.array([0.0, 1.0, 0.0]), t=1.0))
    1.0

    Args:
        x: the values. The axis must not be empty.
        t: the sharpness.
        axis: the axis, which the result lacks.

    Raises:
        ValueError: as ``smooth_max``.
    """
    values, sharpness = _prepare("soft_argmax", x, t, axis)
    return _mean_index(values, sharpness).astype(x.dtype)


def hardmax(x: Float[Array, "..."], t: Sharpness = 1.0, axis: int = -1) -> Float[Array, "..."]:
    """One-hot vectors of the maximum along an axis, with a straight-through gradient (Bengio et al., arXiv:1308.3432).

    Forward, the first of equal maxima has 1 and all other entries 0. Derivatives are those of ``softmax(t x)``, in
    which equal entries have equal parts.

    >>> hardmax(jnp.array([1.0, 3.0, 3.0])).tolist()
    [0.0, 1.0, 0.0]

    Args:
        x: the values. The axis must not be empty.
        t: the sharpness of the softmax whose derivatives are used.
        axis: the axis along which the entries compete.

    Raises:
        ValueError: as ``smooth_max``.
    """
    values, sharpness = _prepare("hardmax", x, t, axis)
    return jnp.moveaxis(_one_hot(values, sharpness), -1, axis).astype(x.dtype)


def _prepare(name: str, x: Float[Array, "..."], t: Sharpness, axis: int) -> tuple[Array, Array]:
    """The checked values ``[*B, n]`` with the axis last, and the sharpness ``[*B]``, both in at least float32."""
    dtype = jnp.result_type(x)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"{name} needs real floating-point values, not {dtype}{jnp.shape(x)}")
    if not -jnp.ndim(x) <= axis < jnp.ndim(x):
        raise ValueError(f"{name}: axis={axis} of an array of shape {jnp.shape(x)}")
    values = jnp.moveaxis(jnp.asarray(x, at_least_float32(dtype)), axis, -1)
    if not values.shape[-1]:
        raise ValueError(f"{name}: axis={axis} of an array of shape {jnp.shape(x)} is empty")
    _check_sharpness(name, t, values.shape[:-1])
    sharpness = jnp.broadcast_to(jnp.asarray(t).astype(values.dtype), values.shape[:-1])
    valid = (sharpness > 0) & (sharpness < jnp.inf)
    return values, jnp.where(valid, sharpness, jnp.asarray(jnp.nan, values.dtype))


def _check_sharpness(name: str, t: Sharpness, shape: Sequence[int]) -> None:
    """Raises ValueError for a sharpness that does not broadcast to the shape, or has a known value that is invalid."""
    try:
        fits = np.broadcast_shapes(jnp.shape(t), shape) == tuple(shape)
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name}: t of shape {jnp.shape(t)} does not broadcast to the result's shape {tuple(shape)}")
    if isinstance(t, jax.core.Tracer) or (isinstance(t, jax.Array) and not t.is_fully_addressable):
        return
    numbers = np.asarray(t, np.float64).ravel()
    wrong = ~((numbers > 0) & (numbers < np.inf))
    if wrong.any():
        raise ValueError(f"{name}: t={numbers[wrong][0]:g} must be positive and finite")


def _counts(x: Float[Array, "*B D"]) -> Bool[Array, "*B D"]:
    """Which entries have a weight: none of -inf, and only those of +inf if there are any."""
    largest = x.max(-1, keepdims=True)
    return ~((x == -jnp.inf) | ((largest == jnp.inf) & (x < largest)))


@jax.custom_jvp
def _shifted(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    """``x - max(x)`` with the maximum held constant; finite, and 0 at excluded entries."""
    largest = x.max(-1, keepdims=True)
    difference = jnp.maximum(x - largest, jnp.finfo(x.dtype).min)
    return jnp.where(_counts(x) & (x != largest), difference, jnp.zeros_like(x))


@_shifted.defjvp
def _shifted_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    return _shifted(x), jnp.where(_counts(x), dx, jnp.zeros_like(dx))


def _exponentials(x: Float[Array, "*B D"], t: Float[Array, "*B"]) -> tuple[Array, Array]:
    """``exp(t (x - max))``, 0 at excluded entries, and its sum, 1 where it would be 0."""
    exponentials = jnp.where(_counts(x), jnp.exp(t[..., None] * _shifted(x)), jnp.zeros_like(x))
    total = exponentials.sum(-1)
    return exponentials, jnp.where(total == 0, jnp.ones_like(total), total)


@jax.custom_jvp
def _weights(x: Float[Array, "*B D"], t: Float[Array, "*B"]) -> Float[Array, "*B D"]:
    """``s = softmax(t x)``, with ``ds = s (dz - Σ s dz)`` for ``z = t (x - max)``."""
    exponentials, total = _exponentials(x, t)
    return exponentials / total[..., None]


@_weights.defjvp
def _weights_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    weights, scores = _weights(*primals), _score_tangents(primals, tangents)
    return weights, weights * (scores - (weights * scores).sum(-1, keepdims=True))


def _score_tangents(primals: tuple, tangents: tuple) -> Float[Array, "*B D"]:
    """``dz = t dx + (x - max) dt``."""
    (x, t), (dx, dt) = primals, tangents
    return t[..., None] * dx + _shifted(x) * dt[..., None]


@jax.custom_jvp
def _excess(x: Float[Array, "*B D"], t: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """``smooth_max - max`` with the maximum held constant; 0 if all entries are excluded."""
    _, total = _exponentials(x, t)
    return jnp.log(total) / t


@_excess.defjvp
def _excess_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (x, t), (dx, dt) = primals, tangents
    excess, weights = _excess(x, t), _weights(x, t)
    by_t = ((weights * _shifted(x)).sum(-1) - excess) / t
    return excess, (weights * dx).sum(-1) + by_t * dt


@jax.custom_jvp
def _mean_index(x: Float[Array, "*B D"], t: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """``m = Σ_i i s_i``, with ``dm = Σ_i s_i (i - m) dz_i``."""
    return (_weights(x, t) * _indices(x)).sum(-1)


@_mean_index.defjvp
def _mean_index_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    mean, weights = _mean_index(*primals), _weights(*primals)
    slopes = weights * (_indices(primals[0]) - mean[..., None])
    return mean, (slopes * _score_tangents(primals, tangents)).sum(-1)


def _indices(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return jnp.broadcast_to(jnp.arange(x.shape[-1], dtype=x.dtype), x.shape)


@jax.custom_jvp
def _one_hot(x: Float[Array, "*B D"], t: Float[Array, "*B"]) -> Float[Array, "*B D"]:
    """One-hot vectors of the first maximum, with the derivatives of ``_weights``."""
    first = jax.nn.one_hot(x.argmax(-1), x.shape[-1], dtype=x.dtype)
    largest = x.max(-1, keepdims=True)
    hot = jnp.where(largest == -jnp.inf, jnp.zeros_like(x), first)
    return jnp.where(jnp.isnan(largest + t[..., None]), jnp.full_like(x, jnp.nan), hot)


@_one_hot.defjvp
def _one_hot_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    _, tangent = jax.jvp(_weights, primals, tangents)
    return _one_hot(*primals), tangent
