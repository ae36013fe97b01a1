"""Attention by tiles small enough that every kind of tile occurs."""

import functools
import math

from jaxseq.ops.attention.biases import as_bias
from jaxseq.ops.attention.dropout import make_dropout
from jaxseq.ops.attention.parts import Parts
from jaxseq.ops.attention.tile_grid import Plan
from jaxseq.ops.attention.tiles import tiled_attention


def tiled(
    query,
    key,
    value,
    *,
    mask=None,
    bias=None,
    soft_cap=None,
    dropout_rate=0.0,
    dropout_key=None,
    tiles=(8, 9),
    unrolled=False,
):
    """``attention`` of ``[B, T, N, H]``."""
    batch, scale = query.shape[:1], 1 / math.sqrt(query.shape[-1])
    parts = Parts(mask, as_bias(bias), make_dropout(dropout_rate, dropout_key, batch, query.shape[2]))
    plan = Plan(scale, *tiles, key.shape[2], soft_cap, unrolled=unrolled)
    return tiled_attention(query, key, value, parts.map(lambda part: part.flatten_batch(batch)), plan)


unrolled = functools.partial(tiled, tiles=(8, 8), unrolled=True)
"""The form without loops."""
