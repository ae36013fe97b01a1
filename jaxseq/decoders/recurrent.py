"""A decoder without attention: the source is known by a summary alone."""

from typing import Any

from jaxseq.cores import Core
from jaxseq.decoders.decoder import Decoder
from jaxseq.layers import Fusion
from jaxseq.ops import segments
from jaxseq.typing import Array, Carry, Features, Float, SegmentIds, Sequence


class RecurrentDecoder(Decoder):
    """A core that knows its source by its first state (``Bridge``) and, with ``fusion``, by the summary at every step.

    No attention: one vector holds the whole source (Sutskever et al. 2014; with ``fusion`` Cho et al. 2014).
    """

    core: Core
    fusion: Fusion | None = None

    @property
    def features(self) -> int:
        """The core's."""
        return self.core.features

    def prepare_memory(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> Float[Array, "*B E"] | None:
        """The summary, where it is read at every step.

        Raises:
          ValueError: there is none, for want of a bridge.
        """
        if summary is None:
            raise ValueError("a RecurrentDecoder knows its source by a summary alone: give the model a Bridge")
        return None if self.fusion is None else summary

    def initial_carry(self, memory: Any, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The core's."""
        return self.core.initial_carry(batch_shape, context)

    def __call__(
        self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None, memory: Float[Array, "*B E"] | None
    ) -> tuple[Carry, Features]:
        """The core over inputs that the summary has joined."""
        if self.fusion is not None:
            assert memory is not None
            xs = self.fusion(segments.without_padding(xs, segment_ids), memory[..., None, :])
        return self.core(carry, xs, segment_ids)
