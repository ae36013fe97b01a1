"""The loop of beam search: one step of it, and how hypotheses are traced back (``beam.py`` describes the search).

Shapes: N rows of the batch, G groups, W beams per group, C candidates; R rows of the step, N·G·W of them.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from jaxseq.decoding.constraints import Rule, apply_constraints
from jaxseq.decoding.options import Coverage
from jaxseq.decoding.step import gather_rows
from jaxseq.typing import Array, Bool, Carry, Float, Int, Scalar


class Hypotheses(NamedTuple):
    """The results of a beam search, best first.

    Attributes:
        tokens: each hypothesis' tokens, padded with end tokens (0 without an end token).
        lengths: the number of tokens, the end token included; 0 where no hypothesis was found.
        log_probabilities: the model's own; minus infinity where no hypothesis was found.
        scores: the normalised log-probability, plus the coverage penalty, by which hypotheses are compared.
    """

    tokens: Int[Array, "*B K L"]
    lengths: Int[Array, "*B K"]
    log_probabilities: Float[Array, "*B K"]
    scores: Float[Array, "*B K"]


@dataclass(frozen=True)
class SearchConfig:
    """The static part of a search: a new value needs a new compilation."""

    batch_shape: tuple[int, ...]
    num_groups: int
    group_size: int  # beams per group, W
    max_length: int
    num_results: int
    end_token: int | None
    early_stopping: bool
    num_candidates: int  # extensions considered per group: W, or more where others may take their place

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The batch dimensions that the step sees."""
        beams = self.num_groups * self.group_size
        return (*self.batch_shape[:-1], self.batch_shape[-1] * beams) if self.batch_shape else (beams,)

    @property
    def beam_shape(self) -> tuple[int, int, int]:
        """``(N, G, W)``."""
        return int(np.prod(self.batch_shape)), self.num_groups, self.group_size


class SearchInputs(NamedTuple):
    """The constant inputs of a search, a pytree. ``best_divisors[t]`` is the largest divisor of a length above t."""

    step: Partial
    constraints: tuple[Rule, ...]
    coverage: Coverage | None
    divisors: Float[Array, " L"]
    best_divisors: Float[Array, " L"]
    diversity: Scalar


class RowState(NamedTuple):
    """The state of a live hypothesis; its leaves are rows of the step. ``coverage`` sums the attention weights."""

    carry: Carry
    constraint_states: tuple[Carry, ...]
    coverage: Float[Array, "*R S"] | None


class FinishedHypotheses(NamedTuple):
    """The finished hypotheses of each group, best first; empty places have a score of minus infinity.

    ``slots`` is the place among the live hypotheses of the one that the last token extended.
    """

    scores: Float[Array, "N G W"]
    log_probabilities: Float[Array, "N G W"]
    lengths: Int[Array, "N G W"]
    slots: Int[Array, "N G W"]
    last_tokens: Int[Array, "N G W"]


class SearchState(NamedTuple):
    """The state of the loop.

    ``tokens`` and ``log_probabilities`` are those of the live hypotheses. ``token_table`` and ``parent_table`` hold,
    for each position, their tokens and the slots that they extended: hypotheses are traced back through them.
    """

    position: Int[Array, ""]
    rows: RowState
    tokens: Int[Array, "N G W"]
    log_probabilities: Float[Array, "N G W"]
    finished: FinishedHypotheses
    done: Bool[Array, " N"]
    token_table: Int[Array, "L N G W"]
    parent_table: Int[Array, "L N G W"]


class Candidates(NamedTuple):
    """The best extensions of a group's live hypotheses, in the order in which they were chosen.

    ``ends``: it finishes, inside the beam; ``lives``: it is in the beam and is extended further. If both are False it
    is pruned.
    """

    parents: Int[Array, "N G C"]
    tokens: Int[Array, "N G C"]
    log_probabilities: Float[Array, "N G C"]
    ends: Bool[Array, "N G C"]
    lives: Bool[Array, "N G C"]


@partial(jax.jit, static_argnames="config", donate_argnames="state")
def run_search(inputs: SearchInputs, state: SearchState, config: SearchConfig) -> SearchState:
    """Expand until every row is done, or to ``max_length``."""

    def condition(now: SearchState) -> Array:
        return (now.position < config.max_length) & ~jnp.all(now.done)

    return lax.while_loop(condition, lambda now: expand(inputs, now, config)[0], state)


