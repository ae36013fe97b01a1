"""Two cores as an encoder, one for each direction of time."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import Core
from jaxseq.ops.inputs import check_inputs
from jaxseq.typing import Array, Carry, Float, SegmentIds, Sequence


class BidirectionalCarries(NamedTuple):
    """The carries of the two cores."""

    forward: Carry
    backward: Carry


class Bidirectional(nn.Module):
    """``ys_t = [forward(xs)_t ; backward(xs reversed)_t]``, concatenated (Schuster & Paliwal 1997).

    Both cores ignore padded positions and reset where a document starts, so that each document is read in both
    directions by its own length.

    Raises:
      ValueError: an input of a wrong shape or dtype; a carry that is not its core's.
    """

    forward: Core
    backward: Core

    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Float[Array, "*B T F"]:
        """Encodes whole sequences, both cores from their initial carries."""
        check_inputs(type(self).__name__, xs, segment_ids)
        return self.with_states(self.initial_carries(xs.shape[:-2]), xs, segment_ids)[1]

    def initial_carries(self, batch_shape: tuple[int, ...], context: int = 0) -> BidirectionalCarries:
        """The initial carry of each core; works unbound."""
        return BidirectionalCarries(
            self.forward.initial_carry(batch_shape, context), self.backward.initial_carry(batch_shape, context)
        )

    def with_states(
        self, carries: BidirectionalCarries, xs: Sequence, segment_ids: SegmentIds | None = None
    ) -> tuple[BidirectionalCarries, Float[Array, "*B T F"]]:
        """Encodes whole sequences from given carries; returns the final ones too, as torch's recurrent layers do.

        ``encoder.apply(variables, carries, xs, segment_ids, method="with_states")``. The carry of ``forward`` precedes
        the first real position and is returned after the last one. That of ``backward`` follows the last real position
        and is returned after the first one. If a row holds several documents, a given state belongs to the document
        that its core reads first.
        """
        check_inputs(type(self).__name__, xs, segment_ids)
        if not isinstance(carries, BidirectionalCarries):
            raise ValueError(f"Bidirectional needs BidirectionalCarries, not {type(carries).__name__}")
        reversed_ids = None if segment_ids is None else jnp.flip(segment_ids, -1)
        forward, ahead = self.forward(carries.forward, xs, segment_ids)
        backward, behind = self.backward(carries.backward, jnp.flip(xs, -2), reversed_ids)
        return BidirectionalCarries(forward, backward), jnp.concatenate([ahead, jnp.flip(behind, -2)], axis=-1)

    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> None:
        """Raises an error for a caller who takes this encoder for a core.

        Raises:
          TypeError: always.
        """
        raise TypeError(
            "Bidirectional is an encoder of whole sequences: it looks ahead, so it has no carry and can neither stream "
            "nor generate. Use a core of jaxseq.cores.CORES for that"
        )
