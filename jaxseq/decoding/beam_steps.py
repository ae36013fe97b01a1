"""One step of a beam search, and how hypotheses are read back (``beam.py`` says what the search is).

Shapes: N rows of the batch, G groups, W beams a group, C candidates; R rows of the step, N·G·W of them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial, register_dataclass

from jaxseq.decoding.constraints import Constraint, constrained
from jaxseq.decoding.step import gather_rows
from jaxseq.typing import Array, Bool, Carry, Float, Int, Scalar


class Hypotheses(NamedTuple):
    """What a beam search found, best first.

    ``lengths`` counts tokens, the end token too; behind them stand end tokens only (0 without one).
    ``log_probabilities`` are the model's own, ``scores`` those by which hypotheses were compared. A place that no
    hypothesis was found for has length 0 and minus infinity.
    """

    tokens: Int[Array, "*B K L"]
    lengths: Int[Array, "*B K"]
    log_probabilities: Float[Array, "*B K"]
    scores: Float[Array, "*B K"]


@partial(register_dataclass, data_fields=["strength", "mask"], meta_fields=["weights"])
@dataclass(frozen=True)
class Coverage:
    """The coverage penalty: a finished hypothesis gains ``β Σ_s log min(Σ_t a_ts, 1)``, which is never above 0.

    ``weights(carry)`` gives the attention weights ``a_t`` ``[*B S]`` out of the carry that a step leaves; ``mask``
    ``[*B S]`` says which source positions there are (True), ``strength`` is β, not below 0. ``weights`` is compared by
    identity: a lambda made anew for every search is compiled anew. Wu et al. 2016 (GNMT), section 7.
    """

    weights: Callable[[Carry], Float[Array, "*B S"]]
    strength: float | Scalar
    mask: Bool[Array, "*B S"] | None = None


@dataclass(frozen=True)
class Plan:
    """What is compiled in."""

    batch_shape: tuple[int, ...]
    num_groups: int
    width: int  # beams a group
    max_length: int
    num_results: int
    end_token: int | None
    early_stopping: bool
    num_candidates: int  # extensions that are looked at, a group: W, or more where others may take their place

    @property
    def rows(self) -> tuple[int, ...]:
        """How the step's rows are laid out."""
        beams = self.num_groups * self.width
        return (*self.batch_shape[:-1], self.batch_shape[-1] * beams) if self.batch_shape else (beams,)

    @property
    def lanes(self) -> tuple[int, int, int]:
        """Batch, groups, beams a group."""
        return int(np.prod(self.batch_shape)), self.num_groups, self.width


class Search(NamedTuple):
    """What is handed in: a pytree. ``best_divisors[t]`` is the largest divisor of a length above t."""

    step: Partial
    constraints: tuple[Constraint, ...]
    coverage: Coverage | None
    divisors: Float[Array, " L"]
    best_divisors: Float[Array, " L"]
    diversity: Scalar


class Remembered(NamedTuple):
    """What goes with a live hypothesis; its leaves are rows."""

    carry: Carry
    constrained: tuple[Any, ...]
    coverage: Float[Array, "*R S"] | None


class Pool(NamedTuple):
    """Finished hypotheses of each group, best first; where there is none, the score is minus infinity.

    ``slots`` is the place among the live ones from which the last token led here.
    """

    scores: Float[Array, "N G W"]
    log_probabilities: Float[Array, "N G W"]
    lengths: Int[Array, "N G W"]
    slots: Int[Array, "N G W"]
    last_tokens: Int[Array, "N G W"]


class Beams(NamedTuple):
    """Where the search stands. ``made`` and ``parents`` are the tables that hypotheses are read from."""

    position: Int[Array, ""]
    remembered: Remembered
    tokens: Int[Array, "N G W"]
    log_probabilities: Float[Array, "N G W"]
    pool: Pool
    done: Bool[Array, " N"]
    made: Int[Array, "L N G W"]
    parents: Int[Array, "L N G W"]


class Candidates(NamedTuple):
    """The best extensions of a group's live hypotheses, in the order in which they were chosen.

    ``ends``: it finishes here, inside the beam; ``lives``: it is in the beam and goes on. Neither: it is dropped.
    """

    parents: Int[Array, "N G C"]
    tokens: Int[Array, "N G C"]
    log_probabilities: Float[Array, "N G C"]
    ends: Bool[Array, "N G C"]
    lives: Bool[Array, "N G C"]


@partial(jax.jit, static_argnames="plan", donate_argnames="beams")
def search_all(search: Search, beams: Beams, plan: Plan) -> Beams:
    def goes_on(now: Beams) -> Array:
        return (now.position < plan.max_length) & ~jnp.all(now.done)

    return lax.while_loop(goes_on, lambda now: expand(search, now, plan)[0], beams)


