"""Losses over real positions only."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Float, Int


class CrossEntropy(NamedTuple):
    """A cross-entropy in nats: ``mean = total / count``, 0 if the count is 0."""

    mean: Float[Array, ""]
    total: Float[Array, ""]
    count: Float[Array, ""]  # type: ignore[assignment]


def cross_entropy(
    logits: Float[Array, "*B T V"],
    targets: Int[Array | np.ndarray, "*B T"],
    mask: Bool[Array | np.ndarray, "*B T"],
    *,
    label_smoothing: float = 0.0,
) -> CrossEntropy:
    """The sum over real positions of ``log sum_v exp(l_v) - l_target``, and its mean.

    With ``label_smoothing`` ε the target's term is ``(1 - ε) l_target + ε mean_v l_v``: the cross-entropy against the
    target mixed with the uniform distribution (Szegedy et al. 2016, section 7).

    Computed in at least float32. Padded positions are ignored: their logits (NaN included) and targets affect neither
    the value nor the gradient. The mean over several batches is ``sum(total) / sum(count)``.

    Raises:
      ValueError: label_smoothing outside [0, 1).
    """
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), not {label_smoothing}")
    dtype = at_least_float32(logits.dtype)
    targets, mask = jnp.asarray(targets), jnp.asarray(mask)
    real = mask[..., None]
    logits = jnp.where(real, logits.astype(dtype), jnp.zeros((), dtype))
    vocabulary = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    # A comparison and its gradient fuse with the sum; the gradient of a gather would be a scatter.
    chosen = jnp.sum(jnp.where(vocabulary == targets[..., None], logits, jnp.zeros((), dtype)), axis=-1)
    if label_smoothing:
        chosen = (1 - label_smoothing) * chosen + label_smoothing * logits.mean(-1)
    losses = jnp.where(mask, jax.nn.logsumexp(logits, axis=-1) - chosen, jnp.zeros((), dtype))
    total = jnp.sum(losses)
    count = jnp.sum(mask, dtype=dtype)
    return CrossEntropy(total / jnp.maximum(count, jnp.ones((), dtype)), total, count)
