"""From what an encoder puts out to what a decoder begins with."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import StateCarry
from jaxseq.ops import segments
from jaxseq.typing import Array, Carry, DType, Float, Int, SegmentIds

SUMMARIES = ("last", "ends", "mean")


class Bridge(nn.Module):
    """One vector that stands for a sequence, and the decoder's first state made of it.

    ``summary``: ``"last"`` is the output at the last real position (Cho et al. 2014; Sutskever et al. 2014), ``"ends"``
    those at the first and the last side by side (both final states, if the encoder is bidirectional), ``"mean"`` the
    mean over all that are real. With ``initial`` each state of the decoder begins at ``h = tanh(W s + b)`` (Bahdanau et
    al. 2015) and an LSTM's cell at ``c = W s + b``; else at zero.

    Raises:
      ValueError: an unknown summary, or an initial state is asked for and the decoder has none (``h``).
    """

    summary: str = "last"
    initial: bool = True
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    def __call__(self, ys: Float[Array, "*B S D"], segment_ids: SegmentIds | None = None) -> Float[Array, "*B E"]:
        """The summary of each sequence; zeros if nothing of it is real."""
        if self.summary not in SUMMARIES:
            raise ValueError(f"summary={self.summary!r}; known: {', '.join(SUMMARIES)}")
        ids = jnp.ones(ys.shape[:-1], jnp.int32) if segment_ids is None else segment_ids
        real = segments.is_real(ids)
        ys = segments.without_padding(ys, ids)
        if self.summary == "mean":
            count = jnp.maximum(real.sum(-1, keepdims=True), 1).astype(ys.dtype)
            return ys.sum(-2) / count
        order = jnp.where(real, jnp.arange(1, ids.shape[-1] + 1), 0)
        last = _at(ys, jnp.argmax(order, axis=-1))
        return last if self.summary == "last" else jnp.concatenate([_at(ys, jnp.argmax(real, axis=-1)), last], axis=-1)

    @nn.compact
    def begin(self, carry: Carry, summary: Float[Array, "*B E"]) -> Carry:
        """The carry with its states begun from the summary."""
        if not self.initial:
            return carry
        begun = 0

        def state(old: Float[Array, "*B F"], name: str) -> Float[Array, "*B F"]:
            types = {"dtype": self.dtype, "param_dtype": self.param_dtype}
            new = nn.Dense(old.shape[-1], name=f"{name}_{begun}", **types)(summary.astype(self.dtype))
            return (jnp.tanh(new) if name == "h" else new).astype(old.dtype)

        def walk(node: Any) -> Any:
            nonlocal begun
            if isinstance(node, StateCarry) and hasattr(node.state, "h"):
                names = node.state._fields if node.state._fields == ("h", "c") else ("h",)
                fields = {name: state(getattr(node.state, name), name) for name in names}
                begun += 1
                return node._replace(state=node.state._replace(**fields))
            if isinstance(node, tuple) and hasattr(node, "_fields"):
                return type(node)(*map(walk, node))
            return tuple(map(walk, node)) if isinstance(node, tuple) else node

        carry = walk(carry)
        if not begun:
            raise ValueError("the decoder has no state h to begin from a summary: take Bridge(initial=False)")
        return carry


def _at(ys: Float[Array, "*B S D"], place: Int[Array, "*B"]) -> Float[Array, "*B D"]:
    return jnp.take_along_axis(ys, place[..., None, None], axis=-2)[..., 0, :]