def expand(search: Search, beams: Beams, plan: Plan) -> tuple[Beams, Candidates]:
    """One token more in every live hypothesis; also what was chosen from."""
    carry, logits = search.step(beams.remembered.carry, beams.tokens.reshape(plan.rows))
    logits = logits.astype(beams.log_probabilities.dtype)
    gains = jax.nn.log_softmax(logits, axis=-1)
    remaining = plan.max_length - beams.position
    allowed = constrained(search.constraints, beams.remembered.constrained, logits, beams.position, remaining)
    gains = jnp.where(allowed == -jnp.inf, -jnp.inf, gains).reshape(*plan.lanes, -1)
    totals = beams.log_probabilities[..., None] + gains
    covered = beams.remembered.coverage
    if search.coverage is not None and covered is not None:
        covered = covered + search.coverage.weights(carry).astype(covered.dtype)
    penalties = _penalties(search, covered, plan)
    candidates = _choose(search, totals, beams, penalties, plan)
    pool = _finish(search, beams, candidates, penalties, plan)
    alive, parents, tokens = _settle(candidates, plan)
    tokens = tokens.astype(beams.tokens.dtype)
    groups = jnp.arange(plan.num_groups, dtype=parents.dtype)[:, None] * plan.width
    slots = (parents + jnp.broadcast_to(groups, parents.shape)).reshape(plan.lanes[0], -1)
    remembered = Remembered(carry, beams.remembered.constrained, covered)
    remembered = gather_rows(remembered, plan.batch_shape, slots)
    pairs = zip(search.constraints, remembered.constrained, strict=True)
    states = tuple(constraint.next_state(state, tokens.reshape(plan.rows)) for constraint, state in pairs)
    after = Beams(
        position=beams.position + 1,
        remembered=remembered._replace(constrained=states),
        tokens=tokens,
        log_probabilities=alive,
        pool=pool,
        done=beams.done | _over(search, pool, alive, beams.position, plan),
        made=beams.made.at[beams.position].set(tokens.astype(jnp.int32)),
        parents=beams.parents.at[beams.position].set(parents.astype(jnp.int32)),
    )
    return after, candidates


def _choose(
    search: Search,
    totals: Float[Array, "N G W V"],
    beams: Beams,
    penalties: Float[Array, "N G W"] | None,
    plan: Plan,
) -> Candidates:
    """The best extensions of each group, group after group, and which of them are in the beam.

    An extension is in the beam if it is among the W best of the extensions and of what is finished. One that goes on
    is compared without a coverage penalty, which it may still make good.
    """
    width, vocab_size = totals.shape[-2:]
    taken = jnp.zeros((totals.shape[0], vocab_size), totals.dtype)
    groups = []
    for g in range(plan.num_groups):
        flat = totals[:, g].reshape(-1, width * vocab_size)
        worth = totals[:, g]
        if plan.num_groups > 1:
            worth = worth - (search.diversity * taken)[:, None]
        worth, chosen = lax.top_k(worth.reshape(flat.shape), min(plan.num_candidates, flat.shape[-1]))
        parents, tokens = chosen // vocab_size, chosen % vocab_size
        ends = jnp.zeros(tokens.shape, bool) if plan.end_token is None else tokens == plan.end_token
        scores = worth / search.divisors[beams.position]
        if penalties is not None:
            penalty = jnp.take_along_axis(penalties[:, g], parents, axis=-1)
            scores += jnp.where(ends, penalty, jnp.zeros_like(penalty))
        finished = jnp.sum(beams.pool.scores[:, g, None] >= scores[..., None], axis=-1)
        better = jnp.sum(scores[:, None] > scores[..., None], axis=-1)
        equal = jnp.sum(jnp.tril(scores[:, None] == scores[..., None], -1), axis=-1)
        inside = (finished + better + equal < width) & (scores > -jnp.inf) & ~beams.done[:, None]
        lives = inside & ~ends
        if plan.num_groups > 1:
            votes = jax.nn.one_hot(tokens, vocab_size, dtype=taken.dtype)
            taken += jnp.sum(jnp.where(inside[..., None], votes, jnp.zeros_like(votes)), axis=-2)
        log_probabilities = jnp.take_along_axis(flat, chosen, axis=-1)
        groups.append(Candidates(parents, tokens, log_probabilities, inside & ends, lives))
    return jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *groups)


