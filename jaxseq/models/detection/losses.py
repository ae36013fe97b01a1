"""The losses of detectors."""

from typing import NamedTuple

import jax.numpy as jnp
import optax

from jaxseq.models.detection.sampling import RegionTargets
from jaxseq.typing import Array, Float, Int, Scalar


class RegionLoss(NamedTuple):
    """Means over the real regions."""

    classes: Scalar  # cross-entropy, nats
    boxes: Scalar  # smooth L1, summed over the four coordinates
    accuracy: Scalar  # fraction of regions whose largest logit is the label's
    regions: Scalar  # their number


def region_loss(logits: Float[Array, "*B R C"], targets: RegionTargets) -> RegionLoss:
    """The cross-entropy of regions, for a classifier without boxes (R-CNN's fine-tuning)."""
    return _loss(logits, targets, jnp.zeros_like(targets.deltas[..., 0]))


def fast_rcnn_loss(
    logits: Float[Array, "*B R C"], deltas: Float[Array, "*B R K 4"], targets: RegionTargets
) -> RegionLoss:
    """The two terms of Fast R-CNN's loss: ``classes + boxes``, the latter for the label's class of foreground regions.

    classes = -log softmax(logits)[label];   boxes = sum_i smooth_l1(deltas[label, i] - target_i)
    smooth_l1(d) = d^2 / 2 if |d| < 1 else |d| - 1/2
    """
    place = (targets.labels - 1).clip(min=0)[..., None, None]
    chosen = jnp.take_along_axis(deltas, place, axis=-2)[..., 0, :]
    boxes = optax.losses.huber_loss(chosen, targets.deltas).sum(-1)
    return _loss(logits, targets, jnp.where(targets.labels > 0, boxes, 0.0))


def _loss(logits: Float[Array, "*B R C"], targets: RegionTargets, boxes: Float[Array, "*B R"]) -> RegionLoss:
    labels: Int[Array, "*B R"] = targets.labels
    entropy = optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)
    right = (logits.argmax(-1) == labels).astype(logits.dtype)
    count = targets.real.sum().astype(logits.dtype)

    def mean(values: Float[Array, "*B R"]) -> Scalar:
        return jnp.where(targets.real, values, 0.0).sum() / jnp.maximum(count, 1.0)

    return RegionLoss(mean(entropy), mean(boxes), mean(right), count)
