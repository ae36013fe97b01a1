"""Masked attention: the public functions and the choice of implementation."""

import functools
from typing import Any, Literal

import jax

from jaxseq.ops.attention.biases import Bias, as_bias
from jaxseq.ops.attention.blocks import can_cut
from jaxseq.ops.attention.cudnn import attention_cudnn, why_not_cudnn
from jaxseq.ops.attention.decode import attention_decode
from jaxseq.ops.attention.dropout import make_dropout
from jaxseq.ops.attention.masks import Mask
from jaxseq.ops.attention.parts import Parts
from jaxseq.ops.attention.reference import (
    check_arguments,
    check_scale,
    reference,
    zero_hidden,
    zero_hidden_queries,
)
from jaxseq.ops.attention.ring import gathered_attention, ring_attention
from jaxseq.ops.attention.tiles import NARROW_WINDOW, attention_tiles, choose_plan
from jaxseq.ops.attention.unrolled import tiles_are_static
from jaxseq.ops.implementations import Choice, choose_implementation, implementation_scope, is_symbolic, unavailable
from jaxseq.ops.sequence_axis import SequenceAxis, find_sequence_axis, find_tensor_axis
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float, Key

AttentionImplementation = Literal["auto", "reference", "decode", "unrolled", "tiles", "cudnn"]

REFERENCE_MAX_SCORES = 8192
"""Up to this many scores a head, "auto" takes "reference"."""

UNROLLED_MAX_LENGTH, UNROLLED_MAX_SCORES = 1024, 2**22
"""On a CPU, "auto" takes "unrolled" for at most that many queries and keys, and scores of all heads.

Half as many queries and keys where the tiles that the mask leaves empty depend on arrays: only loops skip those.
"""

TILES_MIN_QUERIES = 16
"""With fewer queries (a decoding step), "auto" takes "decode" on a CPU and "reference" elsewhere."""


def attention(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    *,
    mask: Mask | None = None,
    bias: Bias | Float[Array, "..."] | None = None,
    scale: float | Float[Array, ""] | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
    implementation: AttentionImplementation = "auto",
) -> Float[Array, "*B T N Hv"]:
    """``drop(softmax(capped(scale · query keyᵀ) + bias, over the visible keys)) · value``, exact.

    N is a multiple of M: each key-value head serves N / M consecutive query heads and is not repeated in memory. A
    query without visible keys gives zeros and zero gradients. ``capped(s) = soft_cap · tanh(s / soft_cap)`` where there
    is a soft cap (Gemma 2, arXiv:2408.00118, section 2), else s. Softmax statistics and sums are at least float32.

    Keys that the mask hides from every query (of segment 0, padding, empty slots) and queries of segment 0 may hold
    anything, NaN included: they are zeroed on entry. A NaN in a key that some query sees reaches all queries.

    Args:
        query, key, value: of one dtype.
        mask: made by ``jaxseq.ops.masks``; None: every query sees every key.
        bias: an array that broadcasts to ``[*B, N, T, S]``, or ``positions.alibi(...)``, or
            ``positions.relative_bias(...)``, which take O(T) memory; it receives a gradient. -inf (and any score below
            -1e30) hides the key from the query.
        scale: 1/√H if None. A scalar array may be traced and receives a gradient; multiply the query by others.
        soft_cap: bounds the scaled products.
        dropout_rate: the probability with which a weight is set to zero; the others are divided by ``1 - rate``. The
            weights that are dropped depend on the key, batch element, head and indices alone, not on the
            implementation, and are not stored for the gradient.
        dropout_key: needed if the rate is positive.
        implementation: "reference" is the equation, with T × S scores in memory; "decode" is the same for a few
            queries, without a transposed copy of keys and values; "unrolled" is "tiles" without loops, for up to about
            1000 positions on a CPU; "tiles" has O(T) memory in reverse and forward mode,
            and in forward over reverse mode (reverse over reverse mode stores what the loops over tiles carry);
            "cudnn" is ``jax.nn.dot_product_attention`` on a CUDA device, with one reverse-mode gradient; "auto"
            chooses (``attention_implementation``). Ask for "tiles" to use forward mode where "auto" takes "cudnn".

    Raises:
        ValueError: shapes that do not fit, a soft cap that is not positive, a dropout rate outside [0, 1) or without a
            key, an unknown implementation, or one that cannot compute this call, and why.
        TypeError: the mask is an array (wrap it as ``masks.dense(array)``), the bias is neither an array of floating
            point numbers nor made by ``positions``, or the key is not typed.
    """
    bias = as_bias(bias)
    check_arguments(query, key, value, mask, bias, soft_cap)
    parts = Parts(mask, bias, make_dropout(dropout_rate, dropout_key, query.shape[:-3], query.shape[-2]))
    chosen = choose_implementation(
        "attention",
        implementation,
        AttentionImplementation,
        lambda: _attention_choice(query, key, value, mask, bias, soft_cap, dropout_rate),
    )
    if chosen == "cudnn":
        reason = why_not_cudnn(query, key, value, mask, bias, soft_cap, dropout_rate)
        if reason is not None:
            raise unavailable("attention", "cudnn", reason)
    scale = check_scale(query, scale)
    if 0 in (*query.shape, *value.shape):
        chosen = "reference"
    axis = _sequence_axis(query, value, parts, implementation)
    if axis is not None:
        if isinstance(scale, jax.Array):
            query, scale = _scale_query(query, scale), 1.0
        run = functools.partial(_across_devices, axis, implementation, chosen)
    else:
        run = functools.partial(_on_one_device, chosen)
    return run(query, key, value, parts, scale, soft_cap)