def _settle(
    candidates: Candidates, plan: Plan
) -> tuple[Float[Array, "N G W"], Int[Array, "N G W"], Int[Array, "N G W"]]:
    """Log-probabilities, parents and tokens of those that live on, each in a place of its own.

    A parent's first child takes its parent's place, the others take the places of those that have none, so that the
    fewest carries move.
    """
    order = jnp.argsort(~candidates.lives, axis=-1, stable=True)[..., : plan.width]
    lives, parents, tokens, scores = (
        jnp.take_along_axis(x, order, axis=-1)
        for x in (candidates.lives, candidates.parents, candidates.tokens, candidates.log_probabilities)
    )
    places = jnp.broadcast_to(jnp.arange(plan.width, dtype=parents.dtype), parents.shape)
    alike = (parents[..., :, None] == parents[..., None, :]) & lives[..., :, None] & lives[..., None, :]
    stays = lives & ~jnp.any(jnp.tril(alike, -1), axis=-1)
    free = ~jnp.any((parents[..., :, None] == places[..., None, :]) & lives[..., :, None], axis=-2)
    spare = jnp.argsort(~free, axis=-1, stable=True)
    others = jnp.maximum(jnp.cumsum(~stays, axis=-1) - 1, 0)
    place = jnp.where(stays, parents, jnp.take_along_axis(spare, others, axis=-1))
    child = jnp.argsort(place, axis=-1)
    lives, parents, tokens, scores = (jnp.take_along_axis(x, child, axis=-1) for x in (lives, parents, tokens, scores))
    return jnp.where(lives, scores, -jnp.inf), jnp.where(lives, parents, places), tokens


def _penalties(search: Search, covered: Float[Array, "*R S"] | None, plan: Plan) -> Float[Array, "N G W"] | None:
    """The coverage penalty of each live hypothesis, this step's attention included."""
    if search.coverage is None or covered is None:
        return None
    logs = jnp.log(jnp.clip(covered, jnp.finfo(covered.dtype).tiny, 1))
    if search.coverage.mask is not None:
        logs = jnp.where(search.coverage.mask, logs, jnp.zeros_like(logs))
    return (search.coverage.strength * jnp.sum(logs, axis=-1)).reshape(plan.lanes)


def _finish(
    search: Search, beams: Beams, candidates: Candidates, penalties: Float[Array, "N G W"] | None, plan: Plan
) -> Pool:
    """The pool with those that end here, and at the last position those that are alive."""
    position = beams.position
    joins = candidates.ends | (candidates.lives & (position == plan.max_length - 1))
    scores = candidates.log_probabilities / search.divisors[position]
    if penalties is not None:
        scores += jnp.take_along_axis(penalties, candidates.parents, axis=-1)
    new = Pool(
        jnp.where(joins, scores, -jnp.inf),
        candidates.log_probabilities,
        jnp.broadcast_to(position + 1, scores.shape),
        candidates.parents,
        candidates.tokens,
    )
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], axis=-1), beams.pool, new)
    _, ranks = lax.top_k(both.scores, plan.width)
    return jax.tree.map(lambda x: jnp.take_along_axis(x, ranks, axis=-1), both)


def _over(
    search: Search, pool: Pool, alive: Float[Array, "N G W"], position: Int[Array, ""], plan: Plan
) -> Bool[Array, " N"]:
    """Whether nothing can change a row any more: each of its groups is finished, or out of reach of the results."""
    best = jnp.max(alive, axis=-1)
    over = best == -jnp.inf
    if plan.early_stopping:
        later = jnp.minimum(position + 1, plan.max_length - 1)
        last_result = pool.scores[..., min(plan.num_results, plan.width) - 1]
        over |= last_result >= best / search.best_divisors[later]
    return jnp.all(over, axis=-1)


@partial(jax.jit, static_argnames="plan")
def read(search: Search, beams: Beams, plan: Plan) -> Hypotheses:
    """The pools of all groups as one list, best first, each read back from its last token."""
    pool, lanes = beams.pool, plan.lanes
    fill = 0 if plan.end_token is None else plan.end_token
    found = pool.scores > -jnp.inf
    lengths = jnp.where(found, pool.lengths, 0)

    def body(slots: Array, table: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        position, made, parents = table
        last, inside = position == lengths - 1, position < lengths - 1
        tokens = jnp.where(inside, jnp.take_along_axis(made, slots, axis=-1), fill)
        tokens = jnp.where(last, pool.last_tokens, tokens)
        return jnp.where(inside, jnp.take_along_axis(parents, slots, axis=-1), slots), tokens

    tables = (jnp.arange(plan.max_length), beams.made, beams.parents)
    _, tokens = lax.scan(body, pool.slots, tables, reverse=True)
    beams_a_row = lanes[1] * lanes[2]
    scores, order = lax.top_k(pool.scores.reshape(lanes[0], beams_a_row), plan.num_results)

    def best(x: Array) -> Array:
        rows = x.reshape(lanes[0], beams_a_row, *x.shape[3:])
        order_ = order.reshape(*order.shape, *(1,) * (rows.ndim - 2))
        kept = jnp.take_along_axis(rows, jnp.broadcast_to(order_, (*order.shape, *rows.shape[2:])), axis=1)
        return kept.reshape(*plan.batch_shape, plan.num_results, *x.shape[3:])

    log_probabilities = jnp.where(found, pool.log_probabilities, -jnp.inf)
    sequences = jnp.moveaxis(tokens, 0, -1).astype(beams.tokens.dtype)
    return Hypotheses(best(sequences), best(lengths), best(log_probabilities), scores.reshape(*plan.batch_shape, -1))
