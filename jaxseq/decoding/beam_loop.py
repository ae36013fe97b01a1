"""The loop of beam search (``beam.py`` describes the search).

Shapes: N rows of the batch, G groups, W beams per group, C candidates; R rows of the step, N·G·W of them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq.decoding.constraints import Constraint, Rule, next_states, stopped
from jaxseq.decoding.end_tokens import is_end
from jaxseq.decoding.options import Coverage
from jaxseq.decoding.rows import top_k
from jaxseq.decoding.stages import while_loop
from jaxseq.decoding.step import gather_rows, is_traced, take_rows
from jaxseq.typing import Array, Bool, Carry, Float, Int, Scalar


@dataclass(frozen=True)
class SearchConfig:
    """The static part of a search: a new value needs a new compilation."""

    batch_shape: tuple[int, ...]
    num_groups: int
    group_size: int  # beams per group, W
    max_length: int
    num_results: int
    end_tokens: tuple[int, ...]
    early_stopping: bool
    num_candidates: int  # extensions considered per group: W that do not end, and those that end among them
    vocab_size: int

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
    """The pool: the best finished hypotheses of each group, best first; empty places have a score of minus infinity.

    ``slots`` holds the slot of the live hypothesis that the last token extended.
    """

    scores: Float[Array, "N G W"]
    log_probabilities: Float[Array, "N G W"]
    lengths: Int[Array, "N G W"]
    slots: Int[Array, "N G W"]
    last_tokens: Int[Array, "N G W"]


class SearchState(NamedTuple):
    """The state of the loop.

    ``tokens``, ``totals`` and ``log_probabilities`` are those of the live hypotheses. They are compared by ``totals``,
    which logits processors change; ``log_probabilities`` are the model's own, None where there are no processors.
    ``invalid`` marks rows in which a total was NaN. ``token_table`` and ``parent_table`` hold, for each position, the
    tokens and the slots that they extended: hypotheses are traced back through them.
    """

    position: Int[Array, ""]
    rows: RowState
    tokens: Int[Array, "N G W"]
    totals: Float[Array, "N G W"]
    log_probabilities: Float[Array, "N G W"] | None
    finished: FinishedHypotheses
    done: Bool[Array, " N"]
    invalid: Bool[Array, " N"]
    token_table: Int[Array, "L N G W"]
    parent_table: Int[Array, "L N G W"]


class Candidates(NamedTuple):
    """The best extensions of a group's live hypotheses, in the order in which they were chosen.

    ``ends`` marks finished candidates, ``lives`` those that are extended further; the others are pruned. Candidates are
    compared by ``totals``; ``log_probabilities`` are the model's own.
    """

    parents: Int[Array, "N G C"]
    tokens: Int[Array, "N G C"]
    totals: Float[Array, "N G C"]
    log_probabilities: Float[Array, "N G C"]
    ends: Bool[Array, "N G C"]
    lives: Bool[Array, "N G C"]


def run_search(inputs: SearchInputs, state: SearchState, config: SearchConfig) -> SearchState:
    """Expand until every row is done, or to ``max_length``; overwrites the state's arrays."""
    return (_search if is_traced((inputs, state)) else _search_donating)(inputs, state, config=config)


def _run_search(inputs: SearchInputs, state: SearchState, config: SearchConfig) -> SearchState:

    def condition(now: SearchState) -> Array:
        return (now.position < config.max_length) & ~jnp.all(now.done)

    return while_loop(condition, lambda now: expand(inputs, now, config)[0], state, max_tokens=config.max_length)


_search = jax.jit(_run_search, static_argnames="config")
_search_donating = jax.jit(_run_search, static_argnames="config", donate_argnames="state")


