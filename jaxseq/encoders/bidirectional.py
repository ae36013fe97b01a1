"""A recurrence in both directions: an encoder, not a core, for it sees the future."""

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import Core
from jaxseq.typing import Array, Float, SegmentIds, Sequence


class Bidirectional(nn.Module):
    """Runs one core forwards and one backwards over whole sequences; puts out both, side by side.

    ``ys_t = [forward(xs)_t ; backward(xs reversed)_t]`` (Schuster & Paliwal 1997). Padding stands still in both
    directions, so sequences are reversed by their own length, and each document apart.
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
        """There is none: what is read last comes first in the other direction.

        Raises:
          TypeError: always.
        """
        raise TypeError(
            "Bidirectional sees the future: it is an encoder of whole sequences and has no carry, so it can "
            "neither stream nor generate; take a core of jaxseq.cores.CORES for that"
        )