def _on_one_device(
    chosen: str, query: Array, key: Array, value: Array, parts: Parts, scale: Any, soft_cap: float | None
) -> Array:
    with implementation_scope("attention", chosen):
        if chosen == "reference":
            return reference(query, key, value, parts, scale, soft_cap)
        query, key, value = zero_hidden(query, key, value, parts.mask)
        if chosen == "decode":
            return zero_hidden_queries(attention_decode(query, key, value, parts, scale, soft_cap), parts.mask)
        if isinstance(scale, jax.Array):  # which the others take as a constant
            query, scale = _scale_query(query, scale), 1.0
        if chosen == "cudnn":
            return attention_cudnn(query, key, value, parts.mask, scale)
        plan = choose_plan(query, key, parts.mask, float(scale), soft_cap, unrolled=chosen == "unrolled")
        return zero_hidden_queries(attention_tiles(query, key, value, parts, plan), parts.mask)


def _scale_query(query: Array, scale: Array) -> Array:
    return (query.astype(scale.dtype) * scale).astype(query.dtype)


def _sequence_axis(query: Array, value: Array, parts: Parts, implementation: str) -> SequenceAxis | None:
    """The axis over which positions are split, or heads alone; None for other classes of masks and cuDNN by name."""
    known = can_cut(parts.mask) and can_cut(parts.bias) and implementation != "cudnn"
    if not known or 0 in (*query.shape, *value.shape):
        return None
    return find_sequence_axis(query.shape[-3]) or find_tensor_axis(query.shape[-2], value.shape[-2])


def _across_devices(
    axis: SequenceAxis,
    implementation: str,
    chosen: str,
    query: Array,
    key: Array,
    value: Array,
    parts: Parts,
    scale: Any,
    soft_cap: float | None,
) -> Array:
    """As a ring for queries and keys of the same positions, else with the keys of all devices on each."""
    length = query.shape[-3]
    query, key, value = zero_hidden(query, key, value, parts.mask)
    if (
        axis.size > 1
        and implementation in ("auto", "tiles")
        and key.shape[-3] == length
        and length % (2 * axis.size) == 0
    ):
        with implementation_scope("attention", "ring"):
            return zero_hidden_queries(
                ring_attention(axis, query, key, value, parts, float(scale), soft_cap), parts.mask
            )
    with implementation_scope("attention", "gathered" if axis.size > 1 else chosen):
        local = "tiles" if chosen == "cudnn" and axis.size > 1 else chosen

        def attend(query: Array, key: Array, value: Array, parts: Parts) -> Array:
            return _on_one_device(local, query, key, value, parts, scale, soft_cap)

        return zero_hidden_queries(gathered_attention(attend, axis, query, key, value, parts), parts.mask)


def attention_implementation(
    query: Float[Array, "*B T N H"],
    key: Float[Array, "*B S M H"],
    value: Float[Array, "*B S M Hv"],
    mask: Mask | None = None,
    *,
    bias: Bias | Float[Array, "..."] | None = None,
    soft_cap: float | None = None,
    dropout_rate: float = 0.0,
) -> str:
    """The implementation that ``"auto"`` takes for this call on the default device, for reports.

    The reference where ``jax.export`` leaves the number of queries or keys free; cuDNN where it can compute exactly
    this call; the reference for few scores or few queries (a decoding step), for which a CPU takes "decode"; on a CPU
    the unrolled form for short sequences; else tiles.
    """
    return _attention_choice(query, key, value, mask, bias, soft_cap, dropout_rate).implementation


def _attention_choice(
    query: Array, key: Array, value: Array, mask: Mask | None, bias: Any, soft_cap: float | None, dropout_rate: float
) -> Choice:
    T, S = query.shape[-3], key.shape[-3]
    if is_symbolic(T, S):
        return Choice("reference", "the number of queries or keys is free")
    no_cudnn = why_not_cudnn(query, key, value, mask, bias, soft_cap, dropout_rate)
    if no_cudnn is None:
        return Choice("cudnn", "cuDNN can do this call")
    on_cpu = jax.default_backend() == "cpu"
    if T < TILES_MIN_QUERIES:
        few = f"fewer queries ({T}) than {TILES_MIN_QUERIES}"
        return Choice("decode", f"{few}, on cpu") if on_cpu and S > TILES_MIN_QUERIES else Choice("reference", few)
    if T * S <= REFERENCE_MAX_SCORES:
        return Choice("reference", f"{T * S} scores a head are at most {REFERENCE_MAX_SCORES}")
    if not on_cpu:
        return Choice("tiles", f"not cuDNN: {no_cudnn}")
    no_unrolled = _why_not_unrolled(query, key, mask)
    if no_unrolled is None:
        return Choice("unrolled", f"{T} queries and {S} keys are few enough, on cpu")
    return Choice("tiles", no_unrolled)


def _why_not_unrolled(query: Array, key: Array, mask: Mask | None) -> str | None:
    """None if a CPU computes the call faster without loops: it is short, and the mask leaves no more tiles empty."""
    (T, N), S = query.shape[-3:-1], key.shape[-3]
    window = None if mask is None else mask.visibility().window
    longest = UNROLLED_MAX_LENGTH if tiles_are_static(mask, T, S) else UNROLLED_MAX_LENGTH // 2
    if at_least_float32(query.dtype) != query.dtype:
        return f"the dtype is {query.dtype}, on cpu"
    if window is not None and window <= min(NARROW_WINDOW, max(T, S) // 4):
        return f"the window of {window} keys leaves most tiles empty"
    if max(T, S) > longest:
        return f"{T} queries and {S} keys are more than {longest}"
    if N * T * S > UNROLLED_MAX_SCORES:
        return f"{N * T * S} scores of all heads are more than {UNROLLED_MAX_SCORES}"
    return None