def expand(inputs: SearchInputs, state: SearchState, config: SearchConfig) -> tuple[SearchState, Candidates]:
    """Extend every live hypothesis by one token; also returns the candidates that were considered."""
    carry, logits = inputs.step(state.rows.carry, state.tokens.reshape(config.row_shape))
    logits = logits.astype(state.log_probabilities.dtype)
    gains = jax.nn.log_softmax(logits, axis=-1)
    remaining = config.max_length - state.position
    allowed = apply_constraints(inputs.constraints, state.rows.constraint_states, logits, state.position, remaining)
    gains = jnp.where(allowed == -jnp.inf, -jnp.inf, gains).reshape(*config.beam_shape, -1)
    totals = state.log_probabilities[..., None] + gains
    covered = state.rows.coverage
    if inputs.coverage is not None and covered is not None:
        covered = covered + inputs.coverage.weights(carry).astype(covered.dtype)
    penalties = _penalties(inputs, covered, config)
    candidates = _choose_candidates(inputs, totals, state, penalties, config)
    finished = _add_finished(inputs, state, candidates, penalties, config)
    alive, parents, tokens = _assign_slots(candidates, config)
    tokens = tokens.astype(state.tokens.dtype)
    groups = jnp.arange(config.num_groups, dtype=parents.dtype)[:, None] * config.group_size
    slots = (parents + jnp.broadcast_to(groups, parents.shape)).reshape(config.beam_shape[0], -1)
    rows = RowState(carry, state.rows.constraint_states, covered)
    rows = gather_rows(rows, config.batch_shape, slots)
    pairs = zip(inputs.constraints, rows.constraint_states, strict=True)
    constraint_states = tuple(rule.next_state(before, tokens.reshape(config.row_shape)) for rule, before in pairs)
    after = SearchState(
        position=state.position + 1,
        rows=rows._replace(constraint_states=constraint_states),
        tokens=tokens,
        log_probabilities=alive,
        finished=finished,
        done=state.done | _is_done(inputs, finished, alive, state.position, config),
        token_table=state.token_table.at[state.position].set(tokens.astype(jnp.int32)),
        parent_table=state.parent_table.at[state.position].set(parents.astype(jnp.int32)),
    )
    return after, candidates


def _choose_candidates(
    inputs: SearchInputs,
    totals: Float[Array, "N G W V"],
    state: SearchState,
    penalties: Float[Array, "N G W"] | None,
    config: SearchConfig,
) -> Candidates:
    """The best extensions of each group, group by group, and which of them are in the beam.

    An extension is in the beam if it is among the W best of the group's extensions and finished hypotheses. One that
    does not end is compared without a coverage penalty, because its coverage can still grow.
    """
    width, vocab_size = totals.shape[-2:]
    taken = jnp.zeros((totals.shape[0], vocab_size), totals.dtype)
    groups = []
    for g in range(config.num_groups):
        flat = totals[:, g].reshape(-1, width * vocab_size)
        worth = totals[:, g]
        if config.num_groups > 1:
            worth = worth - (inputs.diversity * taken)[:, None]
        worth, chosen = lax.top_k(worth.reshape(flat.shape), min(config.num_candidates, flat.shape[-1]))
        parents, tokens = chosen // vocab_size, chosen % vocab_size
        ends = jnp.zeros(tokens.shape, bool) if config.end_token is None else tokens == config.end_token
        scores = worth / inputs.divisors[state.position]
        if penalties is not None:
            penalty = jnp.take_along_axis(penalties[:, g], parents, axis=-1)
            scores += jnp.where(ends, penalty, jnp.zeros_like(penalty))
        finished = jnp.sum(state.finished.scores[:, g, None] >= scores[..., None], axis=-1)
        better = jnp.sum(scores[:, None] > scores[..., None], axis=-1)
        equal = jnp.sum(jnp.tril(scores[:, None] == scores[..., None], -1), axis=-1)
        inside = (finished + better + equal < width) & (scores > -jnp.inf) & ~state.done[:, None]
        lives = inside & ~ends
        if config.num_groups > 1:
            votes = jax.nn.one_hot(tokens, vocab_size, dtype=taken.dtype)
            taken += jnp.sum(jnp.where(inside[..., None], votes, jnp.zeros_like(votes)), axis=-2)
        log_probabilities = jnp.take_along_axis(flat, chosen, axis=-1)
        groups.append(Candidates(parents, tokens, log_probabilities, inside & ends, lives))
    return jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *groups)


def _assign_slots(
    candidates: Candidates, config: SearchConfig
) -> tuple[Float[Array, "N G W"], Int[Array, "N G W"], Int[Array, "N G W"]]:
    """Assign each live candidate a slot of its group; returns log-probabilities, parents and tokens by slot.

    The first child of a parent takes its parent's slot, the others take the slots of parents without children, so that
    as few carries as possible are moved.
    """
    order = jnp.argsort(~candidates.lives, axis=-1, stable=True)[..., : config.group_size]
    lives, parents, tokens, scores = (
        jnp.take_along_axis(x, order, axis=-1)
        for x in (candidates.lives, candidates.parents, candidates.tokens, candidates.log_probabilities)
    )
    places = jnp.broadcast_to(jnp.arange(config.group_size, dtype=parents.dtype), parents.shape)
    alike = (parents[..., :, None] == parents[..., None, :]) & lives[..., :, None] & lives[..., None, :]
    stays = lives & ~jnp.any(jnp.tril(alike, -1), axis=-1)
    free = ~jnp.any((parents[..., :, None] == places[..., None, :]) & lives[..., :, None], axis=-2)
    spare = jnp.argsort(~free, axis=-1, stable=True)
    others = jnp.maximum(jnp.cumsum(~stays, axis=-1) - 1, 0)
    place = jnp.where(stays, parents, jnp.take_along_axis(spare, others, axis=-1))
    child = jnp.argsort(place, axis=-1)
    lives, parents, tokens, scores = (jnp.take_along_axis(x, child, axis=-1) for x in (lives, parents, tokens, scores))
    return jnp.where(lives, scores, -jnp.inf), jnp.where(lives, parents, places), tokens


