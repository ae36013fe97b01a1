"""Scheduled sampling: some inputs of a decoder are replaced by tokens that the model itself has drawn."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxseq.ops.ids import valid_ids
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Float, Int, Key, Scalar


def scheduled_sampling(
    logits_of: Callable[[Int[Array, "*B T"]], Float[Array, "*B T V"]],
    tokens: Int[Array, "*B T"],
    *,
    rate: float | Scalar,
    key: Key[Array, ""],
    passes: int = 1,
) -> Int[Array, "*B T"]:
    """The decoder's input, in which each token but the first is replaced with probability ``rate`` by a drawn one.

    The token at position t is drawn from the logits at t - 1. All positions are drawn in parallel, from the logits for
    the input of the previous pass, which is at first ``tokens`` (Duckworth et al. 2019, arXiv:1906.04331). After k
    passes the first k + 1 tokens equal those of sequential sampling (Bengio et al. 2015, arXiv:1506.03099), so that
    T - 1 passes are that algorithm exactly. No gradient flows through the result. The noise has at least float32.

    A token outside [0, V) is never replaced, and nothing is drawn from logits that contain NaN or are all -inf, so that
    such errors reach the loss.

    Args:
        logits_of: the model: logits for an input.
        tokens: the target shifted right.
        rate: the probability of replacement.
        key: the random key.
        passes: the number of forward passes.

    Raises:
        ValueError: passes below 1, or a rate outside [0, 1].
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1, not {passes}")
    if isinstance(rate, int | float) and not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1], not {rate}")
    choose, draw = jax.random.split(key)
    replaced = jax.random.bernoulli(choose, rate, tokens.shape).at[..., :1].set(False)
    fed, noise = tokens, None
    for _ in range(passes):
        logits = jax.lax.stop_gradient(logits_of(fed))
        logits = logits.astype(at_least_float32(logits.dtype))
        if noise is None:
            noise = jax.random.gumbel(draw, logits.shape, logits.dtype)
            replaced = replaced & valid_ids(tokens, logits.shape[-1])
        drawn = jnp.argmax(logits + noise, axis=-1).astype(tokens.dtype)
        possible = jnp.max(logits, axis=-1) > -jnp.inf  # False for NaN
        fed = jnp.where(replaced & jnp.roll(possible, 1, axis=-1), jnp.roll(drawn, 1, axis=-1), tokens)
    return fed
