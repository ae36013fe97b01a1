"""Masked attention: the public functions and the choice of implementation."""

import math
from typing import Literal

import jax

from jaxseq.ops.attention.cudnn import attention_cudnn, why_not_cudnn
from jaxseq.ops.attention.decode import attention_decode
from jaxseq.ops.attention.masks import Mask
from jaxseq.ops.attention.reference import attention_reference, check_arguments, zero_hidden, zero_hidden_queries
from jaxseq.ops.attention.tiled import Tiled
from jaxseq.ops.attention.tiles import attention_tiles, choose_plan
from jaxseq.ops.implementations import choose_implementation, implementation_scope, unavailable
from jaxseq.typing import Array, Float

AttentionImplementation = Literal["auto", "reference", "decode", "tiles", "cudnn"]

REFERENCE_MAX_SCORES = 8192
"""Up to this many scores a head, "auto" takes "reference"."""

TILES_MIN_QUERIES = 16
"""With fewer queries (a decoding step), "auto" takes "decode" on a CPU and "reference" elsewhere."""


def attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    *,
    mask: Mask | None = None,
    bias: Tiled | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    implementation: AttentionImplementation = "auto",
) -> Float[Array, "*B T N Hv"]:
    """``softmax(capped(scale · query keyᵀ) + bias, over the visible keys) · value``, exact.

    N is a multiple of M: each key-value head serves N / M consecutive query heads and is not repeated in memory. A
    query without visible keys gives zeros and zero gradients. ``capped(s) = soft_cap · tanh(s / soft_cap)`` where there
    is a soft cap (Gemma 2, arXiv:2408.00118, section 2), else s. Softmax statistics and sums are at least float32.

    Keys that the mask hides from every query (of segment 0, padding, empty slots) and queries of segment 0 may hold
    anything, NaN included: they are zeroed on entry. A NaN in a key that some query sees reaches all queries.

    Args:
        query, key, value: of one dtype.
        mask: made by ``jaxseq.ops.masks``; None: every query sees every key.
        bias: ``positions.alibi(...)``, added after the soft cap.
        scale: 1/√H if None.
        soft_cap: bounds the scaled products.
        implementation: "reference" is the equation, with T × S scores in memory and every derivative; "decode" is the
            same for a few queries, without a transposed copy of keys and values; "tiles" has O(T) memory and one
            reverse-mode gradient (for forward mode and second derivatives use "reference"); "cudnn" is
            ``jax.nn.dot_product_attention`` on a CUDA device; "auto" chooses (``attention_implementation``).

    Raises:
        ValueError: shapes that do not fit, a soft cap that is not positive, an unknown implementation, or one that
            cannot compute this call, and why.
        TypeError: the mask is an array; wrap it as ``masks.dense(array)``.
    """
    check_arguments(query, key, value, mask, bias, soft_cap)
    chosen = choose_implementation(
        "attention",
        implementation,
        AttentionImplementation,
        lambda: attention_implementation(query, key, value, mask, bias=bias, soft_cap=soft_cap),
    )
    if chosen == "cudnn":
        reason = why_not_cudnn(query, key, value, mask, bias, soft_cap)
        if reason is not None:
            raise unavailable("attention", "cudnn", reason)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    if 0 in (query.shape[-3], key.shape[-3]):
        chosen = "reference"
    with implementation_scope("attention", chosen):
        if chosen == "reference":
            return attention_reference(query, key, value, mask=mask, bias=bias, scale=scale, soft_cap=soft_cap)
        query, key, value = zero_hidden(query, key, value, mask)
        if chosen == "decode":
            return zero_hidden_queries(attention_decode(query, key, value, mask, bias, scale, soft_cap), mask)
        if chosen == "cudnn":
            return attention_cudnn(query, key, value, mask, scale)
        plan = choose_plan(query, key, mask, float(scale), soft_cap)
        return zero_hidden_queries(attention_tiles(query, key, value, mask, bias, plan), mask)


def attention_implementation(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    mask: Mask | None = None,
    *,
    bias: Tiled | None = None,
    soft_cap: float | None = None,
) -> str:
    """The implementation that ``"auto"`` takes for this call on the default device, for reports.

    cuDNN where it can compute exactly this call; the reference for few scores or few queries (a decoding step), for
    which a CPU takes "decode"; else tiles.
    """
    if why_not_cudnn(query, key, value, mask, bias, soft_cap) is None:
        return "cudnn"
    T, S = query.shape[-3], key.shape[-3]
    if T < TILES_MIN_QUERIES < S and jax.default_backend() == "cpu":
        return "decode"
    return "reference" if T < TILES_MIN_QUERIES or T * S <= REFERENCE_MAX_SCORES else "tiles"
