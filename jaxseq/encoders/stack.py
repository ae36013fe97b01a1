"""A sequence of encoders, and a Transformer block around an encoder."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.encoders.encoder import Encoder
from jaxseq.layers import LayerNorm, Sublayer
from jaxseq.ops.inputs import check_inputs
from jaxseq.ops.segments import without_padding
from jaxseq.typing import DType, Features, SegmentIds, Sequence


class EncoderStack(nn.Module):
    """Encoders, each on the output of the one before; ``norm`` adds a final LayerNorm, as pre-norm blocks need.

    Raises:
      ValueError: an input of a wrong shape or dtype.
    """

    encoders: tuple[Encoder, ...]
    norm: bool = False
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Features:
        """Runs them in order."""
        check_inputs(type(self).__name__, xs, segment_ids)
        for encoder in self.encoders:
            xs = encoder(xs, segment_ids)
        if not self.norm:
            return xs
        return without_padding(LayerNorm(self.dtype, self.param_dtype, self.epsilon, name="norm_out")(xs), segment_ids)


class EncoderBlock(nn.Module):
    """A Transformer block around any encoder: the encoder, then a feed-forward layer, each in a residual.

    ``norm="post"`` is the order of Vaswani et al. (2017): sublayer, add, normalize. ``"pre"`` normalizes the input of
    each sublayer instead. Dropout is applied to the output of each sublayer, before it is added.

    Raises:
      ValueError: an input of a wrong shape or dtype, an output of another width than the input, or ``norm`` is unknown.
    """

    encoder: Encoder
    feed_forward: nn.Module | None = None
    norm: str = "pre"
    dropout: float = 0.0
    dtype: DType = jnp.float32
    param_dtype: DType = jnp.float32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, xs: Sequence, segment_ids: SegmentIds | None = None) -> Features:
        """Applies both sublayers."""
        check_inputs(type(self).__name__, xs, segment_ids)
        options: dict[str, Any] = {"norm": self.norm, "dropout": self.dropout}
        options |= {"dtype": self.dtype, "param_dtype": self.param_dtype, "epsilon": self.epsilon}
        encoder = Sublayer(name="encoder_sublayer", **options)
        xs = encoder(lambda x: self.encoder(x, segment_ids), xs, segment_ids)
        if self.feed_forward is None:
            return xs
        return Sublayer(name="feed_forward_sublayer", **options)(self.feed_forward, xs, segment_ids)
