"""Decoders by name, for command lines: any core of ``jaxseq.cores.CORES`` can stand in one."""

from functools import partial
from typing import Any

import jax.numpy as jnp

from jaxseq.cores import Positions, Stacked, block, make_core
from jaxseq.decoders.attention_decoder import AttentionDecoder
from jaxseq.decoders.block import DecoderBlock
from jaxseq.decoders.decoder import Decoder
from jaxseq.decoders.recurrent import RecurrentDecoder
from jaxseq.decoders.stack import DecoderStack
from jaxseq.layers import ATTENTIONS, FeedForward, Fusion
from jaxseq.typing import DType

DECODERS = ("rnn", "attention", "transformer")


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
