"""Log-probabilities of given sequences under a step."""

from collections.abc import Sequence
from functools import partial

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
    check_inputs,
    check_step,
    is_inside,
    repeat_rows,
)
from jaxseq.ops.ids import check_ids, nan_where_invalid, valid_ids
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
        ValueError: shapes that do not fit together, a scored token outside the vocabulary or a length outside [0, L]
            (where they are traced, the log-probability is NaN from that token on), or as ``greedy``.
        TypeError: tokens or lengths that are not integers.
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
    """``log p(y_t | y_<t, x)`` of each token, 0 after each sequence's length; arguments and errors as ``score``.

    Tokens after a sequence's length are ignored.
    """
    first_tokens, tokens, carry = as_token_ids(first_tokens, "first_tokens"), as_token_ids(tokens), as_arrays(carry)
    batch, rows = first_tokens.shape, tokens.shape[:-1]
    several = len(rows) == len(batch) + 1
    if not tokens.ndim or rows[: len(batch)] != batch or not (several or rows == batch):
        raise ValueError(f"tokens {tokens.shape} do not fit rows {batch}: they must be [*B L] or [*B K L]")
    longest = tokens.shape[-1]
    lengths = jnp.full(rows, longest, jnp.int32) if lengths is None else as_token_ids(lengths, "lengths")
    if lengths.shape != rows:
        raise ValueError(f"lengths {lengths.shape} do not fit tokens {tokens.shape}")
    check_ids("lengths", lengths, longest + 1)
    check_inputs(carry, memory, batch)
    bound, inside = bind_memory(step, memory), is_inside(tokens.shape, lengths)
    check_context(carry, longest - 1, f"a sequence of {longest} tokens")
    vocab_size = check_step(bound, carry, first_tokens, None).shape[-1]
    check_ids("tokens", tokens, vocab_size, inside)
    if several:
        bound, carry, first_tokens = repeat_rows(step, carry, first_tokens, memory, rows[-1])
    flat = tokens.reshape(*first_tokens.shape, longest), lengths.reshape(first_tokens.shape)
    return _scores(bound, carry, first_tokens, *flat, vocab_size).reshape(tokens.shape)


@partial(jax.jit, static_argnames="vocab_size")
def _scores(
    step: Partial,
    carry: Carry,
    first_tokens: Int[Array, "*R"],
    tokens: Int[Array, "*R L"],
    lengths: Int[Array, "*R"],
    vocab_size: int,
) -> Float[Array, "*R L"]:
    def body(now: tuple[Carry, Array], token: Array) -> tuple[tuple[Carry, Array], Array]:
        carry, before = now
        carry, logits = step(carry, before)
        scores = jax.nn.log_softmax(logits.astype(at_least_float32(logits.dtype)), axis=-1)
        return (carry, token), jnp.take_along_axis(scores, token[..., None], axis=-1)[..., 0]

    inside = is_inside(tokens.shape, lengths)
    tokens = jnp.where(inside, tokens, 0)
    _, scores = lax.scan(body, (carry, first_tokens), jnp.moveaxis(tokens, -1, 0))
    scores = jnp.where(inside, jnp.moveaxis(scores, 0, -1), 0)
    wrong = ~valid_ids(jnp.concatenate([first_tokens[..., None], tokens], axis=-1), vocab_size)
    unknown = jnp.cumsum(wrong, axis=-1)[..., 1:] > 0
    scores = jnp.where(unknown & inside, jnp.asarray(jnp.nan, scores.dtype), scores)
    return nan_where_invalid(scores, lengths, tokens.shape[-1] + 1)
