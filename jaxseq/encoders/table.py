"""Encoders by name, for command lines: any core of ``jaxseq.cores.CORES`` can be one."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import Positions, make_core
from jaxseq.encoders.bidirectional import Bidirectional
from jaxseq.encoders.core_encoder import CoreEncoder
from jaxseq.encoders.self_attention import SelfAttention
from jaxseq.encoders.stack import EncoderBlock, EncoderStack
from jaxseq.layers import FeedForward, MultiHeadAttention
from jaxseq.typing import DType


def make_encoder(
    name: str,
    features: int,
    layers: int = 1,
    *,
    bidirectional: bool = True,
    feed_forward: int | None = None,
    num_heads: int | None = None,
    positions: str | None = "add",
    norm: str = "pre",
    dropout: float = 0.0,
    dtype: DType = jnp.float32,
    param_dtype: DType = jnp.float32,
) -> EncoderStack:
    """``"transformer"`` (self-attention), or a core's name: run both ways, half the features each, or one way.

    With ``feed_forward`` (its width) every layer is a Transformer's block around that mixer; without, the first layer
    of cores is bare and those above it stand in residuals. ``positions`` says how sinusoids join the input of
    self-attention: ``"add"``, ``"concat"``, or None.

    Raises:
      ValueError: an unknown core, or odd features to be halved.
    """
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    attends = name == "transformer"
    if bidirectional and not attends and features % 2:
        raise ValueError(f"features={features} must be even for an encoder that reads both ways")

    def mixer() -> nn.Module:
        if attends:
            return SelfAttention(MultiHeadAttention(features, num_heads=num_heads, **types))
        if not bidirectional:
            return CoreEncoder(make_core(name, features, **types))
        return Bidirectional(*(make_core(name, features // 2, **types) for _ in range(2)))

    bare = feed_forward is None and not attends
    encoders = [mixer()] if bare else []
    for _ in range(layers - bare):
        feeds = None if feed_forward is None else FeedForward(features, feed_forward, **types)
        encoders.append(EncoderBlock(mixer(), feeds, norm=norm, dropout=dropout, **types))
    ends = norm == "pre" and isinstance(encoders[-1], EncoderBlock)
    if attends and positions is not None:
        encoders.insert(0, CoreEncoder(Positions(features, join=positions, **types)))
    return EncoderStack(tuple(encoders), norm=ends, **types)
