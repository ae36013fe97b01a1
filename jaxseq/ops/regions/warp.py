"""R-CNN's anisotropic warp of regions to a fixed size."""

import jax.numpy as jnp
from jax import lax

from jaxseq.ops.regions.interpolation import chunk_of_regions, combine, triangle_weights
from jaxseq.typing import Array, Float


def warp_image(
    image: Float[Array, "Y X C"],
    boxes: Float[Array, "R 4"],
    empty: Array,
    size: tuple[int, int],
    context: int,
    fill: Float[Array, " C"],
) -> Float[Array, "R h w C"]:
    """The regions of one image; ``boxes`` are finite."""
    height, width, channels = image.shape

    def some(region: tuple[Array, Array]) -> Array:
        box, empty = region[0][None], region[1][None]
        low, sizes = box[:, :2], box[:, 2:] - box[:, :2]
        margin = jnp.stack([sizes[:, i] * context / (n - 2 * context) for i, n in enumerate(size[::-1])], axis=-1)
        low, sizes = low - margin, sizes + 2 * margin
        rows = triangle_weights(low[:, 1], sizes[:, 1], size[0], height)
        rows = jnp.where(empty[:, None, None], 0, rows)
        columns = triangle_weights(low[:, 0], sizes[:, 0], size[1], width)
        return combine(rows, columns, image - fill[None, None])[0] + fill[None, None]

    chunk = chunk_of_regions(max(size[0] * width, size[1] * height) * channels)
    return lax.map(some, (boxes, empty), batch_size=min(chunk, boxes.shape[0]))
