"""Decoders by name, for command lines."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import jax.numpy as jnp

from jaxseq.cores import Core, Positions, Stacked, block, make_core, split_cores
from jaxseq.cores.wrappers import JOINS
from jaxseq.decoders.attention_decoder import AttentionDecoder
from jaxseq.decoders.block import DecoderBlock
from jaxseq.decoders.decoder import Decoder
from jaxseq.decoders.recurrent import RecurrentDecoder
from jaxseq.decoders.stack import DecoderStack
from jaxseq.layers import ATTENTIONS, AttentionPositions, FeedForward, Fusion, MemoryAttention
from jaxseq.layers.fusion import FUSIONS, FusionKind
from jaxseq.layers.sublayer import Norm
from jaxseq.typing import DType

DecoderKind: TypeAlias = Literal["rnn", "attention", "transformer"]
DECODERS: tuple[str, ...] = get_args(DecoderKind)


def make_decoder(
    kind: DecoderKind,
    name: str,
    features: int,
    layers: int = 1,
    *,
    attention: str = "additive",
    fusion: FusionKind | None = "concat",
    feed_forward: int | None = None,
    num_heads: int | None = None,
    positions: str | AttentionPositions = "add",
    norm: Norm = "pre",
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
    dtype: DType = jnp.float32,
    param_dtype: DType = jnp.float32,
    epsilon: float = 1e-6,
) -> Decoder:
    """A decoder around cores of one name, or of a list.

    Args:
      kind: ``"rnn"`` reads a summary of the source (``RecurrentDecoder``), ``"attention"`` attends to the source from
        every state (``AttentionDecoder``), ``"transformer"`` is a stack of ``DecoderBlock``.
      name: ``"transformer"`` (causal self-attention), a name of ``jaxseq.cores.make_core``, or a list of these
        (``jaxseq.cores.split_cores``).
      features: the width of the output.
      layers: the number of cores; of a list, the number of times that it is repeated.
      attention: a name of ``jaxseq.layers.ATTENTIONS``; not read by ``"rnn"``.
      fusion: joins the summary or context to each input (``layers.Fusion``); None for an ``"rnn"`` that reads the
        summary only through its initial state. Not read by ``"transformer"``.
      feed_forward: the width of each block's feed-forward layer, None for none; read by ``"transformer"`` alone.
      num_heads: the number of heads of multi-head attention and causal self-attention; by default one for every 64
        features where that divides, else one.
      positions: joins sinusoids to the input of blocks with self-attention (``"add"``, ``"concat"``, which needs an
        input narrower than ``features``), or the positions in the self-attention itself (``"rotary"``, ..., ``"none"``:
        ``cores.Attention``).
      norm: the position of the norm in each residual (``layers.Sublayer``).
      dropout: the rate at the output of each sublayer.
      attention_dropout: the rate of the weights of attention to the memory and of causal self-attention.
      dtype: the dtype of the computation.
      param_dtype: the dtype of the parameters.
      epsilon: added to the variance in every norm of the residuals and of the stack.

    Raises:
      ValueError: an unknown kind, core or attention, or no fusion for ``"attention"``.
    """
    if kind not in DECODERS:
        raise ValueError(f"kind={kind!r}; known: {', '.join(DECODERS)}")
    if attention not in ATTENTIONS:
        raise ValueError(f"attention={attention!r}; known: {', '.join(ATTENTIONS)}")
    if kind == "attention" and fusion is None:
        raise ValueError(f"fusion=None; kind='attention' needs one: {', '.join(FUSIONS)}")
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": param_dtype}
    residual: dict[str, Any] = {"norm": norm, "dropout": dropout, "epsilon": epsilon, **types}
    names = split_cores(name) * layers
    causal = "transformer" in names
    joined = positions in JOINS
    drops: dict[str, Any] = {"attention_dropout": attention_dropout}
    self_attention: dict[str, Any] = {}
    if causal:
        inner = "none" if joined else positions
        self_attention = {"positions": inner, "use_bias": True, "num_heads": num_heads, **drops}
    cores = [
        make_core("attention", features, **self_attention, **types)
        if name == "transformer"
        else make_core(name, features, **types)
        for name in names
    ]
    multi_head = attention == "multi_head"
    sizes = {"num_heads": num_heads} if multi_head else {}
    attends = partial(ATTENTIONS[attention], features, **sizes, **drops, **types)
    if kind == "transformer":
        if not multi_head:
            attends = partial(attends, value_features=features)  # the width of the residual
        blocks = _blocks(cores, attends, feed_forward, residual)
        sinusoids = Positions(features, join=str(positions), **types) if causal and joined else None
        return DecoderStack(blocks, sinusoids, norm=norm == "pre", epsilon=epsilon, **types)
    core = Stacked((cores[0], *(block(core, **residual) for core in cores[1:])))
    join = None if fusion is None else Fusion(fusion, **types)
    return RecurrentDecoder(core, join) if kind == "rnn" or join is None else AttentionDecoder(core, attends(), join)


def _blocks(
    cores: list[Core],
    make_attention: Callable[[], MemoryAttention],
    feed_forward: int | None,
    residual: dict[str, Any],
) -> tuple[DecoderBlock, ...]:
    """A Transformer block around each core."""
    types = {name: residual[name] for name in ("dtype", "param_dtype")}
    layers = [None if feed_forward is None else FeedForward(core.features, feed_forward, **types) for core in cores]
    pairs = zip(cores, layers, strict=True)
    return tuple(DecoderBlock(core, make_attention(), layer, **residual) for core, layer in pairs)
