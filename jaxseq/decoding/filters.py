"""Logits filters for sampling: temperature, top-k, top-p, min-p, typical-p. Pure functions.

A filter sets the logits of the tokens that it removes to minus infinity, and sees the distribution that the filters
before it left, renormalised. A value of a filter may be an array with one value for each row. The largest logit is
subtracted before logits are divided or compared, so that no value overflows. Nothing is sorted: the smallest set of
tokens whose probabilities sum to p is found by bisection over the bits of its threshold, 32 sums over the vocabulary in
float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.decoding.options import PerRow, SamplingOptions, known_integer
from jaxseq.decoding.rows import top_k
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Float, Int, Integer, Key, Logits


class CandidateLogits(NamedTuple):
    """Filtered logits: of the whole vocabulary, or of the tokens ``ids`` in decreasing order of their logits."""

    logits: Float[Array, "*B k"]
    ids: Int[Array, "*B k"] | None


def filter_logits(logits: Logits, options: SamplingOptions) -> Logits:
    """Apply temperature, top-k, top-p, min-p and typical-p, in this order; ``None`` leaves one out.

    Raises:
        ValueError: top_k above V.
    """
    kept = filter_candidates(logits, options)
    if kept.ids is None:
        return kept.logits
    return jnp.put_along_axis(jnp.full_like(logits, -jnp.inf), kept.ids, kept.logits, axis=-1, inplace=False)


def filter_candidates(logits: Logits, options: SamplingOptions) -> CandidateLogits:
    """The same, without scattering the k logits that top-k leaves back over the vocabulary."""
    ids = None
    if options.temperature is not None:
        logits = apply_temperature(logits, options.temperature)
    if options.top_k is not None:
        logits, ids = top_k(logits, check_top_k(options.top_k, logits.shape[-1]))
    if options.top_p is not None:
        logits = keep_top_p(logits, options.top_p)
    if options.min_p is not None:
        logits = keep_min_p(logits, options.min_p)
    if options.typical_p is not None:
        logits = keep_typical_p(logits, options.typical_p)
    return CandidateLogits(logits, ids)


def draw_tokens(keys: Key[Array, "*B"], kept: CandidateLogits) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """Draw a token per row from ``softmax(logits)`` with that row's key; also its log-probability there."""
    flat = kept.logits.reshape(-1, kept.logits.shape[-1])
    drawn = jax.vmap(jax.random.categorical)(keys.reshape(-1), flat).reshape(kept.logits.shape[:-1])[..., None]
    scores = jnp.take_along_axis(jax.nn.log_softmax(kept.logits, axis=-1), drawn, axis=-1)[..., 0]
    tokens = drawn if kept.ids is None else jnp.take_along_axis(kept.ids, drawn, axis=-1)
    return tokens[..., 0], scores


def check_top_k(k: int | Integer[np.ndarray | Array, ""], vocab_size: int) -> int:
    """Check k against the vocabulary, and give it as a Python number.

    Raises:
        ValueError: k outside [1, V].
    """
    number = known_integer("top_k", k)
    if not 1 <= number <= vocab_size:
        raise ValueError(f"top_k must be in [1, {vocab_size}] (the vocabulary), not {number}")
    return number


def apply_temperature(logits: Logits, temperature: PerRow) -> Logits:
    """``softmax(logits / temperature)`` in logits; ``(logits - max(logits)) / temperature`` cannot overflow.

    A row of temperature 1 is left as it is.
    """
    wide = logits.astype(at_least_float32(logits.dtype))
    divisor = _per_row("temperature", temperature, wide)
    largest = jnp.max(wide, axis=-1, keepdims=True)
    subtracted = jnp.where(jnp.isfinite(largest) & (divisor != 1), largest, jnp.zeros_like(largest))
    shifted = wide - subtracted
    divided = jnp.where(shifted == -jnp.inf, shifted, shifted / divisor)  # infinity times a reciprocal of 0 is NaN
    return divided.astype(logits.dtype)


def keep_top_k(logits: Logits, k: int) -> Logits:
    """Keep exactly the k largest logits; among equals those of the lowest ids.

    Raises:
        ValueError: k outside [1, V].
    """
    check_top_k(k, logits.shape[-1])
    return filter_logits(logits, SamplingOptions(None, top_k=k))


def keep_top_p(logits: Logits, p: PerRow) -> Logits:
    """Keep the nucleus: the smallest set of most probable tokens whose probabilities sum to at least p.

    The most probable token always stays; p of 1 keeps all. Holtzman et al., "The curious case of neural text
    degeneration", 2020.
    """
    wide = logits.astype(at_least_float32(logits.dtype))
    return _masked(logits, _smallest_set(-wide, jax.nn.softmax(wide, axis=-1), _per_row("top_p", p, wide)))


