"""The loop that greedy decoding, sampling and streaming share: one compiled ``while_loop`` over a step."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from jaxseq.decoding.constraints import Constraint, constrained
from jaxseq.decoding.filters import Filters, draw, ranked
from jaxseq.decoding.step import repeat
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Carry, Float, Int, Key, Logits


class Sampler(NamedTuple):
    """What a draw depends on: a key for each row, and the filters."""

    keys: Key[Array, "*B"]
    filters: Filters


class State(NamedTuple):
    """Where decoding stands: how many tokens were made, and what the next one depends on.

    ``constrained`` holds the states of the constraints.
    """

    position: Int[Array, ""]
    carry: Carry
    constrained: tuple[Any, ...]
    tokens: Int[Array, "*B"]
    done: Bool[Array, "*B"]
    lengths: Int[Array, "*B"]
    log_probabilities: Float[Array, "*B"]
    sampling_log_probabilities: Float[Array, "*B"]


def begin(
    carry: Carry,
    first_tokens: Int[Array, "*R"],
    constraints: tuple[Constraint, ...],
    dtype: Any,
    max_length: int,
    batch_shape: tuple[int, ...],
    copies: int | None,
) -> State:
    """The state before the first token is made; the carry in it is a copy, to be donated.

    Constraints know the batch as it was given; where each of its rows was repeated, so are their states.
    """
    rows = first_tokens.shape
    states = tuple(constraint.initial_state(batch_shape, max_length) for constraint in constraints)
    if copies is not None:
        states = repeat(states, len(batch_shape), copies)
    zeros = jnp.zeros(rows, at_least_float32(dtype))
    return State(
        position=jnp.zeros((), jnp.int32),
        carry=jax.tree.map(jnp.copy, carry),
        constrained=states,
        tokens=first_tokens,
        done=jnp.zeros(rows, bool),
        lengths=jnp.zeros(rows, jnp.int32),
        log_probabilities=zeros,
        sampling_log_probabilities=zeros,
    )


_BEGIN = ("dtype", "max_length", "batch_shape", "copies")
begin_copied = jax.jit(begin, static_argnames=_BEGIN)
begin_donated = jax.jit(begin, static_argnames=_BEGIN, donate_argnames="carry")


@partial(jax.jit, static_argnames=("length", "end_token"), donate_argnames="state")
def advance(
    step: Partial,
    sampler: Sampler | None,
    constraints: tuple[Constraint, ...],
    state: State,
    limit: Int[Array, ""],
    *,
    length: int,
    end_token: int | None,
) -> tuple[State, Int[Array, "*B L"]]:
    """Make up to ``length`` tokens more, up to position ``limit``; stops as soon as every row has ended.

    What is not made is the end token (0 without one). The state's arrays are donated.
    """
    start = state.position
    fill = 0 if end_token is None else end_token
    buffer = jnp.full((*state.tokens.shape, length), fill, state.tokens.dtype)
    stop = jnp.minimum(start + length, limit)

    def goes_on(loop: tuple[State, Array]) -> Array:
        now, _ = loop
        return (now.position < stop) & ~jnp.all(now.done)

    def body(loop: tuple[State, Array]) -> tuple[State, Array]:
        now, made = loop
        after = _next(step, sampler, constraints, now, limit, end_token)
        made = lax.dynamic_update_index_in_dim(made, after.tokens, now.position - start, axis=-1)
        return after, made

    return lax.while_loop(goes_on, body, (state, buffer))


def _next(
    step: Partial,
    sampler: Sampler | None,
    constraints: tuple[Constraint, ...],
    state: State,
    limit: Int[Array, ""],
    end_token: int | None,
) -> State:
    """One token more in every row; a row that has ended gets end tokens, which count for nothing.

    A row that the constraints leave nothing ends there, with a log-probability of minus infinity.
    """
    carry, logits = step(state.carry, state.tokens)
    logits = logits.astype(state.log_probabilities.dtype)
    allowed = constrained(constraints, state.constrained, logits, state.position, limit - state.position)
    chosen, drawn = _chosen(allowed, sampler, state.position)
    scores = jax.nn.log_softmax(logits, axis=-1)
    gained = jnp.take_along_axis(scores, chosen[..., None], axis=-1)[..., 0]
    stuck = jnp.zeros_like(state.done)
    if constraints:
        stuck = jnp.all(allowed == -jnp.inf, axis=-1) & ~state.done
        gained = jnp.where(stuck, -jnp.inf, gained)
        drawn = jnp.where(stuck, -jnp.inf, drawn)
    made = ~(state.done | stuck)
    fill = jnp.asarray(0 if end_token is None else end_token, state.tokens.dtype)
    tokens = jnp.where(made, chosen.astype(state.tokens.dtype), fill)
    done = state.done | stuck
    if end_token is not None:
        done |= tokens == fill
    counted = lambda x: jnp.where(state.done, jnp.zeros_like(x), x)  # noqa: E731
    pairs = zip(constraints, state.constrained, strict=True)
    return State(
        position=state.position + 1,
        carry=carry,
        constrained=tuple(constraint.next_state(before, tokens) for constraint, before in pairs),
        tokens=tokens,
        done=done,
        lengths=state.lengths + made.astype(jnp.int32),
        log_probabilities=state.log_probabilities + counted(gained),
        sampling_log_probabilities=state.sampling_log_probabilities + counted(drawn),
    )


def _chosen(
    logits: Logits, sampler: Sampler | None, position: Int[Array, ""]
) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """A token for each row, and its log-probability under the distribution that it was drawn from."""
    if sampler is None:
        best = jnp.argmax(logits, axis=-1)
        return best, jnp.zeros(best.shape, logits.dtype)
    keys = jax.vmap(jax.random.fold_in, (0, None))(sampler.keys.reshape(-1), position).reshape(sampler.keys.shape)
    return draw(keys, ranked(logits, sampler.filters))
