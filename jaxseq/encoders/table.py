"""Encoders by name, for command lines."""

from typing import Any

import jax.numpy as jnp

from jaxseq.cores import Positions, make_core, split_cores
from jaxseq.cores.wrappers import JOINS
from jaxseq.encoders.bidirectional import Bidirectional
from jaxseq.encoders.core_encoder import CoreEncoder
from jaxseq.encoders.encoder import Encoder
from jaxseq.encoders.self_attention import SelfAttention
from jaxseq.encoders.stack import EncoderBlock, EncoderStack
from jaxseq.layers import AttentionPositions, FeedForward, MultiHeadAttention
from jaxseq.layers.sublayer import Norm
from jaxseq.typing import DType


def make_encoder(
    name: str,
    features: int,
    layers: int = 1,
    *,
    bidirectional: bool = True,
    feed_forward: int | None = None,
    num_heads: int | None = None,
    positions: str | AttentionPositions = "add",
    norm: Norm = "pre",
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    dtype: DType = jnp.float32,
    param_dtype: DType = jnp.float32,
    epsilon: float = 1e-6,
) -> EncoderStack:
    """An encoder of features: ``"transformer"`` (self-attention), or layers of the core of that name.

    Args:
      name: ``"transformer"``, a name of ``jaxseq.cores.make_core``, or a list of these (``jaxseq.cores.split_cores``).
      features: the width of the output.
      layers: the number of layers; of a list, the number of times that it is repeated.
      bidirectional: run a core in both directions, half the features each. Without it, forwards only.
      feed_forward: the width of the feed-forward layer; every layer is then a Transformer block. Without it, the first
        layer of cores has no residual, those above it have one.
      num_heads: the number of heads of self-attention; by default one for every 64 features where that divides, else
        one.
      positions: combines sinusoids with the input of self-attention (``"add"``, ``"concat"``, which needs an input
        narrower than ``features``), or the positions in the attention itself (``"rotary"``, ..., ``"none"``:
        ``encoders.SelfAttention``).
      norm: the position of the norm in each residual (``layers.Sublayer``).
      dropout: the rate at the output of each sublayer.
      attention_dropout: the rate of the weights of self-attention.
      dtype: the dtype of the computation.
      param_dtype: the dtype of the parameters.
      epsilon: added to the variance in every norm of the blocks and of the stack.

    Raises:
      ValueError: an unknown core, or odd ``features`` for two directions.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    names = split_cores(name) * layers
    transformer = "transformer" in names
    if bidirectional and {*names} != {"transformer"} and features % 2:
        raise ValueError(f"features={features} must be even for bidirectional=True")

    def mixer(name: str) -> Encoder:
        if name == "transformer":
            inner = "none" if positions in JOINS else positions
            heads: dict[str, Any] = {"num_heads": num_heads, "attention_dropout": attention_dropout}
            return SelfAttention(MultiHeadAttention(features, **heads, **types), inner)
        if not bidirectional:
            return CoreEncoder(make_core(name, features, **types))
        return Bidirectional(*(make_core(name, features // 2, **types) for _ in range(2)))

    def block(name: str) -> EncoderBlock:
        layer = None if feed_forward is None else FeedForward(features, feed_forward, **types)
        return EncoderBlock(mixer(name), layer, norm=norm, dropout=dropout, epsilon=epsilon, **types)

    bare = feed_forward is None and names[0] != "transformer"
    encoders: list[Encoder] = [mixer(names[0])] if bare else []
    encoders += [block(name) for name in names[bare:]]
    ends_with_block = isinstance(encoders[-1], EncoderBlock)
    if transformer and positions in JOINS:
        encoders.insert(0, CoreEncoder(Positions(features, join=str(positions), **types)))
    return EncoderStack(tuple(encoders), norm=norm == "pre" and ends_with_block, epsilon=epsilon, **types)