def keep_min_p(logits: Logits, p: PerRow) -> Logits:
    """Keep the tokens at least p times as probable as the most probable one, which always stays.

    Nguyen et al., "Turning up the heat: min-p sampling for creative and coherent LLM outputs", 2024.
    """
    wide = logits.astype(at_least_float32(logits.dtype))
    largest = jnp.max(wide, axis=-1, keepdims=True)
    return _masked(logits, (wide == largest) | (wide - largest >= jnp.log(_per_row("min_p", p, wide))))


def keep_typical_p(logits: Logits, p: PerRow) -> Logits:
    """Keep the locally typical set: the smallest set of most typical tokens whose probabilities sum to at least p.

    Tokens are ordered by ``|-log probability - entropy|``, lowest first. At least one stays; p of 1 keeps all.
    Meister et al., "Locally typical sampling", 2023.
    """
    scores = jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)), axis=-1)
    possible = scores > -jnp.inf
    surprisal = jnp.where(possible, -scores, jnp.zeros_like(scores))
    probabilities = jnp.exp(scores)
    entropy = jnp.sum(probabilities * surprisal, axis=-1, keepdims=True)
    order = jnp.where(possible, jnp.abs(surprisal - entropy), jnp.full_like(scores, jnp.inf))
    return _masked(logits, _smallest_set(order, probabilities, _per_row("typical_p", p, scores)))


def _per_row(name: str, value: PerRow, logits: Logits) -> Float[Array, "*#B 1"] | Float[Array, ""]:
    """The value in the logits' dtype: a single one, or one for each row, to be broadcast against the vocabulary.

    Raises:
        ValueError: an array of another shape.
    """
    number = jnp.asarray(value, logits.dtype)
    if not number.ndim:
        return number
    rows = logits.shape[:-1]
    if number.ndim != len(rows) or any(n not in (1, size) for n, size in zip(number.shape, rows, strict=True)):
        raise ValueError(f"{name} must be a single value or one for each row, {rows}, not {number.shape}")
    return number[..., None]


def _masked(logits: Logits, kept: Bool[Array, "*B V"]) -> Logits:
    return jnp.where(kept, logits, jnp.asarray(-jnp.inf, logits.dtype))


def _smallest_set(
    order: Float[Array, "*B V"], probabilities: Float[Array, "*B V"], p: Float[Array, "*#B 1"] | Float[Array, ""]
) -> Bool[Array, "*B V"]:
    """The smallest set of tokens, lowest ``order`` first (among equals the lowest ids), that sums to at least p.

    The threshold is the largest order such that the tokens below it sum to less than p. It is found by bisection, bit
    by bit, over unsigned integers of the same order as the floats.
    """
    bound = jnp.maximum(p, jnp.finfo(probabilities.dtype).tiny)
    keys = _ordered_bits(order)

    def mass(chosen: Bool[Array, "*B V"]) -> Float[Array, "*B"]:
        return jnp.sum(jnp.where(chosen, probabilities, jnp.zeros_like(probabilities)), axis=-1)

    least = bound[..., 0] if bound.ndim else bound
    threshold = _bisect(keys, 8 * keys.dtype.itemsize, lambda below: mass(below) < least)
    before, tied = keys < threshold[..., None], keys == threshold[..., None]
    ids = jnp.broadcast_to(jnp.arange(order.shape[-1], dtype=jnp.uint32), order.shape)
    last = _bisect(ids, max(1, (order.shape[-1] - 1).bit_length()), lambda below: mass(before | (tied & below)) < least)
    return before | (tied & (ids <= last[..., None])) | (bound >= 1)


def _bisect(keys: Array, bits: int, holds: Callable[[Array], Array]) -> Array:
    """The largest t of so many bits for which ``holds(keys < t)``; it holds for 0."""

    def body(i: Array, t: Array) -> Array:
        bit = jnp.left_shift(jnp.ones((), keys.dtype), (bits - 1 - i).astype(keys.dtype))
        with_bit = t | bit
        return jnp.where(holds(keys < with_bit[..., None]), with_bit, t)

    return jax.lax.fori_loop(0, bits, body, jnp.zeros(keys.shape[:-1], keys.dtype))


def _ordered_bits(x: Float[Array, "*B V"]) -> Array:
    """Unsigned integers in the order of the floats (-0 becomes 0)."""
    kind = jnp.uint64 if x.dtype.itemsize == 8 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(x + jnp.zeros_like(x), kind)
    top = jnp.asarray(1 << (8 * x.dtype.itemsize - 1), kind)
    return jnp.where(bits >= top, ~bits, bits | top)
