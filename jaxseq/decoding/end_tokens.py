"""End tokens: a sequence ends at the first of them. One token, several, or none."""

from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.typing import Array, Bool, Int, Integer

EndToken: TypeAlias = int | Sequence[int] | Integer[np.ndarray | Array, "..."] | None
"""A token, several tokens, or None: sequences end at ``max_length`` only."""


def as_end_tokens(end_token: EndToken, vocab_size: int | None = None) -> tuple[int, ...]:
    """The end tokens as Python numbers without repeats, in the given order; empty for None.

    Raises:
        TypeError: a traced value (end tokens are part of the compiled program), or one that is not an integer.
        ValueError: a token outside the vocabulary, where its size is given.
    """
    if end_token is None:
        return ()
    if isinstance(end_token, jax.core.Tracer):
        raise TypeError("end_token must be known when decoding is compiled, not traced: make it a static argument")
    tokens = np.asarray(end_token)
    if not tokens.size:
        return ()
    if not np.issubdtype(tokens.dtype, np.integer) or tokens.ndim > 1:
        raise TypeError(f"end_token must be an integer or a sequence of integers, not {end_token!r}")
    found = tuple(dict.fromkeys(tokens.reshape(-1).tolist()))
    for token in found:
        if vocab_size is not None and not 0 <= token < vocab_size:
            raise ValueError(f"end_token {token} outside the vocabulary of {vocab_size}")
    return found


def fill_token(end_tokens: tuple[int, ...]) -> int:
    """The token that pads a row after its end: the first end token, 0 without one."""
    return end_tokens[0] if end_tokens else 0


def is_end(tokens: Int[Array, "..."], end_tokens: tuple[int, ...]) -> Bool[Array, "..."]:
    """Whether each token is an end token."""
    found = jnp.zeros(tokens.shape, bool)
    for end in end_tokens:
        found |= tokens == end
    return found
