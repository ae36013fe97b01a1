"""The results of beam search: hypotheses traced back through its tables, and the carry after each of them."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxseq.decoding.beam_loop import SearchConfig, SearchState
from jaxseq.decoding.end_tokens import fill_token
from jaxseq.decoding.step import (
    AnyStep,
    Memory,
    as_arrays,
    as_partial,
    as_token_ids,
    read_tokens,
    repeat_rows,
    take_rows,
)
from jaxseq.typing import Array, Carry, Float, Int, Integer


class Hypotheses(NamedTuple):
    """The results of a beam search, best first.

    Attributes:
        tokens: each hypothesis' tokens, padded with the first end token (0 without one).
        lengths: the number of tokens, the end token included; 0 where no hypothesis was found.
        log_probabilities: the model's own; minus infinity where no hypothesis was found. NaN in all results of a row
            if a step gave NaN or plus infinity among the logits of a hypothesis in its beam, or if ids outside the
            vocabulary were given under ``jit``.
        scores: the normalised log-probability, after the logits processors, plus the coverage penalty: hypotheses are
            compared by it.
        carry: with ``BeamOptions(keep_carry=True)`` the carry that has read the first token and every token of each
            hypothesis but its last one; its leaves lead with ``*B K``. Else None.
        last_tokens: with ``keep_carry`` the last token of each hypothesis (the first token where none was found), from
            which decoding continues with ``carry``. Else None.
    """

    tokens: Int[Array, "*B K L"]
    lengths: Int[Array, "*B K"]
    log_probabilities: Float[Array, "*B K"]
    scores: Float[Array, "*B K"]
    carry: Carry = None
    last_tokens: Int[Array, "*B K"] | None = None


@partial(jax.jit, static_argnames="config")
def trace_back(state: SearchState, config: SearchConfig) -> Hypotheses:
    """The finished hypotheses of all groups, best first; their tokens follow the parents back from the last token."""
    finished, (num_rows, num_groups, group_size) = state.finished, config.beam_shape
    fill = fill_token(config.end_tokens)
    found = finished.scores > -jnp.inf
    lengths = jnp.where(found, finished.lengths, 0)

    def body(slots: Array, table: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        position, token_row, parent_row = table
        last, inside = position == lengths - 1, position < lengths - 1
        tokens = jnp.where(inside, jnp.take_along_axis(token_row, slots, axis=-1), fill)
        tokens = jnp.where(last, finished.last_tokens, tokens)
        return jnp.where(inside, jnp.take_along_axis(parent_row, slots, axis=-1), slots), tokens

    tables = (jnp.arange(config.max_length, dtype=lengths.dtype), state.token_table, state.parent_table)
    _, tokens = lax.scan(body, finished.slots, tables, reverse=True)
    num_beams = num_groups * group_size
    scores, order = lax.top_k(finished.scores.reshape(num_rows, num_beams), config.num_results)

    def best(x: Array) -> Array:
        kept = take_rows(x.reshape(num_rows, num_beams, *x.shape[3:]), order)
        return kept.reshape(*config.batch_shape, config.num_results, *x.shape[3:])

    log_probabilities = jnp.where(found, finished.log_probabilities, -jnp.inf)
    log_probabilities = jnp.where(state.invalid[:, None, None], jnp.nan, log_probabilities)
    scores = jnp.where(state.invalid[:, None], jnp.nan, scores).reshape(*config.batch_shape, config.num_results)
    sequences = jnp.moveaxis(tokens, 0, -1).astype(state.tokens.dtype)
    return Hypotheses(best(sequences), best(lengths), best(log_probabilities), scores)


def with_carry(
    step: AnyStep, carry: Carry, first_tokens: Integer[np.ndarray | Array, "*B"], memory: Memory, found: Hypotheses
) -> Hypotheses:
    """Add the carry after each hypothesis to the hypotheses, by reading them once more."""
    return _read_again(as_partial(step), as_arrays(carry), as_token_ids(first_tokens), memory, found)


@jax.jit
def _read_again(
    step: Partial, carry: Carry, first_tokens: Int[Array, "*B"], memory: Memory, found: Hypotheses
) -> Hypotheses:
    batch_shape, (num_results, max_length) = first_tokens.shape, found.tokens.shape[-2:]
    row_step, carry, first = repeat_rows(step, carry, first_tokens, memory, num_results)
    tokens = jnp.concatenate([first[..., None], found.tokens.reshape(*first.shape, max_length)], axis=-1)
    lengths = found.lengths.reshape(first.shape)

    def body(i: Array, carry: Carry) -> Carry:
        read = lax.dynamic_index_in_dim(tokens, i, axis=-1, keepdims=False)
        return read_tokens(row_step, carry, read, i < lengths)[0]

    carry = lax.fori_loop(0, jnp.max(lengths, initial=0), body, carry)
    last = jnp.take_along_axis(tokens, lengths[..., None], axis=-1)[..., 0]
    rows = (*batch_shape, num_results)
    carry, last = jax.tree.map(lambda leaf: leaf.reshape(*rows, *leaf.shape[first.ndim :]), (carry, last))
    return found._replace(carry=carry, last_tokens=last)
