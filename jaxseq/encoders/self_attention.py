"""Self-attention without a causal mask."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.layers import AttentionPositions, MemoryAttention, attention_positions
from jaxseq.ops import segments
from jaxseq.ops.inputs import check_inputs
from jaxseq.ops.segments import without_padding
from jaxseq.typing import DType, Features, SegmentIds, Sequence


class SelfAttention(nn.Module):
    """Every position attends to all positions of its document; the sequence itself is the memory.

    Without ``positions`` it is equivariant to permutations: it does not know the order of its inputs unless they encode
    it (``cores.Positions``). ``positions`` are those of ``cores.Attention``: ``"rotary"``, ``"alibi"``, ``"relative"``,
    or an ``AttentionPositions``. Padded positions are not counted.

    Raises:
      ValueError: unknown ``positions``, inputs or segment ids of a wrong shape or dtype, or a position outside given
        rotary tables.
    """

    attention: MemoryAttention
    positions: str | AttentionPositions = "none"

    @property
    def param_dtype(self) -> DType:
        """The dtype of the attention's parameters."""
        return self.attention.param_dtype

    @nn.compact
    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Features:
        """The contexts; zeros at padded positions."""
        check_inputs("SelfAttention", xs, segment_ids)
        positions = attention_positions(self.positions)
        places, _ = segments.count_positions(jnp.zeros(xs.shape[:-2], jnp.int32), xs.shape[:-1], segment_ids)
        given = None if segment_ids is None else places
        if segment_ids is not None:  # an id used again is another document
            starts = segments.starts(segment_ids)
            count = 1 + jnp.cumsum(starts, axis=-1, dtype=jnp.int32)
            segment_ids = jnp.where(segments.is_real(segment_ids), count, jnp.zeros_like(count))
        rotate = partial(positions.rotate, positions=places)
        bias = positions.bias(self, self.attention.heads, given, given, causal=False)
        memory = self.attention.project(xs, segment_ids, rotate)
        ys = self.attention(xs, memory, segment_ids, rotate=rotate, bias=bias)
        return without_padding(ys, segment_ids)
