"""Encoders and decoders by name, for command lines: any core of ``jaxseq.cores.CORES`` can be either."""

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jaxseq.cores import Positions, Stacked, block, make_core
from jaxseq.layers import (
    ATTENTIONS,
    Bidirectional,
    EncoderBlock,
    EncoderStack,
    FeedForward,
    Fusion,
    MultiHeadAttention,
    OneWay,
    SelfAttention,
)
from jaxseq.models.attention_decoder import AttentionDecoder
from jaxseq.models.decoders import Decoder, DecoderBlock, DecoderStack, RecurrentDecoder
from jaxseq.typing import DType

DECODERS = ("rnn", "attention", "transformer")


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
            return OneWay(make_core(name, features, **types))
        return Bidirectional(*(make_core(name, features // 2, **types) for _ in range(2)))

    bare = feed_forward is None and not attends
    encoders = [mixer()] if bare else []
    for _ in range(layers - bare):
        feeds = None if feed_forward is None else FeedForward(features, feed_forward, **types)
        encoders.append(EncoderBlock(mixer(), feeds, norm=norm, dropout=dropout, **types))
    ends = norm == "pre" and isinstance(encoders[-1], EncoderBlock)
    if attends and positions is not None:
        encoders.insert(0, OneWay(Positions(features, join=positions, **types)))
    return EncoderStack(tuple(encoders), norm=ends, **types)


def make_decoder(
    kind: str,
    name: str,
    features: int,
    layers: int = 1,
    *,
    attention: str = "additive",
    fusion: str | None = "concat",
    feed_forward: int | None = None,
    num_heads: int | None = None,
    positions: str | None = "add",
    norm: str = "pre",
    dropout: float = 0.0,
    dtype: DType = jnp.float32,
    param_dtype: DType = jnp.float32,
) -> Decoder:
    """A decoder around cores of that name (``"transformer"``: masked self-attention).

    ``kind``: ``"rnn"`` knows the source by a summary alone (read at every step if there is a ``fusion``);
    ``"attention"`` reads it anew from every state, the context joined by ``fusion``; ``"transformer"`` is a stack of
    blocks: the core, attention over the source, a feed-forward layer of width ``feed_forward``.

    Raises:
      ValueError: an unknown kind, core or attention.
    """
    if kind not in DECODERS:
        raise ValueError(f"decoder kind={kind!r}; known: {', '.join(DECODERS)}")
    if attention not in ATTENTIONS:
        raise ValueError(f"attention={attention!r}; known: {', '.join(ATTENTIONS)}")
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    options: dict[str, Any] = {"norm": norm, "dropout": dropout, **types}
    masked = name == "transformer"
    own: dict[str, Any] = {"positions": "none", "use_bias": True, "num_heads": num_heads} if masked else {}
    cores = [make_core("attention" if masked else name, features, **own, **types) for _ in range(layers)]
    blocks = kind == "transformer"
    attends: Any = ATTENTIONS[attention]
    sizes: dict[str, Any] = {"value_features": features} if blocks else {}  # as wide as what it is added to
    if attention == "multi_head":
        sizes = {"num_heads": num_heads}
    reads = partial(attends, features, **sizes, **types)
    if blocks:
        feeds = [None if feed_forward is None else FeedForward(features, feed_forward, **types) for _ in cores]
        parts = [DecoderBlock(core, reads(), feed, **options) for core, feed in zip(cores, feeds, strict=True)]
        sinusoids = None if positions is None or not masked else Positions(features, join=positions, **types)
        return DecoderStack(tuple(parts), sinusoids, norm=norm == "pre", **types)
    core = Stacked((cores[0], *(block(core, **options) for core in cores[1:])))
    joins = None if fusion is None else Fusion(fusion, **types)
    if kind == "rnn":
        return RecurrentDecoder(core, joins)
    if joins is None:
        raise ValueError("an attention decoder needs a fusion: add, multiply or concat")
    return AttentionDecoder(core, reads(), joins)
