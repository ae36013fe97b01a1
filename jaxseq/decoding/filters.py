"""What sampling does to logits before it draws. Pure functions; what is ruled out becomes minus infinity.

Each filter looks at the distribution that the ones before it have left, renormalised. Nothing is sorted: a set
that adds up to p is found by bisection over the bits of its threshold, 32 sums over the vocabulary in float32.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import register_static

from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Float, Int, Key, Logits, Scalar


@register_static
@dataclass(frozen=True)
class Static:
    """A number that is part of the program, not one of its inputs."""

    value: int


class Filters(NamedTuple):
    """What is done to logits before a draw, in this order; ``None`` leaves one out.

    A pytree: all but ``top_k`` may be arrays, so that new values need no new compilation.
    """

    temperature: float | Scalar | None = None
    top_k: Static | None = None
    top_p: float | Scalar | None = None
    min_p: float | Scalar | None = None
    typical_p: float | Scalar | None = None


class Ranked(NamedTuple):
    """Filtered logits: of the whole vocabulary, or, where ``ids`` says which, of the largest few in falling order."""

    logits: Float[Array, "*B k"]
    ids: Int[Array, "*B k"] | None


def filtered(
    logits: Logits,
    *,
    temperature: float | Scalar | None = None,
    top_k: int | None = None,
    top_p: float | Scalar | None = None,
    min_p: float | Scalar | None = None,
    typical_p: float | Scalar | None = None,
) -> Logits:
    """Temperature, then top-k, top-p, min-p and typical-p, in this order; ``None`` leaves one out.

    Raises:
        ValueError: top_k outside [1, V].
    """
    k = None if top_k is None else Static(top_k)
    kept = ranked(logits, Filters(temperature, k, top_p, min_p, typical_p))
    if kept.ids is None:
        return kept.logits
    return jnp.put_along_axis(jnp.full_like(logits, -jnp.inf), kept.ids, kept.logits, axis=-1, inplace=False)


def ranked(logits: Logits, filters: Filters) -> Ranked:
    """The same, without writing the few that top-k leaves back among all."""
    ids = None
    if filters.temperature is not None:
        logits = scale(logits, filters.temperature)
    if filters.top_k is not None:
        check_top_k(filters.top_k.value, logits.shape[-1])
        logits, ids = jax.lax.top_k(logits, filters.top_k.value)
    if filters.top_p is not None:
        logits = keep_top_p(logits, filters.top_p)
    if filters.min_p is not None:
        logits = keep_min_p(logits, filters.min_p)
    if filters.typical_p is not None:
        logits = keep_typical(logits, filters.typical_p)
    return Ranked(logits, ids)


def draw(keys: Key[Array, "*B"], kept: Ranked) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """A token a row from ``softmax(logits)`` by that row's key, and its log-probability there."""
    flat = kept.logits.reshape(-1, kept.logits.shape[-1])
    drawn = jax.vmap(jax.random.categorical)(keys.reshape(-1), flat).reshape(kept.logits.shape[:-1])[..., None]
    scores = jnp.take_along_axis(jax.nn.log_softmax(kept.logits, axis=-1), drawn, axis=-1)[..., 0]
    tokens = drawn if kept.ids is None else jnp.take_along_axis(kept.ids, drawn, axis=-1)
    return tokens[..., 0], scores


def check_top_k(k: int, vocab_size: int) -> None:
    """Refuse a k that is none of this vocabulary.

    Raises:
        ValueError: k outside [1, V].
    """
    if not 1 <= k <= vocab_size:
        raise ValueError(f"top_k must lie in [1, {vocab_size}] (the vocabulary), not {k}")


def scale(logits: Logits, temperature: float | Scalar) -> Logits:
    """Logits divided by the temperature: below 1 sharper, above 1 flatter."""
    return logits / jnp.asarray(temperature, logits.dtype)


def keep_top_k(logits: Logits, k: int) -> Logits:
    """Exactly the k largest stay; of equals, those of the lowest ids.

    Raises:
        ValueError: k outside [1, V].
    """
    return filtered(logits, top_k=k)


