"""A decoder without attention, which reads one summary vector of its source."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from jaxseq.cores import Core, StateCarry
from jaxseq.decoders.decoder import Decoder
from jaxseq.layers import Fusion
from jaxseq.ops.inputs import check_inputs
from jaxseq.typing import Array, Carry, Features, Float, SegmentIds, Sequence


class RecurrentDecoder(Decoder):
    """A core that starts from a summary of the source (``Bridge``) and, with ``fusion``, reads it at every step too.

    One vector holds the whole source (Sutskever et al. 2014; with ``fusion`` Cho et al. 2014).
    """

    core: Core
    fusion: Fusion | None = None

    @property
    def features(self) -> int:
        """The width of the core's output."""
        return self.core.features

    def prepare_memory(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> Float[Array, "*B E"] | None:
        """The summary if there is a ``fusion``, else None.

        Raises:
          ValueError: there is no summary, because the model has no bridge, or an argument has other batch dimensions.
        """
        if summary is None:
            raise ValueError("a RecurrentDecoder reads the source only through a summary: give the model a Bridge")
        check_inputs("RecurrentDecoder, for a memory,", encoded, segment_ids)
        _check_summary(summary, encoded.shape[:-2])
        return None if self.fusion is None else summary

    def initial_carry(self, memory: Any, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The core's initial carry."""
        return self.core.initial_carry(batch_shape, context)

    def run(
        self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None, memory: Float[Array, "*B E"] | None
    ) -> tuple[Carry, Features]:
        """Runs the core, its inputs joined with the summary.

        Raises:
          ValueError: the memory is not one summary for each row.
        """
        if self.fusion is not None:
            _check_summary(memory, xs.shape[:-2])
            assert memory is not None
            xs = self.fusion(xs, memory[..., None, :])
        return self.core(carry, xs, segment_ids)

    def map_states(self, function: Callable[[StateCarry], StateCarry], carry: Carry) -> Carry:
        """The carry with ``function`` applied to each recurrent state of the core."""
        return self.core.map_states(function, carry)

    def last_attention_weights(self, carry: Carry) -> Float[Array, "*B S"]:
        """Raises an error: there is no attention.

        Raises:
          ValueError: always.
        """
        raise ValueError("a RecurrentDecoder has no attention, so there are no attention weights")


def _check_summary(summary: Any, batch: tuple[int, ...]) -> None:
    """Raises ValueError unless there is one vector for each row."""
    if summary is None or jnp.ndim(summary) != len(batch) + 1 or jnp.shape(summary)[:-1] != batch:
        found = "None" if summary is None else f"{jnp.result_type(summary)}{jnp.shape(summary)}"
        raise ValueError(
            f"RecurrentDecoder needs a summary of shape [*B, E] with batch dimensions {batch}, not {found}"
        )
