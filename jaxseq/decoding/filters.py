"""What sampling does to logits before it draws. Pure functions; what is ruled out becomes minus infinity."""

import jax
import jax.numpy as jnp

from jaxseq.typing import Array, Bool, Float, Logits, Scalar


def filtered(
    logits: Logits,
    *,
    temperature: float | Scalar | None = None,
    top_k: int | None = None,
    top_p: float | Scalar | None = None,
) -> Logits:
    """Temperature, then top-k, then top-p (of what top-k left), in this order. ``None`` leaves one out."""
    if temperature is not None:
        logits = scale(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return logits


def scale(logits: Logits, temperature: float | Scalar) -> Logits:
    """Logits divided by the temperature: below 1 sharper, above 1 flatter."""
    return logits / jnp.asarray(temperature, logits.dtype)


def keep_top_k(logits: Logits, k: int) -> Logits:
    """Exactly the k largest stay; of equals, those of the lowest ids.

    Raises:
        ValueError: k outside [1, V].
    """
    if not 1 <= k <= logits.shape[-1]:
        raise ValueError(f"top_k must lie in [1, {logits.shape[-1]}] (the vocabulary), not {k}")
    best = jnp.broadcast_to(jnp.arange(logits.shape[-1]) < k, logits.shape)
    return _kept(logits, best)


def keep_top_p(logits: Logits, p: float | Scalar) -> Logits:
    """The nucleus: the fewest most probable tokens whose probabilities add up to at least p.

    The most probable one always stays; p of 1 keeps all. Holtzman et al., "The curious case of neural text
    degeneration", 2020.
    """
    bound = jnp.asarray(p, logits.dtype)
    probabilities = jax.nn.softmax(logits, axis=-1)
    falling = jnp.flip(jnp.sort(probabilities, axis=-1), axis=-1)
    before = jnp.cumsum(falling, axis=-1) - falling
    first = jnp.arange(logits.shape[-1]) == 0
    return _kept(logits, (before < bound) | (bound >= 1) | jnp.broadcast_to(first, logits.shape))


def _kept(logits: Logits, best: Bool[Array, "*B V"]) -> Float[Array, "*B V"]:
    """``best`` says which stay, from the largest logit to the smallest."""
    order = jnp.argsort(logits, axis=-1, descending=True, stable=True)
    ranks = jnp.argsort(order, axis=-1)
    stays = jnp.take_along_axis(best, ranks, axis=-1)
    return jnp.where(stays, logits, jnp.asarray(-jnp.inf, logits.dtype))
