"""Speculative decoding: a small model drafts, the large one verifies several tokens in one forward.

Leviathan et al., "Fast inference from transformers via speculative decoding", 2023; Chen et al. 2023. What is
returned is distributed exactly as the large model's own sampling, whatever the draft.

Carries that have read too far cannot go back (a recurrent state has no undo). They need not: by the splitting law,
padding changes no carry, so the tokens that were kept are read again from the carry before, the others being padding.
Where every row has kept all, the carry after the verification is it.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxseq.decoding.filters import Filters, check_top_k, filtered
from jaxseq.decoding.generation import check_max_length, make_filters, row_keys
from jaxseq.decoding.loop import Sampler
from jaxseq.decoding.step import Forward, as_arrays, as_tokens, check_step, step_of, with_memory
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Bool, Carry, Float, Int, Integer, Key


class Speculation(NamedTuple):
    """What was generated, as a ``Generation`` has it; and how many tokens were drafted and how many of them kept.

    ``rounds`` is the number of the large model's verifications, of all rows together.
    """

    tokens: Int[Array, "*B L"]
    lengths: Int[Array, "*B"]
    log_probabilities: Float[Array, "*B"]
    drafted: Int[Array, "*B"]
    accepted: Int[Array, "*B"]
    rounds: Int[Array, ""]


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
    """Drafted tokens and the distributions that they come from, none of these where decoding is greedy."""

    tokens: Int[Array, "*B n"]
    scores: Float[Array, "*B n V"] | None


def speculative_sample(
    draft: Forward,
    target: Forward,
    draft_carry: Carry,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    *,
    key: Key[Array, "..."] | None,
    max_length: int,
    num_drafted: int = 4,
    end_token: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    typical_p: float | None = None,
    memory: Any = None,
    draft_memory: Any = None,
) -> Speculation:
    """What ``sample`` would draw from ``target`` (what ``greedy`` finds, with ``key=None``), in fewer of its forwards.

        draft, target: forward(carry, tokens [*B T], segment_ids [*B T]) -> (carry, logits [*B T V])

    Each round ``draft`` draws ``num_drafted`` tokens from q, and ``target`` gives p for all of them at once. A token
    x is kept with probability ``min(1, p(x) / q(x))``; the first that is not is drawn again from
    ``max(p - q, 0)``, normalised, and ends the round; if all are kept, one more comes from p. Temperature and
    filters act on p and q alike. Carries go on with document 1, as ``prefill`` and ``segment_ids=None`` leave them.

    Raises:
        ValueError: num_drafted below 1, two vocabularies, filters without a key, or as ``sample``.
    """
    if num_drafted < 1:
        raise ValueError(f"num_drafted must be at least 1, not {num_drafted}")
    filters = make_filters(temperature, top_k, top_p, min_p, typical_p)
    if key is None and any(value is not None for value in filters):
        raise ValueError("temperature and filters ask for a key: without one, decoding is greedy")
    first_tokens, draft_carry, carry = as_tokens(first_tokens), as_arrays(draft_carry), as_arrays(carry)
    models = _Models(with_memory(draft, draft_memory), with_memory(target, memory))
    sizes = []
    for model, its_carry in zip(models, (draft_carry, carry), strict=True):
        check_max_length(its_carry, max_length)
        logits = check_step(step_of(model), its_carry, first_tokens, end_token)
        sizes.append(logits.shape[-1])
    if sizes[0] != sizes[1]:
        raise ValueError(f"draft and target must share a vocabulary: {sizes[0]} and {sizes[1]} tokens")
    if filters.top_k is not None:
        check_top_k(filters.top_k.value, sizes[1])
    sampler = None if key is None else Sampler(row_keys(key, first_tokens.shape), filters)
    dtype = jnp.dtype(at_least_float32(logits.dtype))
    return _decode(models, sampler, draft_carry, carry, first_tokens, max_length, num_drafted, end_token, dtype)


@partial(jax.jit, static_argnames=("max_length", "num_drafted", "end_token", "dtype"))
def _decode(
    models: _Models,
    sampler: Sampler | None,
    draft_carry: Carry,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    max_length: int,
    num_drafted: int,
    end_token: int | None,
    dtype: Any,
) -> Speculation:
    rows = first_tokens.shape
    none = jnp.zeros(rows, jnp.int32)
    fill = 0 if end_token is None else end_token
    buffer = jnp.full((*rows, max_length), fill, first_tokens.dtype)
    out = Speculation(buffer, none, jnp.zeros(rows, dtype), none, none, jnp.zeros((), jnp.int32))
    state = _State(draft_carry, carry, first_tokens, jnp.zeros(rows, bool), out)
    body = partial(_round, models, sampler, num_drafted=num_drafted, end_token=end_token)
    return lax.while_loop(lambda state: ~jnp.all(state.done), body, state).out


def _round(
    models: _Models, sampler: Sampler | None, state: _State, *, num_drafted: int, end_token: int | None
) -> _State:
    """Draft, verify, keep."""
    position, dtype = state.out.lengths, state.out.log_probabilities.dtype
    drafted = _draft(models.draft, sampler, state, num_drafted)
    read = jnp.concatenate([state.tokens[..., None], drafted.tokens], axis=-1)
    after, logits = models.target(state.carry, read, jnp.ones(read.shape, jnp.int32))
    logits = logits.astype(dtype)
    kept, last = _verify(sampler, drafted, logits, position)
    places = jnp.broadcast_to(jnp.arange(num_drafted + 1, dtype=jnp.int32), read.shape)
    following = jnp.concatenate([drafted.tokens, jnp.zeros_like(last)[..., None]], axis=-1)
    made = jnp.where(places == kept[..., None], last[..., None], following)
    out, done, counted = _record(state, made, kept, logits, end_token)

    again = ((places <= kept[..., None]) & ~done[..., None]).astype(jnp.int32)
    carry = lax.cond(
        jnp.all((again == 1) | done[..., None]),  # where a row has ended, its carry matters no more
        lambda: after,
        lambda: models.target(state.carry, read, again)[0],
    )
    draft_carry, _ = models.draft(state.draft_carry, read, again)
    out = out._replace(
        drafted=out.drafted + jnp.where(state.done, 0, num_drafted),
        accepted=out.accepted + jnp.where(state.done, 0, jnp.minimum(kept, counted)),
        rounds=out.rounds + 1,
    )
    return _State(draft_carry, carry, last.astype(state.tokens.dtype), done, out)


def _draft(forward: Partial, sampler: Sampler | None, state: _State, num_drafted: int) -> _Draft:
    """Some tokens ahead of each row, one after another."""
    dtype = state.out.log_probabilities.dtype

    def body(now: tuple[Carry, Array], ahead: Array) -> tuple[tuple[Carry, Array], _Draft]:
        carry, tokens = now
        carry, logits = step_of(forward)(carry, tokens)
        logits = logits.astype(dtype)
        if sampler is None:
            drawn, scores = jnp.argmax(logits, axis=-1), None
        else:
            scores = _scores(logits, sampler.filters)
            drawn = _categorical(_keys(sampler, state.out.lengths + ahead, 0), scores)
        drawn = drawn.astype(tokens.dtype)
        return (carry, drawn), _Draft(drawn, scores)

    _, drafted = lax.scan(body, (state.draft_carry, state.tokens), jnp.arange(num_drafted, dtype=jnp.int32))
    axis = state.tokens.ndim
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, axis), drafted)


def _verify(
    sampler: Sampler | None, drafted: _Draft, logits: Float[Array, "*B m V"], position: Int[Array, "*B"]
) -> tuple[Int[Array, "*B"], Int[Array, "*B"]]:
    """How many drafted tokens of each row are kept, and the token behind them."""
    if sampler is None or drafted.scores is None:
        best = jnp.argmax(logits, axis=-1).astype(drafted.tokens.dtype)
        kept = _leading(drafted.tokens == best[..., :-1])
        return kept, jnp.take_along_axis(best, kept[..., None], axis=-1)[..., 0]
    scores = _scores(logits, sampler.filters)
    there = [
        jnp.take_along_axis(s, drafted.tokens[..., None], axis=-1)[..., 0]
        for s in (scores[..., :-1, :], drafted.scores)
    ]
    ahead = jnp.arange(drafted.tokens.shape[-1], dtype=jnp.int32)
    keys = jax.vmap(lambda i: _keys(sampler, position + i, 1), out_axes=position.ndim)(ahead)
    chances = jax.vmap(lambda key: jax.random.uniform(key, (), scores.dtype))(keys.reshape(-1)).reshape(keys.shape)
    kept = _leading(jnp.log(chances) < there[0] - there[1])
    index = kept[..., None, None]
    p = jnp.exp(jnp.take_along_axis(scores, index, axis=-2)[..., 0, :])
    none = jnp.zeros_like(drafted.scores[..., :1, :])
    q = jnp.take_along_axis(jnp.concatenate([jnp.exp(drafted.scores), none], axis=-2), index, axis=-2)[..., 0, :]
    rest = jnp.maximum(p - q, 0)
    rest = jnp.where(jnp.sum(rest, axis=-1, keepdims=True) > 0, rest, p)
    return kept, _categorical(_keys(sampler, position + kept, 2), jnp.log(rest)).astype(drafted.tokens.dtype)


def _record(
    state: _State,
    made: Int[Array, "*B m"],
    kept: Int[Array, "*B"],
    logits: Float[Array, "*B m V"],
    end_token: int | None,
) -> tuple[Speculation, Bool[Array, "*B"], Int[Array, "*B"]]:
    """The tokens written, up to an end token or the length; which rows are done; how many tokens each got."""
    out, longest = state.out, state.out.tokens.shape[-1]
    count = jnp.minimum(kept + 1, longest - out.lengths)
    if end_token is not None:
        count = jnp.minimum(count, _leading(made != end_token) + 1)
    count = jnp.where(state.done, 0, count)
    places = jnp.arange(made.shape[-1], dtype=jnp.int32)
    inside = jnp.broadcast_to(places, made.shape) < count[..., None]
    at = jnp.where(inside, out.lengths[..., None] + jnp.broadcast_to(places, made.shape), longest)
    scores = jnp.take_along_axis(jax.nn.log_softmax(logits, axis=-1), made[..., None], axis=-1)[..., 0]
    write = jax.vmap(lambda row, at, new: row.at[at].set(new, mode="drop"))
    flat = (x.reshape(-1, x.shape[-1]) for x in (out.tokens, at, made))
    lengths = out.lengths + count
    done = state.done | (lengths == longest)
    if end_token is not None:
        done |= jnp.any(inside & (made == end_token), axis=-1)
    gained = jnp.sum(jnp.where(inside, scores, jnp.zeros_like(scores)), axis=-1)
    out = out._replace(
        tokens=write(*flat).reshape(out.tokens.shape),
        lengths=lengths,
        log_probabilities=out.log_probabilities + gained,
    )
    return out, done, count


def _leading(true: Bool[Array, "*B n"]) -> Int[Array, "*B"]:
    """How many are true before the first that is not."""
    return jnp.sum(jnp.cumprod(true.astype(jnp.int32), axis=-1), axis=-1, dtype=jnp.int32)


def _scores(logits: Float[Array, "*B V"], filters: Filters) -> Float[Array, "*B V"]:
    """Log-probabilities after temperature and filters."""
    given = filters._asdict() | {"top_k": None if filters.top_k is None else filters.top_k.value}
    return jax.nn.log_softmax(filtered(logits, **given), axis=-1)


def _keys(sampler: Sampler, position: Int[Array, "*B"], purpose: int) -> Key[Array, "*B"]:
    """Row by row, a key for what is drawn at a position: a draft (0), a chance (1), a token (2)."""
    fold = lambda key, at: jax.random.fold_in(jax.random.fold_in(key, at), purpose)  # noqa: E731
    return jax.vmap(fold)(sampler.keys.reshape(-1), position.reshape(-1)).reshape(position.shape)


def _categorical(keys: Key[Array, "*B"], scores: Float[Array, "*B V"]) -> Int[Array, "*B"]:
    flat = scores.reshape(-1, scores.shape[-1])
    return jax.vmap(jax.random.categorical)(keys.reshape(-1), flat).reshape(keys.shape)
