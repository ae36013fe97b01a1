"""Log-probabilities of given sequences under a step."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxseq.decoding.step import (
    AnyStep,
    Memory,
    as_arrays,
    as_token_ids,
    bind_memory,
    check_context,
    check_rows,
    check_step,
    repeat_rows,
)
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Carry, Float, Int, Integer


def score(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    tokens: Integer[np.ndarray | Array, "*R L"],
    lengths: Integer[np.ndarray | Array, "..."] | Sequence[int] | None = None,
    *,
    memory: Memory = None,
) -> Float[Array, "*R"]:
    """``log P(y | x) = Σ_t log p(y_t | y_<t, x)`` over the first ``lengths`` tokens of each row.

    It can be differentiated with respect to the bound arguments of a ``Partial`` step.

    Args:
        step, carry, first_tokens, memory: those that decoding started with, as for ``greedy``.
        tokens: one sequence per row ``[*B L]``, or several ``[*B K L]``, such as the results of a beam search.
        lengths: the number of tokens of each sequence that are scored; ``None``: all.

    Raises:
        ValueError: shapes that do not fit together, or as ``greedy``.
    """
    return jnp.sum(score_tokens(step, carry, first_tokens, tokens, lengths, memory=memory), axis=-1)


def score_tokens(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    tokens: Integer[np.ndarray | Array, "*R L"],
    lengths: Integer[np.ndarray | Array, "..."] | Sequence[int] | None = None,
    *,
    memory: Memory = None,
) -> Float[Array, "*R L"]:
    """``log p(y_t | y_<t, x)`` of each token, 0 after each sequence's length; arguments and errors as ``score``."""
    first_tokens, tokens, carry = as_token_ids(first_tokens), as_token_ids(tokens), as_arrays(carry)
    batch, rows = first_tokens.shape, tokens.shape[:-1]
    several = len(rows) == len(batch) + 1
    if rows[: len(batch)] != batch or not (several or rows == batch):
        raise ValueError(f"tokens {tokens.shape} do not fit rows {batch}: they must be [*B L] or [*B K L]")
    lengths = jnp.full(rows, tokens.shape[-1], jnp.int32) if lengths is None else as_token_ids(lengths)
    if lengths.shape != rows:
        raise ValueError(f"lengths {lengths.shape} do not fit tokens {tokens.shape}")
    if several:
        check_rows((carry, memory), batch, "(carry, memory)")
        bound, carry, first_tokens = repeat_rows(step, carry, first_tokens, memory, rows[-1])
    else:
        bound = bind_memory(step, memory)
    check_context(carry, tokens.shape[-1] - 1, f"a sequence of {tokens.shape[-1]} tokens")
    check_step(bound, carry, first_tokens, None)
    flat = tokens.reshape(*first_tokens.shape, tokens.shape[-1])
    scores = _scores(bound, carry, first_tokens, flat).reshape(tokens.shape)
    inside = jnp.broadcast_to(jnp.arange(tokens.shape[-1], dtype=lengths.dtype), tokens.shape) < lengths[..., None]
    return jnp.where(inside, scores, jnp.zeros_like(scores))


@jax.jit
def _scores(
    step: Partial, carry: Carry, first_tokens: Int[Array, "*R"], tokens: Int[Array, "*R L"]
) -> Float[Array, "*R L"]:
    def body(now: tuple[Carry, Array], token: Array) -> tuple[tuple[Carry, Array], Array]:
        carry, before = now
        carry, logits = step(carry, before)
        scores = jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)), axis=-1)
        return (carry, token), jnp.take_along_axis(scores, token[..., None], axis=-1)[..., 0]

    after = jnp.moveaxis(tokens, -1, 0).astype(first_tokens.dtype)
    _, scores = lax.scan(body, (carry, first_tokens), after)
    return jnp.moveaxis(scores, 0, -1)
