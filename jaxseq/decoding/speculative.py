"""Speculative decoding: a small model drafts tokens, the large model verifies several of them in one forward.

Leviathan et al., "Fast inference from transformers via speculative decoding", 2023; Chen et al., "Accelerating large
language model decoding with speculative sampling", 2023. The returned tokens have exactly the distribution of the
large model's own samples, whatever the draft model is.

A carry that has read rejected tokens is not rolled back (a recurrent state cannot be). By the splitting law padding
does not change a carry, so the round's tokens are read again from the carry before the round, with the rejected ones as
padding. If no row has rejected a token, the carry of the verification is used.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxseq.decoding.filters import check_top_k, filter_logits
from jaxseq.decoding.generation import check_max_length, make_sampler
from jaxseq.decoding.generation_loop import Sampler
from jaxseq.decoding.options import SamplingOptions
from jaxseq.decoding.step import AnyForward, Memory, as_arrays, as_token_ids, bind_memory, check_step, step_of
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Carry, DType, Float, Int, Integer, Key


class Speculation(NamedTuple):
    """Generated tokens and statistics of the draft.

    Attributes:
        tokens, lengths, log_probabilities: as in ``Generation``.
        num_drafted: the number of tokens drafted for each row.
        num_accepted: the number of drafted tokens that were accepted.
        num_rounds: the number of verifications by the large model, each for all rows together.
    """

    tokens: Int[Array, "*B L"]
    lengths: Int[Array, "*B"]
    log_probabilities: Float[Array, "*B"]
    num_drafted: Int[Array, "*B"]
    num_accepted: Int[Array, "*B"]
    num_rounds: Int[Array, ""]


class _Models(NamedTuple):
    draft: Partial
    target: Partial


class _State(NamedTuple):
    draft_carry: Carry
    carry: Carry
    tokens: Int[Array, "*B"]
    done: Bool[Array, "*B"]
    out: Speculation


class _Draft(NamedTuple):
    """Drafted tokens and the log-probabilities that they were drawn from (None where decoding is greedy)."""

    tokens: Int[Array, "*B n"]
    scores: Float[Array, "*B n V"] | None


def speculative_sample(
    draft: AnyForward,
    target: AnyForward,
    draft_carry: Carry,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    options: SamplingOptions | None = None,
    *,
    key: Key[Array, "..."] | None,
    max_length: int,
    end_token: int | None = None,
    draft_length: int = 4,
    memory: Memory = None,
    draft_memory: Memory = None,
) -> Speculation:
    """Sample from ``target`` (or, with ``key=None``, decode it greedily) in fewer of its forwards.

    In each round ``draft`` draws ``draft_length`` tokens from its distribution q, and one forward of ``target`` gives
    its distribution p at each of them. A token x is accepted with probability ``min(1, p(x) / q(x))``; the first one
    that is rejected is drawn again from ``max(p - q, 0)``, normalised, and ends the round. If all are accepted, one
    more token is drawn from p. Temperature and filters act on p and q alike.

    Args:
        draft, target: ``forward(carry, tokens [*B T], segment_ids [*B T]) -> (carry, logits [*B T V])``. Tokens that
            are read have segment id 1, as ``prefill`` and ``segment_ids=None`` give them.
        draft_carry, carry: the carries of draft and target.
        first_tokens, max_length, end_token, memory: as for ``sample``.
        options: temperature and filters; ``None`` is ``SamplingOptions()``.
        key: as for ``sample``; ``None`` decodes greedily.
        draft_length: the number of tokens drafted in each round.
        draft_memory: the memory of the draft model.

    Raises:
        ValueError: draft_length below 1, two vocabularies, options without a key, or as ``sample``.
    """
    if draft_length < 1:
        raise ValueError(f"draft_length must be at least 1, not {draft_length}")
    first_tokens, draft_carry, carry = as_token_ids(first_tokens), as_arrays(draft_carry), as_arrays(carry)
    sampler = make_sampler(options, key, first_tokens.shape)
    models = _Models(bind_memory(draft, draft_memory), bind_memory(target, memory))
    sizes = []
    for model, its_carry in zip(models, (draft_carry, carry), strict=True):
        check_max_length(its_carry, max_length)
        logits = check_step(step_of(model), its_carry, first_tokens, end_token)
        sizes.append(logits.shape[-1])
    if sizes[0] != sizes[1]:
        raise ValueError(f"draft and target must share a vocabulary: {sizes[0]} and {sizes[1]} tokens")
    if sampler is not None and sampler.options.top_k is not None:
        check_top_k(sampler.options.top_k, sizes[1])
    dtype = jnp.dtype(at_least_float32(logits.dtype))
    return _decode(models, sampler, draft_carry, carry, first_tokens, max_length, draft_length, end_token, dtype)


@partial(jax.jit, static_argnames=("max_length", "draft_length", "end_token", "dtype"))
def _decode(
    models: _Models,
    sampler: Sampler | None,
    draft_carry: Carry,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    max_length: int,
    draft_length: int,
    end_token: int | None,
    dtype: DType,
) -> Speculation:
    rows = first_tokens.shape
    none = jnp.zeros(rows, jnp.int32)
    fill = 0 if end_token is None else end_token
    buffer = jnp.full((*rows, max_length), fill, first_tokens.dtype)
    out = Speculation(buffer, none, jnp.zeros(rows, dtype), none, none, jnp.zeros((), jnp.int32))
    state = _State(draft_carry, carry, first_tokens, jnp.zeros(rows, bool), out)
    body = partial(_round, models, sampler, draft_length=draft_length, end_token=end_token)
    return lax.while_loop(lambda state: ~jnp.all(state.done), body, state).out


def _round(
    models: _Models, sampler: Sampler | None, state: _State, *, draft_length: int, end_token: int | None
) -> _State:
    """One round: draft, verify, and record the accepted tokens."""
    position, dtype = state.out.lengths, state.out.log_probabilities.dtype
    drafted = _draft(models.draft, sampler, state, draft_length)
    read = jnp.concatenate([state.tokens[..., None], drafted.tokens], axis=-1)
    after, logits = models.target(state.carry, read, jnp.ones(read.shape, jnp.int32))
    logits = logits.astype(dtype)
    accepted, last = _verify(sampler, drafted, logits, position)
    places = jnp.broadcast_to(jnp.arange(draft_length + 1, dtype=jnp.int32), read.shape)
    following = jnp.concatenate([drafted.tokens, jnp.zeros_like(last)[..., None]], axis=-1)
    tokens = jnp.where(places == accepted[..., None], last[..., None], following)
    out, done, counted = _record(state, tokens, accepted, logits, end_token)

    reread = ((places <= accepted[..., None]) & ~done[..., None]).astype(jnp.int32)
    carry = lax.cond(
        jnp.all((reread == 1) | done[..., None]),  # the carry of a row that has ended is not used
        lambda: after,
        lambda: models.target(state.carry, read, reread)[0],
    )
    draft_carry, _ = models.draft(state.draft_carry, read, reread)
    out = out._replace(
        num_drafted=out.num_drafted + jnp.where(state.done, 0, draft_length),
        num_accepted=out.num_accepted + jnp.where(state.done, 0, jnp.minimum(accepted, counted)),
        num_rounds=out.num_rounds + 1,
    )
    return _State(draft_carry, carry, last.astype(state.tokens.dtype), done, out)


def _draft(forward: Partial, sampler: Sampler | None, state: _State, draft_length: int) -> _Draft:
    """Draw ``draft_length`` tokens per row, one after another."""
    dtype = state.out.log_probabilities.dtype

    def body(now: tuple[Carry, Array], ahead: Array) -> tuple[tuple[Carry, Array], _Draft]:
        carry, tokens = now
        carry, logits = step_of(forward)(carry, tokens)
        logits = logits.astype(dtype)
        if sampler is None:
            drawn, scores = jnp.argmax(logits, axis=-1), None
        else:
            scores = _scores(logits, sampler.options)
            drawn = _categorical(_keys(sampler, state.out.lengths + ahead, 0), scores)
        drawn = drawn.astype(tokens.dtype)
        return (carry, drawn), _Draft(drawn, scores)

    _, drafted = lax.scan(body, (state.draft_carry, state.tokens), jnp.arange(draft_length, dtype=jnp.int32))
    axis = state.tokens.ndim
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), drafted)


def _verify(
    sampler: Sampler | None, drafted: _Draft, logits: Float[Array, "*B m V"], position: Int[Array, "*B"]
) -> tuple[Int[Array, "*B"], Int[Array, "*B"]]:
    """Count the accepted tokens of each row, and choose the token that follows them."""
    if sampler is None or drafted.scores is None:
        best = jnp.argmax(logits, axis=-1).astype(drafted.tokens.dtype)
        accepted = _count_leading(drafted.tokens == best[..., :-1])
        return accepted, jnp.take_along_axis(best, accepted[..., None], axis=-1)[..., 0]
    scores = _scores(logits, sampler.options)
    there = [
        jnp.take_along_axis(s, drafted.tokens[..., None], axis=-1)[..., 0]
        for s in (scores[..., :-1, :], drafted.scores)
    ]
    ahead = jnp.arange(drafted.tokens.shape[-1], dtype=jnp.int32)
    keys = jax.vmap(lambda i: _keys(sampler, position + i, 1), out_axes=position.ndim)(ahead)
    chances = jax.vmap(lambda key: jax.random.uniform(key, (), scores.dtype))(keys.reshape(-1)).reshape(keys.shape)
    accepted = _count_leading(jnp.log(chances) < there[0] - there[1])
    index = accepted[..., None, None]
    p = jnp.exp(jnp.take_along_axis(scores, index, axis=-2)[..., 0, :])
    none = jnp.zeros_like(drafted.scores[..., :1, :])
    q = jnp.take_along_axis(jnp.concatenate([jnp.exp(drafted.scores), none], axis=-2), index, axis=-2)[..., 0, :]
    rest = jnp.maximum(p - q, 0)
    rest = jnp.where(jnp.sum(rest, axis=-1, keepdims=True) > 0, rest, p)
    return accepted, _categorical(_keys(sampler, position + accepted, 2), jnp.log(rest)).astype(drafted.tokens.dtype)


def _record(
    state: _State,
    tokens: Int[Array, "*B m"],
    accepted: Int[Array, "*B"],
    logits: Float[Array, "*B m V"],
    end_token: int | None,
) -> tuple[Speculation, Bool[Array, "*B"], Int[Array, "*B"]]:
    """Append the tokens, up to an end token or the length; also which rows are done, and how many tokens each got."""
    out, longest = state.out, state.out.tokens.shape[-1]
    count = jnp.minimum(accepted + 1, longest - out.lengths)
    if end_token is not None:
        count = jnp.minimum(count, _count_leading(tokens != end_token) + 1)
    count = jnp.where(state.done, 0, count)
    places = jnp.arange(tokens.shape[-1], dtype=jnp.int32)
    inside = jnp.broadcast_to(places, tokens.shape) < count[..., None]
    at = jnp.where(inside, out.lengths[..., None] + jnp.broadcast_to(places, tokens.shape), longest)
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), tokens[..., None], axis=-1)[..., 0]
    write = jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))
    flat = (x.reshape(-1, x.shape[-1]) for x in (out.tokens, at, tokens))
    lengths = out.lengths + count
    done = state.done | (lengths == longest)
    if end_token is not None:
        done |= jnp.any(inside & (tokens == end_token), axis=-1)
    gained = jnp.sum(jnp.where(inside, scores, jnp.zeros_like(scores)), axis=-1)
    out = out._replace(
        tokens=write(*flat).reshape(out.tokens.shape),
        lengths=lengths,
        log_probabilities=out.log_probabilities + gained,
    )
    return out, done, count


def _count_leading(true: Bool[Array, "*B n"]) -> Int[Array, "*B"]:
    """Count the True values before the first False."""
    return jnp.sum(jnp.cumprod(true.astype(jnp.int32), axis=-1), axis=-1, dtype=jnp.int32)


def _scores(logits: Float[Array, "*B V"], options: SamplingOptions) -> Float[Array, "*B V"]:
    """Log-probabilities after temperature and filters."""
    return jax.nn.log_softmax(filter_logits(logits, options), axis=-1)


def _keys(sampler: Sampler, position: Int[Array, "*B"], purpose: int) -> Key[Array, "*B"]:
    """A key per row for what is drawn at a position: a draft (0), an acceptance (1), a token (2)."""

    def fold(key: Array, at: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(key, at), purpose)

    return jax.vmap(fold)(sampler.keys.reshape(-1), position.reshape(-1)).reshape(position.shape)


def _categorical(keys: Key[Array, "*B"], scores: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    flat = scores.reshape(-1, scores.shape[-1])
    return jax.vmap(jax.random.categorical)(keys.reshape(-1), flat).reshape(keys.shape)
