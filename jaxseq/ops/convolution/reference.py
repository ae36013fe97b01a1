"""Causal convolution, one position after another."""

import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.ops import segments
from jaxseq.typing import Array, Float, SegmentIds


def causal_convolution_reference(
    state: Float[Array, "*B P D"],
    xs: Float[Array, "*B T D"],
    kernel: Float[Array, "J D"] | Float[Array, "J D F"],
    *,
    dilation: int = 1,
    segment_ids: SegmentIds | None = None,
) -> tuple[Float[Array, "*B P D"], Float[Array, "*B T F"]]:
    """The equation of ``causal_convolution``, with the gradient of ``lax.scan``."""
    ids = jnp.ones(xs.shape[:-1], jnp.int32) if segment_ids is None else segment_ids

    def step(state: Array, inputs: tuple[Array, ...]) -> tuple[Array, Array]:
        x, start, real = (a[..., None, :] for a in inputs)
        before = jnp.where(start, jnp.zeros_like(state), state)
        window = jnp.concatenate([before, jnp.where(real, x, jnp.zeros_like(x)).astype(state.dtype)], axis=-2)
        taps = window[..., ::dilation, :].astype(x.dtype)
        y = jnp.einsum("...jd,jd->...d" if kernel.ndim == 2 else "...jd,jdf->...f", taps, kernel)
        return jnp.where(real, window[..., 1:, :], state), jnp.where(real[..., 0, :], y, jnp.zeros_like(y))

    inputs = xs, segments.starts(ids)[..., None], segments.is_real(ids)[..., None]
    state, ys = lax.scan(step, state, jax.tree.map(lambda a: jnp.moveaxis(a, xs.ndim - 2, 0), inputs))
    return state, jnp.moveaxis(ys, 0, -2)