def _penalties(
    inputs: SearchInputs, covered: Float[Array, "*R S"] | None, config: SearchConfig
) -> Float[Array, "N G W"] | None:
    """The coverage penalty of each live hypothesis, with the attention of this step."""
    if inputs.coverage is None or covered is None:
        return None
    logs = jnp.log(jnp.clip(covered, jnp.finfo(covered.dtype).tiny, 1))
    if inputs.coverage.mask is not None:
        logs = jnp.where(inputs.coverage.mask, logs, jnp.zeros_like(logs))
    return (inputs.coverage.strength * jnp.sum(logs, axis=-1)).reshape(config.beam_shape)


def _add_finished(
    inputs: SearchInputs,
    state: SearchState,
    candidates: Candidates,
    penalties: Float[Array, "N G W"] | None,
    config: SearchConfig,
) -> FinishedHypotheses:
    """The finished hypotheses with the candidates that end here, and at the last position with the live ones."""
    position = state.position
    joins = candidates.ends | (candidates.lives & (position == config.max_length - 1))
    scores = candidates.log_probabilities / inputs.divisors[position]
    if penalties is not None:
        scores += jnp.take_along_axis(penalties, candidates.parents, axis=-1)
    new = FinishedHypotheses(
        jnp.where(joins, scores, -jnp.inf),
        candidates.log_probabilities,
        jnp.broadcast_to(position + 1, scores.shape),
        candidates.parents,
        candidates.tokens,
    )
    both = jax.tree.map(lambda old, new: jnp.concatenate([old, new.astype(old.dtype)], axis=-1), state.finished, new)
    _, ranks = lax.top_k(both.scores, config.group_size)
    return jax.tree.map(lambda x: jnp.take_along_axis(x, ranks, axis=-1), both)


def _is_done(
    inputs: SearchInputs,
    finished: FinishedHypotheses,
    alive: Float[Array, "N G W"],
    position: Int[Array, ""],
    config: SearchConfig,
) -> Bool[Array, " N"]:
    """Whether the results of a row are final: no group has a live hypothesis that can still reach them."""
    best = jnp.max(alive, axis=-1)
    over = best == -jnp.inf
    if config.early_stopping:
        later = jnp.minimum(position + 1, config.max_length - 1)
        last_result = finished.scores[..., min(config.num_results, config.group_size) - 1]
        over |= last_result >= best / inputs.best_divisors[later]
    return jnp.all(over, axis=-1)


@partial(jax.jit, static_argnames="config")
def trace_back(state: SearchState, config: SearchConfig) -> Hypotheses:
    """The finished hypotheses of all groups, best first; their tokens follow the parents back from the last token."""
    finished, (num_rows, num_groups, group_size) = state.finished, config.beam_shape
    fill = 0 if config.end_token is None else config.end_token
    found = finished.scores > -jnp.inf
    lengths = jnp.where(found, finished.lengths, 0)

    def body(slots: Array, table: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        position, token_row, parent_row = table
        last, inside = position == lengths - 1, position < lengths - 1
        tokens = jnp.where(inside, jnp.take_along_axis(token_row, slots, axis=-1), fill)
        tokens = jnp.where(last, finished.last_tokens, tokens)
        return jnp.where(inside, jnp.take_along_axis(parent_row, slots, axis=-1), slots), tokens

    tables = (jnp.arange(config.max_length), state.token_table, state.parent_table)
    _, tokens = lax.scan(body, finished.slots, tables, reverse=True)
    num_beams = num_groups * group_size
    scores, order = lax.top_k(finished.scores.reshape(num_rows, num_beams), config.num_results)

    def best(x: Array) -> Array:
        rows = x.reshape(num_rows, num_beams, *x.shape[3:])
        places = order.reshape(*order.shape, *(1,) * (rows.ndim - 2))
        kept = jnp.take_along_axis(rows, jnp.broadcast_to(places, (*order.shape, *rows.shape[2:])), axis=1)
        return kept.reshape(*config.batch_shape, config.num_results, *x.shape[3:])

    log_probabilities = jnp.where(found, finished.log_probabilities, -jnp.inf)
    sequences = jnp.moveaxis(tokens, 0, -1).astype(state.tokens.dtype)
    return Hypotheses(best(sequences), best(lengths), best(log_probabilities), scores.reshape(*config.batch_shape, -1))
