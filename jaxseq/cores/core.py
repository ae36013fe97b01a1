"""The contract every core obeys, and what cores share to obey it.

    core.apply(variables, carry, xs, segment_ids) -> (carry, ys)

**The splitting law.** Split a sequence anywhere, pass the carry along, and outputs, final carry and gradients
are those of the whole. A step is a split of length one; streaming, truncated back-propagation and decoding
follow.

Padding (id 0) changes neither the carry nor any output or gradient at a real position, even where it holds NaN;
outputs there are zero. A change of id begins afresh, also when it falls on a split: the carry remembers the last
id. Leaves of a carry all lead with the batch dimensions. Dropout is active exactly if a ``dropout`` key is given.
"""

import abc
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxseq.ops import segments
from jaxseq.ops.segments import without_padding as without_padding
from jaxseq.typing import Array, Bool, Carry, Int, SegmentIds, Sequence


class Core(nn.Module, abc.ABC):
    """Abstract: mixes information along time under the splitting law.

    Every core has ``features`` (a field, or a property of what it wraps): the width of what it puts out.
    """

    @abc.abstractmethod
    def initial_carry(self, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The carry before anything was seen, able to look ``context`` positions back; works unbound."""

    @abc.abstractmethod
    def __call__(self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None = None) -> tuple[Carry, Sequence]:
        """Mixes a stretch of time, continuing from ``carry``."""


class StateCarry(NamedTuple):
    """The carry of a core whose whole memory is a state: the state, and the id of the last real position."""

    state: Any
    segment_id: Int[Array, "*B"]


def no_segment(batch_shape: tuple[int, ...]) -> Int[Array, "*B"]:
    """The id that stands for nothing seen yet."""
    return jnp.zeros(batch_shape, jnp.int32)


def count_heads(features: int, num_heads: int | None) -> int:
    """``num_heads``, or one for every 64 features where that divides, else one.

    Raises:
      ValueError: they do not divide ``features``.
    """
    heads = num_heads
    if heads is None:
        heads = features // 64 if features % 64 == 0 else 1
    if heads < 1 or features % heads:
        raise ValueError(f"features={features} is not divisible by num_heads={heads}")
    return heads


def entering(carry: StateCarry, segment_ids: SegmentIds | None) -> StateCarry:
    """The state to begin this stretch with, and the id to carry out of it.

    The state is put back to zeros where the first real position begins another document than the carry's.
    ``segment_ids=None`` goes on with the carry's document.
    """
    if segment_ids is None:
        return StateCarry(carry.state, jnp.where(carry.segment_id == 0, 1, carry.segment_id))
    ids = segment_ids.astype(carry.segment_id.dtype)
    first = segments.first_id(ids)
    afresh = (first != 0) & (carry.segment_id != 0) & (first != carry.segment_id)
    state = jax.tree.map(lambda s: jnp.where(_over(afresh, s), jnp.zeros_like(s), s), carry.state)
    return StateCarry(state, segments.last_id(ids, carry.segment_id))


def _over(mark: Bool[Array, "*B"], like: Array) -> Array:
    """The mark with as many dimensions as ``like``."""
    return mark.reshape(*mark.shape, *(1,) * (like.ndim - mark.ndim))
