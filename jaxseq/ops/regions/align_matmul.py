"""RoI align with the mean of samples, as two matrix products for each box."""

import jax.numpy as jnp
from jax import lax

from jaxseq.ops.regions.interpolation import align_weights, chunk_of_regions, combine
from jaxseq.typing import Array, Float


def align_matmul(
    features: Float[Array, "Y X F"],
    starts: Float[Array, "R 2"],
    sizes: Float[Array, "R 2"],
    empty: Array,
    bins: tuple[int, int],
    sampling_ratio: int | None,
) -> Float[Array, "R h w F"]:
    """``W_y · map · W_xᵀ`` for each box, in chunks of boxes; the weights are those of ``align_weights``."""
    height, width, channels = features.shape

    def some(boxes: tuple[Array, Array, Array]) -> Array:
        starts, sizes, empty = (x[None] for x in boxes)
        rows = align_weights(starts[:, 1], sizes[:, 1], bins[0], height, sampling_ratio)
        rows = jnp.where(empty[:, None, None], 0, rows)
        columns = align_weights(starts[:, 0], sizes[:, 0], bins[1], width, sampling_ratio)
        return combine(rows, columns, features)[0]

    chunk = chunk_of_regions(max(bins[0] * width, bins[1] * height) * channels)
    return lax.map(some, (starts, sizes, empty), batch_size=min(chunk, starts.shape[0]))