def expand(inputs: SearchInputs, state: SearchState, config: SearchConfig) -> tuple[SearchState, Candidates]:
    """Extend every live hypothesis by one token; also returns the candidates that were considered."""
    carry, logits = inputs.step(state.rows.carry, state.tokens.reshape(config.row_shape))
    gains, own_gains = _gains(inputs, state, logits, config)
    totals = _extended(state.totals, gains)
    own = totals if state.log_probabilities is None else _extended(state.log_probabilities, own_gains)
    invalid = state.invalid | jnp.any(jnp.isnan(totals[..., 0]), axis=(1, 2))  # NaN is in all columns or in none
    covered = state.rows.coverage
    if inputs.coverage is not None and covered is not None:
        covered = covered + inputs.coverage.weights(carry).astype(covered.dtype)
    candidates = _choose_candidates(inputs, totals, own, state, config)
    finished = _add_finished(inputs, state, candidates, _penalties(inputs, covered, config), config)
    slots = _assign_slots(candidates, config)
    tokens = slots.tokens.astype(state.tokens.dtype)
    groups = jnp.arange(config.num_groups, dtype=slots.parents.dtype)[:, None] * config.group_size
    parents = slots.parents + jnp.broadcast_to(groups, tokens.shape)
    parents = parents.reshape(tokens.shape[0], config.num_groups * config.group_size)
    rows = RowState(carry, state.rows.constraint_states, covered)
    rows = gather_rows(rows, config.batch_shape, parents)
    constraint_states = next_states(inputs.constraints, rows.constraint_states, tokens.reshape(config.row_shape))
    after = SearchState(
        position=state.position + 1,
        rows=rows._replace(constraint_states=constraint_states),
        tokens=tokens,
        totals=slots.totals,
        log_probabilities=None if state.log_probabilities is None else slots.log_probabilities,
        finished=finished,
        done=state.done | invalid | _is_done(inputs, finished, slots.totals, state.position, config),
        invalid=invalid,
        token_table=state.token_table.at[state.position].set(tokens.astype(jnp.int32)),
        parent_table=state.parent_table.at[state.position].set(slots.parents.astype(jnp.int32)),
    )
    return after, candidates


def _gains(
    inputs: SearchInputs, state: SearchState, logits: Float[Array, "*R V"], config: SearchConfig
) -> tuple[Float[Array, "N G W V"], Float[Array, "N G W V"]]:
    """Two log-probabilities of each next token: the one by which hypotheses are compared, and the model's own.

    The first is the log softmax of the logits after the rules that change them; constraints then exclude tokens and do
    not renormalise. Where all logits are minus infinity, all log-probabilities are.
    """
    logits = logits.astype(state.totals.dtype)
    times = state.position, config.max_length - state.position
    changed, excluded = logits, jnp.zeros_like(logits)
    for rule, now in zip(inputs.constraints, state.rows.constraint_states, strict=True):
        if isinstance(rule, Constraint):
            excluded = rule(now, excluded, *times)
        else:
            changed = rule(now, changed, *times)
    own = gains = _log_softmax(logits)
    if state.log_probabilities is not None:
        gains = _log_softmax(changed)
    if inputs.constraints:
        gains = gains + excluded
    shape = (*config.beam_shape, config.vocab_size)
    return gains.reshape(shape), own.reshape(shape)


def _log_softmax(logits: Float[Array, "*R V"]) -> Float[Array, "*R V"]:
    empty = jnp.max(logits, axis=-1, keepdims=True) == -jnp.inf
    return jnp.where(empty, -jnp.inf, jax.nn.log_softmax(logits, axis=-1))


def _extended(totals: Float[Array, "N G W"], gains: Float[Array, "N G W V"]) -> Float[Array, "N G W V"]:
    """The totals of the extensions; minus infinity for those of empty slots."""
    empty = (totals == -jnp.inf)[..., None]
    return jnp.where(empty, -jnp.inf, totals[..., None] + gains)


def _choose_candidates(
    inputs: SearchInputs,
    totals: Float[Array, "N G W V"],
    own: Float[Array, "N G W V"],
    state: SearchState,
    config: SearchConfig,
) -> Candidates:
    """Choose the best extensions of each group, and decide whether each is finished, live or pruned.

    In the order of their totals, the first W that do not end are live. One that ends is finished if fewer than W live
    ones precede it. With a single beam (W = 1) none is live if the best one ends, as in greedy decoding.
    """
    (count, _, width, vocab_size), size = totals.shape, config.num_candidates
    taken = jnp.zeros((count, vocab_size), totals.dtype)
    groups = []
    for g in range(config.num_groups):
        worth = totals[:, g]
        if config.num_groups > 1:
            worth = worth - (inputs.diversity * taken)[:, None]
        worth, chosen = top_k(worth.reshape(count, width * vocab_size), size)
        parents, tokens = chosen // vocab_size, chosen % vocab_size
        ends = is_end(tokens, config.end_tokens) | _stops(inputs, state, parents, tokens, g, config)
        valid = (worth > -jnp.inf) & ~state.done[:, None]
        goes_on = valid & ~ends
        before = jnp.cumsum(goes_on, axis=-1, dtype=jnp.int32) - goes_on.astype(jnp.int32)
        inside = valid & (before < width)
        lives = inside & goes_on & ~ends[:, :1] if width == 1 else inside & goes_on
        if config.num_groups > 1:
            votes = jax.nn.one_hot(tokens, vocab_size, dtype=taken.dtype)
            taken += jnp.sum(jnp.where((lives | (inside & ends))[..., None], votes, jnp.zeros_like(votes)), axis=-2)
        flat, own_flat = (x[:, g].reshape(count, width * vocab_size) for x in (totals, own))
        total, log_probabilities = (jnp.take_along_axis(x, chosen, axis=-1) for x in (flat, own_flat))
        groups.append(Candidates(parents, tokens, total, log_probabilities, inside & ends, lives))
    return jax.tree.map(lambda *parts: jnp.stack(parts, axis=1), *groups)


