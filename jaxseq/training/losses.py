"""Losses over real positions only."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.ops.ids import check_ids, valid_ids
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Float, Integer


class CrossEntropy(NamedTuple):
    """A cross-entropy in nats: ``mean = total / count``, 0 if the count is 0."""

    mean: Float[Array, ""]
    total: Float[Array, ""]
    count: Float[Array, ""]  # type: ignore[assignment]


def cross_entropy(
    logits: Float[Array, "*B T V"],
    targets: Integer[Array | np.ndarray, "*B T"],
    mask: Bool[Array | np.ndarray, "*B T"],
    *,
    label_smoothing: float | Float[Array, ""] = 0.0,
) -> CrossEntropy:
    """The sum over real positions of ``log sum_v exp(l_v) - l_target``, and its mean.

    With ``label_smoothing`` ε the target's term is ``(1 - ε) l_target + ε mean_v l_v``: the cross-entropy against the
    target mixed with the uniform distribution (Szegedy et al. 2016, section 7). Tokens with a logit of -inf are ruled
    out: the uniform distribution and the mean are over the others, and the gradient at -inf is 0. A target that is
    ruled out has an infinite loss.

    Computed in at least float32. Padded positions are ignored: their logits (NaN included) and targets affect neither
    the value nor the gradient. The mean over several batches is ``sum(total) / sum(count)``; a loss function gives
    ``count`` as the ``weight`` of its ``Aux``.

    A target outside [0, V) at a real position is an error outside ``jit``, and gives a value and a gradient of NaN
    under it. Positions without a target (in other libraries a target of -100) are those where ``mask`` is False.

    Raises:
        ValueError: label_smoothing outside [0, 1); shapes that do not fit; an empty vocabulary; a target out of range.
        TypeError: targets that are not integers, or a mask that is not bool.
    """
    traced = isinstance(label_smoothing, jax.core.Tracer)
    if not traced and not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
    _check(logits, targets, mask)
    dtype, size = at_least_float32(logits.dtype), logits.shape[-1]
    targets, mask = jnp.asarray(targets), jnp.asarray(mask)
    if targets.dtype.itemsize < 4:  # a vocabulary's ids may not fit
        targets = targets.astype(jnp.int32)
    real = mask[..., None]
    logits = jnp.where(real, logits.astype(dtype), jnp.zeros((), dtype))
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    # A comparison and its gradient fuse with the sum; the gradient of a gather would be a scatter.
    chosen = jnp.sum(jnp.where(vocabulary == targets[..., None], logits, jnp.zeros((), dtype)), axis=-1)
    if traced or label_smoothing:
        smoothing = jnp.asarray(label_smoothing, dtype)
        chosen = (1 - smoothing) * chosen + smoothing * _mean_of_allowed(logits)
    # A factor of NaN, and not a constant in its place, makes the gradient NaN as well.
    factor = jnp.where(valid_ids(targets, size) | ~mask, jnp.ones((), dtype), jnp.asarray(jnp.nan, dtype))
    losses = jnp.where(mask, (jax.nn.logsumexp(logits, axis=-1) - chosen) * factor, jnp.zeros((), dtype))
    total = jnp.sum(losses)
    count = jnp.sum(mask, dtype=dtype)
    return CrossEntropy(total / jnp.maximum(count, jnp.ones((), dtype)), total, count)


def _check(logits: Array, targets: Array | np.ndarray, mask: Array | np.ndarray) -> None:
    """Raises TypeError or ValueError, naming the argument, unless the cross-entropy of these arguments is defined."""
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"targets must be integers, not {targets.dtype}")
    if mask.dtype != bool:
        raise TypeError(f"mask must be bool, not {mask.dtype}")
    if logits.ndim < 2 or not logits.shape[-1]:
        raise ValueError(f"logits must be [*B, T, V] with V of at least 1, not {list(logits.shape)}")
    for name, array in {"targets": targets, "mask": mask}.items():
        if array.shape != logits.shape[:-1]:
            raise ValueError(
                f"{name} must be {list(logits.shape[:-1])} for logits of {list(logits.shape)}, not {list(array.shape)}"
            )
    check_ids("targets", targets, logits.shape[-1], mask)


def _mean_of_allowed(logits: Float[Array, "*B T V"]) -> Float[Array, "*B T"]:
    """The mean over the logits that are not -inf."""
    allowed = logits > -jnp.inf
    number = jnp.maximum(jnp.sum(allowed, axis=-1, dtype=logits.dtype), jnp.ones((), logits.dtype))
    return jnp.sum(jnp.where(allowed, logits, jnp.zeros((), logits.dtype)), axis=-1) / number
