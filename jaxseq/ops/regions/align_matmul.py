"""RoI align with the mean of samples, as two matrix products for each box."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops.regions.interpolation import align_weights
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float

_NUMBERS = 2**21
"""About how many numbers the intermediate arrays of the boxes that are worked on at once may hold."""


@partial(jax.jit, static_argnames=("bins", "sampling_ratio"))
def align_matmul(
    features: Float[Array, "B Y X F"],
    starts: Float[Array, "B R 2"],
    sizes: Float[Array, "B R 2"],
    empty: Array,
    bins: tuple[int, int],
    sampling_ratio: int | None,
) -> Float[Array, "B R h w F"]:
    """``W_y · map · W_xᵀ`` for each box, in chunks of boxes; the weights are those of ``align_weights``."""
    _, height, width, channels = features.shape
    wide, precision = at_least_float32(features.dtype), lax.Precision.HIGHEST
    chunk = min(max(1, _NUMBERS // (bins[0] * width * channels)), starts.shape[1])

    def image(xs: tuple[Array, ...]) -> Array:
        lines = xs[0].astype(wide).reshape(height, width * channels)

        def box(xs: tuple[Array, ...]) -> Array:
            start, size, empty = xs
            rows = align_weights(start[1], size[1], bins[0], height, sampling_ratio)
            rows = jnp.where(empty, 0, rows).astype(wide)
            columns = align_weights(start[0], size[0], bins[1], width, sampling_ratio).astype(wide)
            some = jnp.matmul(rows, lines, precision=precision).reshape(bins[0], width, channels)
            out = jnp.matmul(jnp.broadcast_to(columns, (bins[0], *columns.shape)), some, precision=precision)
            return out.astype(features.dtype)

        return lax.map(box, xs[1:], batch_size=chunk)

    return lax.map(image, (features, starts, sizes, empty))
