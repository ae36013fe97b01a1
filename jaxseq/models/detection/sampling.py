"""The regions that a detector is trained on: foreground and background drawn from the proposals."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxseq.models.detection.region_scores import scaled
from jaxseq.ops.regions import box_area, box_coverage, box_iou, encode_boxes
from jaxseq.typing import Array, Bool, Float, Int, Key


@dataclass(frozen=True)
class RegionSampling:
    """The number of regions of an image, and which are foreground and background.

    Raises:
        ValueError: a number that is not positive, a fraction outside (0, 1], or IoUs that are not increasing.
    """

    regions: int = 64
    """Regions drawn from an image."""
    foreground: float = 0.25
    """The largest fraction of them that is foreground."""
    foreground_iou: float = 0.5
    """Regions whose IoU with an object is at least this are foreground, of the class of the best object."""
    background_iou: tuple[float, float] = (0.1, 0.5)
    """Regions whose largest IoU with an object is in this half-open interval are background."""

    def __post_init__(self) -> None:
        if self.regions < 1:
            raise ValueError(f"regions must be at least 1, not {self.regions}")
        if not 0 < self.foreground <= 1:
            raise ValueError(f"foreground must be in (0, 1], not {self.foreground}")
        low, high = self.background_iou
        if not 0 <= low < high <= self.foreground_iou <= 1:
            raise ValueError(
                f"background_iou={self.background_iou} and foreground_iou={self.foreground_iou} must be "
                "0 <= low < high <= foreground_iou <= 1"
            )


class RegionTargets(NamedTuple):
    """Sampled regions and what a detector should say of them."""

    boxes: Float[Array, "*B R 4"]
    labels: Int[Array, "*B R"]  # 0 is the background, class k is k + 1
    deltas: Float[Array, "*B R 4"]  # codes of the object, divided by DELTA_SCALE; zeros for the background
    real: Bool[Array, "*B R"]  # False: the image has fewer regions, and the entry is to be ignored


def sample_regions(
    proposals: Float[Array, "*B P 4"],
    objects: Float[Array, "*B G 4"],
    classes: Int[Array, "*B G"],
    ignored: Bool[Array, "*B G"],
    sampling: RegionSampling,
    *,
    key: Key[Array, ""],
) -> RegionTargets:
    """Draw regions uniformly without replacement, at most ``regions * foreground`` of them foreground.

    The objects themselves are candidates, too. Empty boxes are none. A region of which an ignored object covers
    ``foreground_iou`` or more is no background. In an image without objects, or with ignored ones alone, every other
    region is background, whatever the least IoU of ``background_iou``.

    Args:
      proposals: boxes; empty ones fill up the list.
      objects: the boxes of the objects, filled up with empty ones.
      classes: their classes, from 0.
      ignored: objects that are neither to be found nor background (crowds, difficult objects).
      sampling: the numbers.
      key: the random key.
    """
    # one more object, an empty one, so that there may be none
    objects = jnp.pad(objects, [(0, 0)] * (objects.ndim - 2) + [(0, 1), (0, 0)])
    classes, ignored = (jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, 1)]) for x in (classes, ignored))
    candidates = jnp.concatenate([jnp.where(ignored[..., None], 0.0, objects), proposals], axis=-2)
    if (missing := sampling.regions - candidates.shape[-2]) > 0:
        candidates = jnp.pad(candidates, [(0, 0)] * (candidates.ndim - 2) + [(0, missing), (0, 0)])
    iou = box_iou(candidates, objects)
    shown = jnp.where(ignored[..., None, :], 0.0, iou)
    best, match = shown.max(-1), shown.argmax(-1)
    hidden = jnp.where(ignored[..., None, :], box_coverage(candidates, objects), 0.0).max(-1)
    exists = box_area(candidates) > 0
    foreground = exists & (best >= sampling.foreground_iou)
    low, high = sampling.background_iou
    least = jnp.where(((box_area(objects) > 0) & ~ignored).any(-1, keepdims=True), low, 0.0)
    background = exists & (least <= best) & (best < high) & (hidden < sampling.foreground_iou)
    draws = jax.random.uniform(key, exists.shape)
    most = min(max(round(sampling.regions * sampling.foreground), 1), candidates.shape[-2])
    last = jax.lax.top_k(jnp.where(foreground, draws, -1.0), most)[0][..., -1:]
    order = jnp.where(foreground & (draws >= last), 2.0 + draws, jnp.where(background, draws, -1.0))
    priority, chosen = jax.lax.top_k(order, sampling.regions)
    boxes = jnp.take_along_axis(candidates, chosen[..., None], axis=-2)
    matched = jnp.take_along_axis(match, chosen, axis=-1)
    labels = jnp.where(priority >= 2, jnp.take_along_axis(classes, matched, axis=-1) + 1, 0)
    target = jnp.take_along_axis(objects, matched[..., None], axis=-2)
    deltas = jnp.where((labels > 0)[..., None], scaled(encode_boxes(target, boxes)), 0.0)
    return RegionTargets(boxes, labels, deltas, priority >= 0)
