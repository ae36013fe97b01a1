"""How much of the attention lies on a box of the image."""

from typing import NamedTuple, TypeAlias

import numpy as np

from jaxseq.typing import Array, Float, Shaped

Shares: TypeAlias = Float[np.ndarray, "..."]


class AttentionShare(NamedTuple):
    """The share of the attention on a box, and the box's share of the image's area; both in 0..1."""

    mass: Shares
    area: Shares


def attention_share(
    weights: Float[np.ndarray | Array, "*N Y X"],
    boxes: Shaped[np.ndarray | Array, "*N 4"],
    image_size: tuple[int, int],
) -> AttentionShare:
    """The share of attention on boxes.

    The ``Y X`` cells of the weights divide the image into equal parts. A cell counts by the fraction of it in the box:

        mass = Σ_yx w_yx |cell_yx ∩ box| / |cell_yx|  /  Σ_yx w_yx        area = |image ∩ box| / |image|

    Uniform attention has mass = area.

    Args:
        weights: attention over the cells; they need not sum to 1.
        boxes: ``x1 y1 x2 y2`` in pixels, continuous: the image spans 0 to its size. The part outside is cut off.
        image_size: ``(height, width)`` in pixels.

    Raises:
        ValueError: weights that are negative, not finite or sum to 0, a box without area in the image, or a size that
            is not positive.
    """
    table, corners = np.asarray(weights, np.float64), np.asarray(boxes, np.float64)
    if table.ndim < 2 or corners.shape != (*table.shape[:-2], 4):
        raise ValueError(f"weights are {table.shape}, boxes {corners.shape}: not [*N Y X] and [*N 4]")
    height, width = image_size
    if height <= 0 or width <= 0:
        raise ValueError(f"the image size is {image_size}")
    sums = table.sum((-2, -1))
    if not np.all(np.isfinite(sums)) or np.any(table < 0) or np.any(sums == 0):
        raise ValueError("attention weights must be finite, not negative, and not all 0")
    rows = _overlaps(corners[..., 1], corners[..., 3], height, table.shape[-2])
    columns = _overlaps(corners[..., 0], corners[..., 2], width, table.shape[-1])
    area = rows.mean(-1) * columns.mean(-1)
    if not np.all(area > 0):
        box = corners.reshape(-1, 4)[np.flatnonzero(~(area > 0))[0]]
        raise ValueError(f"the box {box.tolist()} has no area in an image of {width} x {height} (width x height)")
    return AttentionShare(np.asarray(np.einsum("...yx,...y,...x->...", table, rows, columns) / sums), np.asarray(area))


def _overlaps(low: np.ndarray, high: np.ndarray, size: int, cells: int) -> np.ndarray:
    """The fraction of each of ``cells`` equal parts of 0..``size`` that lies between ``low`` and ``high``."""
    edges = np.arange(cells + 1)
    begin, end = (np.clip(position * (cells / size), 0, cells)[..., None] for position in (low, high))
    return np.clip(np.minimum(end, edges[1:]) - np.maximum(begin, edges[:-1]), 0, 1)
