"""The loop of greedy decoding, sampling and streaming: one compiled ``while_loop`` over a step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from jaxseq.decoding.constraints import Rule, apply_constraints, next_states, stopped
from jaxseq.decoding.end_tokens import fill_token, is_end
from jaxseq.decoding.filters import draw_tokens, filter_candidates
from jaxseq.decoding.options import SamplingOptions
from jaxseq.decoding.rows import argmax
from jaxseq.decoding.stages import while_loop
from jaxseq.decoding.step import read_tokens, repeat_leaves
from jaxseq.ops.ids import nan_where_invalid
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Carry, DType, Float, Int, Key, Logits


class Sampler(NamedTuple):
    """A random key for each row, and the options by which its tokens are drawn."""

    keys: Key[Array, "*B"]
    options: SamplingOptions


class GenerationState(NamedTuple):
    """The state of the loop: the number of generated tokens, and everything that the next one depends on.

    ``tokens`` are the last tokens, which the carry has not read; rows that are done keep theirs and their carry.
    """

    position: Int[Array, ""]
    carry: Carry
    constraint_states: tuple[Carry, ...]
    tokens: Int[Array, "*B"]
    done: Bool[Array, "*B"]
    lengths: Int[Array, "*B"]
    log_probabilities: Float[Array, "*B"]
    sampling_log_probabilities: Float[Array, "*B"]


def init_state(
    carry: Carry,
    first_tokens: Int[Array, "*R"],
    constraints: tuple[Rule, ...],
    dtype: DType,
    vocab_size: int,
    max_length: int,
    batch_shape: tuple[int, ...],
    copies: int | None,
) -> GenerationState:
    """The state before the first token; it holds a copy of the carry, which the loop then overwrites.

    ``batch_shape`` is that of the caller's rows; with ``copies`` each of them was repeated (``repeat_rows``), and so
    are the states of the constraints here.
    """
    rows = first_tokens.shape
    states = tuple(constraint.initial_state(batch_shape, max_length) for constraint in constraints)
    if copies is not None:
        states = repeat_leaves(states, len(batch_shape), copies)
    zeros = nan_where_invalid(jnp.zeros(rows, at_least_float32(dtype)), first_tokens, vocab_size)
    return GenerationState(
        position=jnp.zeros((), jnp.int32),
        carry=jax.tree.map(jnp.copy, carry),
        constraint_states=states,
        tokens=first_tokens,
        done=jnp.zeros(rows, bool),
        lengths=jnp.zeros(rows, jnp.int32),
        log_probabilities=zeros,
        sampling_log_probabilities=zeros,
    )


_STATIC = ("dtype", "vocab_size", "max_length", "batch_shape", "copies")
init_state_with_copy = jax.jit(init_state, static_argnames=_STATIC)
init_state_donating = jax.jit(init_state, static_argnames=_STATIC, donate_argnames="carry")


def generate_tokens(
    step: Partial,
    sampler: Sampler | None,
    constraints: tuple[Rule, ...],
    state: GenerationState,
    limit: Int[Array, ""],
    *,
    length: int,
    end_tokens: tuple[int, ...],
) -> tuple[GenerationState, Int[Array, "*B L"]]:
    """Generate up to ``length`` more tokens, up to position ``limit``; stops as soon as every row has ended.

    Places without a token hold the first end token (0 without one). The donating function
    overwrites the state's arrays, which it could not under ``vmap``.
    """
    start = state.position
    fill = jnp.asarray(fill_token(end_tokens), state.tokens.dtype)
    buffer = jnp.full((*state.tokens.shape, length), fill)
    stop = jnp.minimum(start + length, limit)

    def condition(loop: tuple[GenerationState, Array]) -> Array:
        now, _ = loop
        return (now.position < stop) & ~jnp.all(now.done)

    def body(loop: tuple[GenerationState, Array]) -> tuple[GenerationState, Array]:
        now, tokens = loop
        after = _generate_token(step, sampler, constraints, now, limit, end_tokens)
        new = jnp.where(after.lengths > now.lengths, after.tokens, fill)
        return after, lax.dynamic_update_index_in_dim(tokens, new, now.position - start, axis=-1)

    return while_loop(condition, body, (state, buffer), max_tokens=length)


_STATIC_LOOP = ("length", "end_tokens")
generate_tokens_traced = jax.jit(generate_tokens, static_argnames=_STATIC_LOOP)
generate_tokens_donating = jax.jit(generate_tokens, static_argnames=_STATIC_LOOP, donate_argnames="state")


def _generate_token(
    step: Partial,
    sampler: Sampler | None,
    constraints: tuple[Rule, ...],
    state: GenerationState,
    limit: Int[Array, ""],
    end_tokens: tuple[int, ...],
) -> GenerationState:
    """Generate one token per row; rows that have ended stay as they are.

    A row whose tokens are all ruled out by the constraints ends, with a log-probability of minus infinity.
    """
    may_end = (bool(end_tokens) or bool(constraints)) and state.tokens.size > 1  # a single row ends the loop
    if may_end:
        carry, logits = read_tokens(step, state.carry, state.tokens, ~state.done)
    else:
        carry, logits = step(state.carry, state.tokens)
    logits = logits.astype(state.log_probabilities.dtype)
    allowed = apply_constraints(constraints, state.constraint_states, logits, state.position, limit - state.position)
    chosen, drawn = _choose_tokens(allowed, sampler, state.position)
    scores = jax.nn.log_softmax(logits, axis=-1)
    gained = jnp.take_along_axis(scores, chosen[..., None], axis=-1)[..., 0]
    stuck = jnp.zeros_like(state.done)
    if constraints:
        best = jnp.max(allowed, axis=-1)
        stuck = (best == -jnp.inf) & ~state.done
        gained = jnp.where(stuck | jnp.isnan(best), best, gained)  # NaN: a rule has ids outside the vocabulary
        drawn = jnp.where(stuck, -jnp.inf, drawn)
    generated = ~(state.done | stuck)
    tokens = jnp.where(generated, chosen.astype(state.tokens.dtype), state.tokens)
    done = state.done | stuck
    if end_tokens:
        done |= generated & is_end(tokens, end_tokens)
    constraint_states = next_states(constraints, state.constraint_states, tokens)
    done |= stopped(constraints, constraint_states, done.shape)

    def unless_done(x: Array) -> Array:
        return jnp.where(state.done, jnp.zeros_like(x), x)

    return GenerationState(
        position=state.position + 1,
        carry=carry,
        constraint_states=constraint_states,
        tokens=tokens,
        done=done,
        lengths=state.lengths + generated.astype(jnp.int32),
        log_probabilities=state.log_probabilities + unless_done(gained),
        sampling_log_probabilities=state.sampling_log_probabilities + unless_done(drawn),
    )


def _choose_tokens(
    logits: Logits, sampler: Sampler | None, position: Int[Array, ""]
) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """A token per row, and its log-probability under the distribution that it was drawn from."""
    if sampler is None:
        best = argmax(logits)
        return best, jnp.zeros(best.shape, logits.dtype)
    keys = jax.vmap(jax.random.fold_in, (0, None))(sampler.keys.reshape(-1), position).reshape(sampler.keys.shape)
    return draw_tokens(keys, filter_candidates(logits, sampler.options))
