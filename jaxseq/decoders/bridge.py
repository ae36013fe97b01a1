"""The initial state of a decoder, computed from a summary of the encoded source."""

from typing import Literal, TypeAlias, get_args

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import StateCarry
from jaxseq.decoders.decoder import Decoder
from jaxseq.layers.dense import Dense
from jaxseq.ops import segments
from jaxseq.ops.inputs import check_inputs
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Carry, DType, Float, Int, SegmentIds

Summary: TypeAlias = Literal["last", "first_and_last", "mean", "max"]
SUMMARIES: tuple[str, ...] = get_args(Summary)


class Bridge(nn.Module):
    """Summarizes an encoded sequence as one vector s, and computes the decoder's initial states from it.

    ``summary``: ``"last"`` is the output at the last real position (Cho et al. 2014; Sutskever et al. 2014),
    ``"first_and_last"`` concatenates those at the first and the last (both final states of a bidirectional encoder),
    ``"mean"`` is the mean over the real positions, ``"max"`` the maximum of each feature over them. With ``initial``
    each state of the decoder starts at ``h = tanh(W s + b)`` (Bahdanau et al. 2015), and an LSTM's cell at
    ``c = W s + b``; without it, at zero.

    Raises:
      ValueError: an unknown summary, ``initial`` for a decoder without a state ``h``, or an argument of another shape
        or dtype.
    """

    summary: str = "last"
    initial: bool = True
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def __call__(self, ys: Float[Array, "*B S D"], segment_ids: SegmentIds | None = None) -> Float[Array, "*B E"]:
        """The summary of each sequence; zeros for one without real positions."""
        if self.summary not in SUMMARIES:
            raise ValueError(f"summary={self.summary!r}; known: {', '.join(SUMMARIES)}")
        check_inputs("Bridge", ys, segment_ids)
        ids = jnp.ones(ys.shape[:-1], jnp.int32) if segment_ids is None else segment_ids
        real = segments.is_real(ids)
        ys = segments.without_padding(ys, ids)
        if self.summary == "max":
            highest = jnp.max(ys, axis=-2, initial=-jnp.inf, where=real[..., None])
            return jnp.where(real.any(-1, keepdims=True), highest, 0)
        if self.summary == "mean":
            wide = at_least_float32(ys.dtype)  # a sum of many positions may exceed the range of float16
            count = jnp.maximum(real.sum(-1, keepdims=True), 1).astype(wide)
            return (ys.sum(-2, dtype=wide) / count).astype(ys.dtype)
        if ys.shape[-2] == 0:
            width = ys.shape[-1] * (1 if self.summary == "last" else 2)
            return jnp.zeros((*ys.shape[:-2], width), ys.dtype)
        order = jnp.where(real, jnp.arange(1, ids.shape[-1] + 1), 0)
        last = _take(ys, jnp.argmax(order, axis=-1))
        return last if self.summary == "last" else jnp.concatenate([_take(ys, jnp.argmax(real, axis=-1)), last], -1)

    @nn.compact
    def initialize(self, decoder: Decoder, carry: Carry, summary: Float[Array, "*B E"]) -> Carry:
        """The decoder's carry with its states computed from the summary; unchanged without ``initial``."""
        if not self.initial:
            return carry
        count = 0

        def project(name: str, zeros: Float[Array, "*B F"]) -> Float[Array, "*B F"]:
            types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            dense = Dense(zeros.shape[-1], name=f"{name}_{count}", parent=self, **types)  # else the decoder's
            new = dense(summary.astype(self.dtype))
            if new.shape != zeros.shape:
                raise ValueError(
                    f"Bridge needs a summary of shape [*B, E] with batch dimensions {zeros.shape[:-1]} as in the "
                    f"carry, not {summary.shape}"
                )
            return (jnp.tanh(new) if name == "h" else new).astype(zeros.dtype)

        def set_state(part: StateCarry) -> StateCarry:
            nonlocal count
            if not hasattr(part.state, "h"):
                return part
            names = part.state._fields if part.state._fields == ("h", "c") else ("h",)
            fields = {name: project(name, getattr(part.state, name)) for name in names}
            count += 1
            return part._replace(state=part.state._replace(**fields))

        carry = decoder.map_states(set_state, carry)
        if not count:
            raise ValueError("the decoder has no state h that a summary can set: use Bridge(initial=False)")
        return carry


def _take(ys: Float[Array, "*B S D"], place: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    """The features at one position of each sequence."""
    return jnp.take_along_axis(ys, place[..., None, None], axis=-2)[..., 0, :]