def _stops(
    inputs: SearchInputs,
    state: SearchState,
    parents: Int[Array, "N C"],
    tokens: Int[Array, "N C"],
    group: int,
    config: SearchConfig,
) -> Bool[Array, "N C"]:
    """Whether a stopping criterion ends each candidate of a group."""
    pairs = list(zip(inputs.constraints, state.rows.constraint_states, strict=True))
    pairs = [(rule, now) for rule, now in pairs if rule.stops(now) is not None]
    if not pairs:
        return jnp.zeros(tokens.shape, bool)
    ndim, rows = len(config.row_shape), tokens.shape[0] * tokens.shape[1]

    def of_parent(leaf: Array) -> Array:
        slots = leaf.reshape(*config.beam_shape, *leaf.shape[ndim:])[:, group]
        return take_rows(slots, parents).reshape(rows, *slots.shape[2:])

    rules, before = zip(*pairs, strict=True)
    after = next_states(rules, jax.tree.map(of_parent, before), tokens.reshape(rows).astype(state.tokens.dtype))
    return stopped(rules, after, (rows,)).reshape(tokens.shape)


class Slots(NamedTuple):
    """The live hypotheses by slot; an empty one has a total of minus infinity and is its own parent."""

    parents: Int[Array, "N G W"]
    tokens: Int[Array, "N G W"]
    totals: Float[Array, "N G W"]
    log_probabilities: Float[Array, "N G W"]


def _assign_slots(candidates: Candidates, config: SearchConfig) -> Slots:
    """Assign each live candidate a slot of its group.

    The first child of a parent takes its parent's slot, the others take the slots of parents without children, so that
    as few carries as possible are moved.
    """

    def taken(tree: tuple[Array, ...], indices: Int[Array, "N G W"]) -> tuple[Array, ...]:
        return jax.tree.map(lambda x: jnp.take_along_axis(x, indices, axis=-1), tree)

    order = jnp.argsort(~candidates.lives, axis=-1, stable=True)[..., : config.group_size]
    rows = candidates.parents, candidates.tokens, candidates.totals, candidates.log_probabilities
    lives, parents, *others = taken((candidates.lives, *rows), order)
    places = jnp.broadcast_to(jnp.arange(config.group_size, dtype=parents.dtype), parents.shape)
    alike = (parents[..., :, None] == parents[..., None, :]) & lives[..., :, None] & lives[..., None, :]
    stays = lives & ~jnp.any(jnp.tril(alike, -1), axis=-1)
    free = ~jnp.any((parents[..., :, None] == places[..., None, :]) & lives[..., :, None], axis=-2)
    spare = jnp.argsort(~free, axis=-1, stable=True).astype(parents.dtype)
    moved = jnp.maximum(jnp.cumsum(~stays, axis=-1) - 1, 0)
    place = jnp.where(stays, parents, jnp.take_along_axis(spare, moved, axis=-1))
    lives, parents, tokens, *sums = taken((lives, parents, *others), jnp.argsort(place, axis=-1))
    totals, log_probabilities = (jnp.where(lives, x, -jnp.inf) for x in sums)
    return Slots(jnp.where(lives, parents, places), tokens, totals, log_probabilities)


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
    scores = candidates.totals / inputs.divisors[position]
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
    _, ranks = top_k(both.scores, config.group_size)
    return jax.tree.map(lambda x: jnp.take_along_axis(x, ranks, axis=-1), both)


def _is_done(
    inputs: SearchInputs,
    finished: FinishedHypotheses,
    totals: Float[Array, "N G W"],
    position: Int[Array, ""],
    config: SearchConfig,
) -> Bool[Array, " N"]:
    """Whether the results of a row are final: no group has a live hypothesis that can still reach them."""
    best = jnp.max(totals, axis=-1)
    over = best == -jnp.inf
    if config.early_stopping:
        later = jnp.minimum(position + 1, config.max_length - 1)
        last_result = finished.scores[..., min(config.num_results, config.group_size) - 1]
        over |= last_result >= best / inputs.best_divisors[later]
    return jnp.all(over, axis=-1)
