"""Decoders: cores that read a memory. The splitting law holds for them with the memory as a constant.

memory = decoder.remember(encoded, segment_ids, summary)    # every projection of it, once a sequence
carry = decoder.initial_carry(memory, context)
carry, ys = decoder(carry, xs, segment_ids, memory)
"""

import abc
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import Core
from jaxseq.layers import Fusion, Memory, MemoryAttention, Sublayer
from jaxseq.layers.encoders import last_norm
from jaxseq.ops import segments
from jaxseq.ops.tiled import at_least_float32
from jaxseq.typing import Array, Carry, DType, Features, Float, SegmentIds, Sequence


class Decoder(nn.Module, abc.ABC):
    """Abstract: ``decoder(carry, xs, segment_ids, memory) -> (carry, ys)``, a core but for the memory.

    ``features`` (a field or a property) is the width of what it puts out. The memory is any pytree whose leaves lead
    with the batch dimensions.
    """

    @abc.abstractmethod
    def remember(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> Any:
        """What the decoder reads of an encoded sequence and of its summary (None without a bridge)."""

    @abc.abstractmethod
    def initial_carry(self, memory: Any, batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """The carry before anything was written, able to look ``context`` positions back; works unbound."""

    @abc.abstractmethod
    def __call__(
        self, carry: Carry, xs: Sequence, segment_ids: SegmentIds | None, memory: Any
    ) -> tuple[Carry, Features]:
        """Writes a stretch, going on from ``carry``."""


class Attending(NamedTuple):
    """A core's carry, and the weights (mean over heads) by which the last real position read the memory."""

    core: Carry
    weights: Float[Array, "*B S"]


def attended(carry: Carry) -> Float[Array, "*B S"]:
    """The last attention's weights in a decoder's carry: what ``decoding.Coverage`` takes.

    Raises:
      ValueError: the decoder attends to nothing.
    """
    found = _attending(carry)
    if not found:
        raise ValueError("this decoder attends to nothing: its carry holds no attention weights")
    return found[-1].weights


def _attending(node: Any) -> list[Attending]:
    if isinstance(node, Attending):
        return [node]
    return [part for child in node for part in _attending(child)] if isinstance(node, tuple) else []


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

    def remember(
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


class Attentive(Decoder):
    """Abstract: a core beside attention over the memory."""

    core: Core
    attention: MemoryAttention

    @property
    def features(self) -> int:
        """The core's."""
        return self.core.features

    def remember(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> Memory:
        """The attention's keys and values."""
        return self.attention.project(encoded, segment_ids)

    def initial_carry(self, memory: Memory, batch_shape: tuple[int, ...], context: int = 0) -> Attending:
        """The core's, and no weights."""
        weights = jnp.zeros(memory.keys.shape[:-2], at_least_float32(memory.keys.dtype))
        return Attending(self.core.initial_carry(batch_shape, context), weights)


class DecoderBlock(Attentive):
    """Core, attention over the memory, feed-forward layer, each in a residual: a Transformer's block around any core.

    With ``Attention`` as its core, the decoder's block of Vaswani et al. (2017), its keys and values of the memory both
    from the encoder. ``norm`` and ``dropout`` stand as in ``Sublayer``.
    """

    feed_forward: nn.Module | None = None
    norm: str = "pre"
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @nn.compact
    def __call__(
        self, carry: Attending, xs: Sequence, segment_ids: SegmentIds | None, memory: Memory
    ) -> tuple[Attending, Features]:
        """Mixes what was written, reads the memory, bends."""
        options: dict[str, Any] = {"norm": self.norm, "dropout": self.dropout}
        options |= {"dtype": self.dtype, "param_dtype": self.param_dtype}
        core, weights = carry

        def mixed(xs: Sequence) -> Features:
            nonlocal core
            core, ys = self.core(core, xs, segment_ids)
            return ys

        def read(xs: Sequence) -> Features:
            nonlocal weights
            if xs.shape[-2] != 1:
                weights = _last(lambda x: self.attention.weights(x, memory), xs, segment_ids, weights)
                return self.attention(xs, memory)
            context, each = self.attention.read(xs, memory)  # a step: the weights are used, and kept
            weights = _kept(each.mean(-3)[..., 0, :], segment_ids, weights)
            return context

        xs = Sublayer(name="mixed", **options)(mixed, xs, segment_ids)
        xs = Sublayer(name="attended", **options)(read, xs, segment_ids)
        if self.feed_forward is not None:
            xs = Sublayer(name="fed", **options)(self.feed_forward, xs, segment_ids)
        return Attending(core, weights), xs


def _last(weights_of: Any, xs: Sequence, segment_ids: SegmentIds | None, before: Float[Array, "*B S"]) -> Array:
    """The weights (mean over heads) of the last real position; those before where there is none."""
    if xs.shape[-2] == 0:
        return before
    if segment_ids is None:
        return weights_of(xs[..., -1:, :]).mean(-3)[..., 0, :].astype(before.dtype)
    real = segments.is_real(segment_ids)
    place = jnp.argmax(jnp.where(real, jnp.arange(1, xs.shape[-2] + 1), 0), axis=-1)
    query = jnp.take_along_axis(xs, place[..., None, None], axis=-2)
    after = weights_of(query).mean(-3)[..., 0, :].astype(before.dtype)
    return jnp.where(real.any(-1)[..., None], after, before)


def _kept(after: Float[Array, "*B S"], segment_ids: SegmentIds | None, before: Float[Array, "*B S"]) -> Array:
    """The new weights, where the one position is real."""
    after = after.astype(before.dtype)
    return after if segment_ids is None else jnp.where(segments.is_real(segment_ids), after, before)


class DecoderStack(Decoder):
    """Positions, if given, then decoders in a row, each with its own memory; with ``norm`` a LayerNorm behind them."""

    decoders: tuple[Decoder, ...]
    positions: Core | None = None
    norm: bool = False
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32

    @property
    def features(self) -> int:
        """The last decoder's."""
        return self.decoders[-1].features

    def remember(
        self, encoded: Float[Array, "*B S D"], segment_ids: SegmentIds | None, summary: Float[Array, "*B E"] | None
    ) -> tuple[Any, ...]:
        """Each decoder's."""
        return tuple(decoder.remember(encoded, segment_ids, summary) for decoder in self.decoders)

    def initial_carry(self, memory: tuple[Any, ...], batch_shape: tuple[int, ...], context: int = 0) -> Carry:
        """Each one's."""
        first = () if self.positions is None else self.positions.initial_carry(batch_shape, context)
        pairs = zip(self.decoders, memory, strict=True)
        return (first, *(decoder.initial_carry(own, batch_shape, context) for decoder, own in pairs))

    @nn.compact
    def __call__(
        self, carry: tuple[Carry, ...], xs: Sequence, segment_ids: SegmentIds | None, memory: tuple[Any, ...]
    ) -> tuple[Carry, Features]:
        """Runs them in order."""
        first, *rest = carry
        if self.positions is not None:
            first, xs = self.positions(first, xs, segment_ids)
        after = [first]
        for decoder, before, own in zip(self.decoders, rest, memory, strict=True):
            one, xs = decoder(before, xs, segment_ids, own)
            after.append(one)
        return tuple(after), last_norm(self, xs, segment_ids) if self.norm else xs