def keep_top_p(logits: Logits, p: float | Scalar) -> Logits:
    """The nucleus: the fewest most probable tokens whose probabilities add up to at least p.

    The most probable one always stays; p of 1 keeps all. Holtzman et al., "The curious case of neural text
    degeneration", 2020.
    """
    wide = logits.astype(at_least_float32(logits.dtype))
    return _kept(logits, _fewest(-wide, jax.nn.softmax(wide, axis=-1), p))


def keep_min_p(logits: Logits, p: float | Scalar) -> Logits:
    """The tokens at least p times as probable as the most probable one, which always stays.

    Nguyen et al., "Turning up the heat: min-p sampling", 2024.
    """
    wide = logits.astype(at_least_float32(logits.dtype))
    least = jnp.max(wide, axis=-1, keepdims=True) + jnp.log(jnp.asarray(p, wide.dtype))
    return _kept(logits, wide >= least)


def keep_typical(logits: Logits, p: float | Scalar) -> Logits:
    """The locally typical set: the fewest tokens that add up to at least p, those of the most ordinary surprise first.

    A token's surprise is ``-log p``; it is the more ordinary, the nearer it is to the entropy ``H``: tokens come in
    the order of ``|-log p - H|``. At least one stays; p of 1 keeps all. Meister et al., "Locally typical sampling",
    2023.
    """
    scores = jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)), axis=-1)
    there = scores > -jnp.inf
    surprise = jnp.where(there, -scores, jnp.zeros_like(scores))
    probabilities = jnp.exp(scores)
    entropy = jnp.sum(probabilities * surprise, axis=-1, keepdims=True)
    order = jnp.where(there, jnp.abs(surprise - entropy), jnp.full_like(scores, jnp.inf))
    return _kept(logits, _fewest(order, probabilities, p))


def _kept(logits: Logits, stays: Bool[Array, "*B V"]) -> Logits:
    return jnp.where(stays, logits, jnp.asarray(-jnp.inf, logits.dtype))


def _fewest(order: Float[Array, "*B V"], probabilities: Float[Array, "*B V"], p: float | Scalar) -> Bool[Array, "*B V"]:
    """The fewest tokens, lowest ``order`` first (of equals the lowest ids), that add up to at least p.

    The threshold is the largest order below which less than p stands. It is found bit by bit, on floats made whole
    numbers of the same order.
    """
    bound = jnp.maximum(jnp.asarray(p, probabilities.dtype), jnp.finfo(probabilities.dtype).tiny)
    keys = _as_unsigned(order)

    def mass(chosen: Bool[Array, "*B V"]) -> Float[Array, "*B"]:
        return jnp.sum(jnp.where(chosen, probabilities, jnp.zeros_like(probabilities)), axis=-1)

    threshold = _largest(keys, 8 * keys.dtype.itemsize, lambda below: mass(below) < bound)
    before, tied = keys < threshold[..., None], keys == threshold[..., None]
    ids = jnp.broadcast_to(jnp.arange(order.shape[-1], dtype=jnp.uint32), order.shape)
    last = _largest(
        ids, max(1, (order.shape[-1] - 1).bit_length()), lambda below: mass(before | (tied & below)) < bound
    )
    return before | (tied & (ids <= last[..., None])) | (bound >= 1)


def _largest(keys: Array, bits: int, holds: Callable[[Array], Array]) -> Array:
    """The largest number t of so many bits such that ``holds(keys < t)``, which 0 does."""

    def body(i: Array, t: Array) -> Array:
        bit = jnp.left_shift(jnp.ones((), keys.dtype), (bits - 1 - i).astype(keys.dtype))
        with_bit = t | bit
        return jnp.where(holds(keys < with_bit[..., None]), with_bit, t)

    return jax.lax.fori_loop(0, bits, body, jnp.zeros(keys.shape[:-1], keys.dtype))


def _as_unsigned(x: Float[Array, "*B V"]) -> Array:
    """Unsigned whole numbers in the order of the floats (-0 becomes 0)."""
    kind = jnp.uint64 if x.dtype.itemsize == 8 else jnp.uint32
    bits = jax.lax.bitcast_convert_type(x + jnp.zeros_like(x), kind)
    top = jnp.asarray(1 << (8 * x.dtype.itemsize - 1), kind)
    return jnp.where(bits >= top, ~bits, bits | top)
