"""The loop of speculative decoding: one round drafts tokens, verifies them and reads the accepted ones.

Shapes: n drafted tokens in a round, m = n + 1 places, the one after them included.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from jaxseq.decoding.constraints import Rule, apply_constraints, next_states, stopped
from jaxseq.decoding.end_tokens import fill_token, is_end
from jaxseq.decoding.filters import filter_logits
from jaxseq.decoding.generation_loop import Sampler
from jaxseq.decoding.options import SamplingOptions
from jaxseq.decoding.rows import argmax
from jaxseq.decoding.stages import while_loop
from jaxseq.decoding.step import document_ids, is_inside, step_of
from jaxseq.ops.ids import nan_where_invalid
from jaxseq.typing import Array, Bool, Carry, DType, Float, Int, Key


class Speculation(NamedTuple):
    """Generated tokens, statistics of the draft, and the state from which decoding can continue.

    Attributes:
        tokens, lengths, log_probabilities: as in ``Generation``.
        num_drafted: the number of tokens drafted for each row.
        num_accepted: the number of drafted tokens that were accepted.
        num_rounds: the number of verifications by the large model, each for all rows together.
        carry, last_tokens: as in ``Generation``; the carry of the large model.
        draft_carry: the carry of the draft model, which has read the same tokens.
    """

    tokens: Int[Array, "*B L"]
    lengths: Int[Array, "*B"]
    log_probabilities: Float[Array, "*B"]
    num_drafted: Int[Array, "*B"]
    num_accepted: Int[Array, "*B"]
    num_rounds: Int[Array, ""]
    carry: Carry
    last_tokens: Int[Array, "*B"]
    draft_carry: Carry


class Inputs(NamedTuple):
    """The constant inputs of the loop, a pytree."""

    draft: Partial
    target: Partial
    sampler: Sampler | None
    constraints: tuple[Rule, ...]


class Config(NamedTuple):
    """The static options: a new value needs a new compilation."""

    max_length: int
    draft_length: int
    end_tokens: tuple[int, ...]
    vocab_size: int
    dtype: DType


class _State(NamedTuple):
    """The state of the loop: the results so far, the state of the constraints, and which rows have ended."""

    out: Speculation
    constraint_states: tuple[Carry, ...]
    done: Bool[Array, "*B"]


class _Draft(NamedTuple):
    """Drafted tokens, and the log-probabilities that they were drawn from (None where decoding is greedy).

    ``states`` are those of the constraints before each drafted token and after the last one (m = n + 1 places).
    """

    tokens: Int[Array, "*B n"]
    scores: Float[Array, "*B n V"] | None
    states: tuple[Carry, ...]


class _Verified(NamedTuple):
    """The number of accepted tokens of each row, and the token that follows them.

    ``best`` is the largest logit after the constraints at each place: minus infinity where they rule out every token,
    NaN where one of them has ids outside the vocabulary.
    """

    accepted: Int[Array, "*B"]
    last: Int[Array, "*B"]
    best: Float[Array, "*B m"]


@partial(jax.jit, static_argnames="config")
def decode(
    inputs: Inputs, draft_carry: Carry, carry: Carry, first_tokens: Int[Array, "*B"], config: Config
) -> Speculation:
    """Run rounds until every row has ended."""
    rows = first_tokens.shape
    none = jnp.zeros(rows, jnp.int32)
    out = Speculation(
        tokens=jnp.full((*rows, config.max_length), fill_token(config.end_tokens), first_tokens.dtype),
        lengths=none,
        log_probabilities=nan_where_invalid(jnp.zeros(rows, config.dtype), first_tokens, config.vocab_size),
        num_drafted=none,
        num_accepted=none,
        num_rounds=jnp.zeros((), jnp.int32),
        carry=carry,
        last_tokens=first_tokens,
        draft_carry=draft_carry,
    )
    states = tuple(rule.initial_state(rows, config.max_length) for rule in inputs.constraints)
    body = partial(_round, inputs, config)
    state = _State(out, states, jnp.zeros(rows, bool))
    sizes = {"max_tokens": config.max_length, "tokens_per_iteration": config.draft_length + 1}
    return while_loop(lambda state: ~jnp.all(state.done), body, state, **sizes).out


def _round(inputs: Inputs, config: Config, state: _State) -> _State:
    """One round: draft, verify, record the accepted tokens, and read them again where others were rejected."""
    out, live = state.out, ~state.done
    drafted = _draft(inputs, config, state)
    read = jnp.concatenate([out.last_tokens[..., None], drafted.tokens], axis=-1)
    ids = jnp.broadcast_to(document_ids(out.carry, live.shape)[..., None], read.shape)
    after, logits = inputs.target(out.carry, read, jnp.where(live[..., None], ids, 0))
    logits = logits.astype(config.dtype)
    verified = _verify(inputs, config, drafted, logits, out.lengths)
    places = jnp.broadcast_to(jnp.arange(config.draft_length + 1, dtype=jnp.int32), read.shape)
    following = jnp.concatenate([drafted.tokens, jnp.zeros_like(verified.last)[..., None]], axis=-1)
    tokens = jnp.where(places == verified.accepted[..., None], verified.last[..., None], following)
    states, stops = _constraint_states(inputs.constraints, drafted.states, verified, config.draft_length + 1)
    ends = is_end(tokens, config.end_tokens) | stops
    out, done, count = _record(state, tokens, verified, logits, ends)

    inside = is_inside(read.shape, count)
    carry = lax.cond(
        jnp.all(inside | state.done[..., None]),
        lambda: after,
        lambda: inputs.target(state.out.carry, read, jnp.where(inside, ids, 0))[0],
    )
    ids = jnp.broadcast_to(document_ids(out.draft_carry, live.shape)[..., None], read.shape)
    draft_carry, _ = inputs.draft(out.draft_carry, read, jnp.where(inside, ids, 0))
    out = out._replace(
        num_drafted=out.num_drafted + jnp.where(live, config.draft_length, 0),
        num_accepted=out.num_accepted + jnp.minimum(verified.accepted, count),
        num_rounds=out.num_rounds + 1,
        carry=carry,
        last_tokens=jnp.where(count > 0, _at(tokens, jnp.maximum(count - 1, 0)), out.last_tokens),
        draft_carry=draft_carry,
    )
    return _State(out, states, done)


def _draft(inputs: Inputs, config: Config, state: _State) -> _Draft:
    """Draw ``draft_length`` tokens per row, one after another."""
    position, sampler = state.out.lengths, inputs.sampler

    def body(now: tuple[Carry, Array, tuple[Carry, ...]], ahead: Array) -> tuple[tuple[Carry, Array, Any], _Draft]:
        carry, tokens, states = now
        carry, logits = step_of(inputs.draft)(carry, tokens)
        logits = _constrained(inputs.constraints, states, logits.astype(config.dtype), position + ahead, config)
        if sampler is None:
            drawn, scores = argmax(logits), None
        else:
            scores = _scores(logits, sampler.options, position.ndim)
            drawn = _categorical(_keys(sampler, position + ahead, 0), scores)
        drawn = drawn.astype(tokens.dtype)
        return (carry, drawn, next_states(inputs.constraints, states, drawn)), _Draft(drawn, scores, states)

    start = state.out.draft_carry, state.out.last_tokens, state.constraint_states
    (_, _, last), drafted = lax.scan(body, start, jnp.arange(config.draft_length, dtype=jnp.int32))
    states = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), drafted.states, last)
    axis = position.ndim
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), drafted._replace(states=states))


def _verify(
    inputs: Inputs, config: Config, drafted: _Draft, logits: Float[Array, "*B m V"], position: Int[Array, "*B"]
) -> _Verified:
    """Count the accepted tokens of each row, and choose the token that follows them."""
    sampler, ahead = inputs.sampler, jnp.arange(config.draft_length + 1, dtype=jnp.int32)
    positions = position[..., None] + jnp.broadcast_to(ahead, (*position.shape, len(ahead)))
    logits = _constrained(inputs.constraints, drafted.states, logits, positions, config)
    best = jnp.max(logits, axis=-1) if inputs.constraints else jnp.zeros(positions.shape, logits.dtype)
    possible = best[..., :-1] > -jnp.inf
    if sampler is None or drafted.scores is None:
        chosen = argmax(logits).astype(drafted.tokens.dtype)
        accepted = _count_leading((drafted.tokens == chosen[..., :-1]) & possible)
        return _Verified(accepted, _at(chosen, accepted), best)
    scores = _scores(logits, sampler.options, position.ndim)
    there = [
        jnp.take_along_axis(s, drafted.tokens[..., None], axis=-1)[..., 0]
        for s in (scores[..., :-1, :], drafted.scores)
    ]
    keys = jax.vmap(lambda i: _keys(sampler, position + i, 1), out_axes=position.ndim)(ahead[:-1])
    chances = jax.vmap(lambda key: jax.random.uniform(key, (), scores.dtype))(keys.reshape(-1)).reshape(keys.shape)
    accepted = _count_leading((jnp.log(chances) < there[0] - there[1]) & possible)
    index = accepted[..., None, None]
    p = jnp.exp(jnp.take_along_axis(scores, index, axis=-2)[..., 0, :])
    none = jnp.zeros_like(drafted.scores[..., :1, :])
    q = jnp.take_along_axis(jnp.concatenate([jnp.exp(drafted.scores), none], axis=-2), index, axis=-2)[..., 0, :]
    rest = jnp.maximum(p - jnp.where(q >= 0, q, 0), 0)  # q is NaN where the draft model excludes every token
    rest = jnp.where(jnp.sum(rest, axis=-1, keepdims=True) > 0, rest, p)
    last = _categorical(_keys(sampler, position + accepted, 2), jnp.log(rest)).astype(drafted.tokens.dtype)
    return _Verified(accepted, last, best)


def _constrained(
    constraints: tuple[Rule, ...],
    states: tuple[Carry, ...],
    logits: Float[Array, "*R V"],
    position: Int[Array, "*R"],
    config: Config,
) -> Float[Array, "*R V"]:
    """The logits after the constraints; each row has generated a number of tokens of its own."""
    if not constraints:
        return logits

    def constrain(states: tuple[Carry, ...], logits: Float[Array, " V"], position: Int[Array, ""]) -> Array:
        return apply_constraints(constraints, states, logits, position, jnp.maximum(config.max_length - position, 1))

    rows = position.shape
    flat = jax.tree.map(lambda x: x.reshape(math.prod(rows), *x.shape[len(rows) :]), (states, logits, position))
    return jax.vmap(constrain)(*flat).reshape(logits.shape)


def _constraint_states(
    constraints: tuple[Rule, ...], states: tuple[Carry, ...], verified: _Verified, num_places: int
) -> tuple[tuple[Carry, ...], Bool[Array, "*B m"]]:
    """The states after the accepted tokens and the one that follows, and whether a rule ends a row at each place."""
    rows, places = verified.accepted.shape, jnp.arange(num_places, dtype=jnp.int32)

    def at_end(x: Array) -> Array:
        index = verified.accepted.reshape(*rows, *(1,) * (x.ndim - len(rows)))
        return jnp.take_along_axis(x, index, axis=len(rows)).squeeze(len(rows))

    after = next_states(constraints, jax.tree.map(at_end, states), verified.last)
    before = stopped(constraints, states, (*rows, num_places))
    following = jnp.concatenate([before[..., 1:], jnp.zeros((*rows, 1), bool)], axis=-1)
    at_last = jnp.broadcast_to(places, following.shape) == verified.accepted[..., None]
    return after, jnp.where(at_last, stopped(constraints, after, rows)[..., None], following)


def _record(
    state: _State,
    tokens: Int[Array, "*B m"],
    verified: _Verified,
    logits: Float[Array, "*B m V"],
    ends: Bool[Array, "*B m"],
) -> tuple[Speculation, Bool[Array, "*B"], Int[Array, "*B"]]:
    """Append the tokens, up to an end or the length; returns also the rows that are done and the number appended."""
    out, longest = state.out, state.out.tokens.shape[-1]
    stuck = _at(verified.best, verified.accepted) == -jnp.inf
    usable = verified.accepted + jnp.where(stuck, 0, 1)
    count = jnp.minimum(jnp.minimum(usable, _count_leading(~ends) + 1), longest - out.lengths)
    count = jnp.where(state.done, 0, count)
    places = jnp.broadcast_to(jnp.arange(tokens.shape[-1], dtype=jnp.int32), tokens.shape)
    inside = is_inside(tokens.shape, count)
    at = jnp.where(inside, out.lengths[..., None] + places, longest)
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[..., None], axis=-1)[..., 0]
    scores = jnp.where(jnp.isnan(verified.best), jnp.nan, scores)
    write = jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))
    flat = (x.reshape(math.prod(x.shape[:-1]), x.shape[-1]) for x in (out.tokens, at, tokens))
    lengths = out.lengths + count
    done = state.done | (lengths == longest) | jnp.any(inside & ends, axis=-1)
    gained = jnp.sum(jnp.where(inside, scores, jnp.zeros_like(scores)), axis=-1)
    dead = ~done & stuck  # the place of the next token is reached, and no token is allowed there
    out = out._replace(
        tokens=write(*flat).reshape(out.tokens.shape),
        lengths=lengths,
        log_probabilities=out.log_probabilities + jnp.where(dead, -jnp.inf, gained),
    )
    return out, done | dead, count


def _at(values: Array, index: Int[Array, "*B"]) -> Array:
    """The value of each row at its index along the last axis."""
    return jnp.take_along_axis(values, index[..., None], axis=-1)[..., 0]


def _count_leading(true: Bool[Array, "*B n"]) -> Int[Array, "*B"]:
    """Count the True values before the first False."""
    return jnp.sum(jnp.cumprod(true.astype(jnp.int32), axis=-1), axis=-1, dtype=jnp.int32)


def _scores(logits: Float[Array, "*R V"], options: SamplingOptions, num_rows: int) -> Float[Array, "*R V"]:
    """Log-probabilities after temperature and filters; a row's options hold at all its places."""
    missing = logits.ndim - 1 - num_rows
    options = jax.tree.map(lambda x: x.reshape(*x.shape, *(1,) * missing) if x.ndim else x, options)
    return jax.nn.log_softmax(filter_logits(logits, options), axis=-1)


def _keys(sampler: Sampler, position: Int[Array, "*B"], purpose: int) -> Key[Array, "*B"]:
    """A key per row for what is drawn at a position: a draft (0), an acceptance (1), a token (2)."""

    def fold(key: Array, at: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, at), purpose)

    return jax.vmap(fold)(sampler.keys.reshape(-1), position.reshape(-1)).reshape(position.shape)


def _categorical(keys: Key[Array, "*B"], scores: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    flat = scores.reshape(-1, scores.shape[-1])
    return jax.vmap(jax.random.categorical)(keys.reshape(-1), flat).reshape(keys.shape)
