"""Scheduled sampling: a decoder is fed what it would have said itself, now and then, as it will be when it decodes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxseq.typing import Array, Float, Int, Key, Scalar


def scheduled_sampling(
    logits_of: Callable[[Int[Array, "*B T"]], Float[Array, "*B T V"]],
    tokens: Int[Array, "*B T"],
    *,
    rate: float | Scalar,
    key: Key[Array, ""],
    passes: int = 1,
) -> Int[Array, "*B T"]:
    """The decoder's input, each token but the first replaced with probability ``rate`` by one that it drew itself.

    ``tokens`` are the target shifted right, ``logits_of`` the model's answer to such an input; what stands at t is
    drawn from the answer at t - 1. All positions are drawn at once, from the answer to the input of the pass before,
    first to the target itself (Duckworth et al. 2019, arXiv:1906.04331): it takes ``passes`` more forward runs,
    whatever the decoder. After k passes the first k + 1 tokens are what drawing one after another gives (Bengio et al.
    2015, arXiv:1506.03099), so T - 1 passes are that algorithm exactly. No gradient goes through it.

    Raises:
        ValueError: passes below 1, or a rate outside [0, 1].
    """
    if passes < 1:
        raise ValueError(f"passes must be at least 1, not {passes}")
    if isinstance(rate, int | float) and not 0 <= rate <= 1:
        raise ValueError(f"rate must lie in [0, 1], not {rate}")
    choose, draw = jax.random.split(key)
    own = jax.random.bernoulli(choose, rate, tokens.shape).at[..., 0].set(False)
    fed, noise = tokens, None
    for _ in range(passes):
        logits = jax.lax.stop_gradient(logits_of(fed))
        if noise is None:
            noise = jax.random.gumbel(draw, logits.shape, logits.dtype)
        drawn = jnp.argmax(logits + noise, axis=-1).astype(tokens.dtype)
        fed = jnp.where(own, jnp.roll(drawn, 1, axis=-1), tokens)
    return fed
