"""Two cores as an encoder, one for each direction of time."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import Core
from jaxseq.typing import Array, Float, SegmentIds, Sequence


class Bidirectional(nn.Module):
    """``ys_t = [forward(xs)_t ; backward(xs reversed)_t]``, concatenated (Schuster & Paliwal 1997).

    Both cores ignore padded positions and reset where a document starts, so that each document is read in both
    directions by its own length.
    """

    forward: Core
    backward: Core

    @nn.compact
    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Float[Array, "*B T F"]:
        """Encodes whole sequences."""
        shape = xs.shape[:-2]
        reversed_ids = None if segment_ids is None else jnp.flip(segment_ids, -1)
        _, ahead = self.forward(self.forward.initial_carry(shape), xs, segment_ids)
        _, behind = self.backward(self.backward.initial_carry(shape), jnp.flip(xs, -2), reversed_ids)
        return jnp.concatenate([ahead, jnp.flip(behind, -2)], axis=-1)

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> None:
        """Raises an error for a caller who takes this encoder for a core.

        Raises:
          TypeError: always.
        """
        raise TypeError(
            "Bidirectional is an encoder of whole sequences: it looks ahead, so it has no carry and can neither stream "
            "nor generate. Use a core of jaxseq.cores.CORES for that"
        )
