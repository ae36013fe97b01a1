"""Beam search over a step and any carry.

    options = BeamOptions(num_beams=4, normalization="gnmt")
    hypotheses = beam_search(step, carry, first_tokens, options, max_length=50, end_token=2)

A beam of size K holds up to K unfinished hypotheses of one length. A pool beside it holds the K best finished ones. In
each step the extensions of the beam by one token are taken in the order of their log-probabilities:

- the first K that do not end are the next beam;
- those that end, with fewer than K unfinished ones before them, join the pool, which keeps the K best by score.

The search is over when no unfinished hypothesis can reach the results any more, and at ``max_length``, where unfinished
hypotheses join the pool as they are. K = V^L enumerates all sequences. K = 1 is greedy decoding under any
normalisation: its search is over when the best extension ends.

Hypotheses are stored as tables of tokens and parents, which are traced back once at the end; nothing that grows with
the length is copied at each step.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq.decoding.beam_loop import (
    FinishedHypotheses,
    RowState,
    SearchConfig,
    SearchInputs,
    SearchState,
    run_search,
)
from jaxseq.decoding.beam_results import Hypotheses, trace_back, with_carry
from jaxseq.decoding.constraints import Constraint, LogitsProcessor, Rule, as_constraints, check_constraints
from jaxseq.decoding.end_tokens import EndToken, as_end_tokens
from jaxseq.decoding.generation import check_max_length
from jaxseq.decoding.normalization import divisor_table
from jaxseq.decoding.options import BeamOptions, Coverage
from jaxseq.decoding.step import (
    AnyStep,
    Count,
    Memory,
    as_arrays,
    as_partial,
    as_token_ids,
    bind_memory,
    check_inputs,
    check_rows,
    check_step,
    repeat_rows,
)
from jaxseq.ops.ids import check_ids, valid_ids
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Carry, DType, Int, Integer


def beam_search(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    options: BeamOptions = BeamOptions(),
    *,
    max_length: Count,
    end_token: EndToken,
    constraints: Sequence[Rule] = (),
    memory: Memory = None,
) -> Hypotheses:
    """The best hypotheses that a beam finds, best first.

    The score of a hypothesis y is ``total / divisor(|y|)``, plus the coverage penalty. The total is log P(y | x); with
    logits processors among the constraints it sums the log softmax of the logits that they return, so that one beam is
    still greedy decoding and a total only falls.

    New values of diversity, of the coverage penalty's strength and mask, of normalizations, and of constraints of the
    same shapes need no new compilation.

    Args:
        step, carry, first_tokens, max_length, constraints, memory: as for ``greedy``. The carry and the memory are
            repeated ``num_beams`` times; their leaves must lead with ``*B``.
        options: the size of the beam, the normalisation, diverse groups, the coverage penalty.
        end_token: a hypothesis ends at this token, or at any of several; ``None`` finds sequences of ``max_length``
            tokens.

    Raises:
        ValueError: ``num_beams`` above the number of sequences there are, ``V^max_length``; a normalization that is
            not positive; a coverage mask that does not lead with ``*B``; else as ``greedy``.
    """
    inputs, config, state = start_search(step, carry, first_tokens, options, max_length, end_token, constraints, memory)
    found = trace_back(run_search(inputs, state, config), config)
    return with_carry(step, carry, first_tokens, memory, found) if options.keep_carry else found


def start_search(
    step: AnyStep,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    options: BeamOptions,
    max_length: Count,
    end_token: EndToken,
    constraints: Sequence[Rule],
    memory: Memory,
    with_pruned: bool = False,
) -> tuple[SearchInputs, SearchConfig, SearchState]:
    """Check the arguments and make the state before the first step.

    ``with_pruned`` also considers candidates that cannot enter the beam, for ``search_tree``.
    """
    first_tokens, carry, rules = (
        as_token_ids(first_tokens, "first_tokens"),
        as_arrays(carry),
        as_constraints(constraints),
    )
    max_length = check_max_length(carry, max_length)
    check_inputs(carry, memory, first_tokens.shape)
    ends = as_end_tokens(end_token)
    logits = check_step(bind_memory(step, memory), carry, first_tokens, None)
    vocab_size, coverage = logits.shape[-1], options.coverage
    as_end_tokens(ends, vocab_size)
    check_ids("first_tokens", first_tokens, vocab_size)
    # a power of this many bits is larger; V^max_length itself may be too large to compute
    if options.num_beams > vocab_size ** min(max_length, options.num_beams.bit_length()):
        raise ValueError(
            f"num_beams={options.num_beams}: there are only {vocab_size**max_length} sequences of "
            f"max_length={max_length} over a vocabulary of {vocab_size}"
        )
    check_constraints(rules, vocab_size, max_length, ends)
    if coverage is not None:
        check_rows(coverage.mask, first_tokens.shape, "coverage mask")
    group_size = options.num_beams // options.num_groups
    may_stop = any(not isinstance(rule, Constraint | LogitsProcessor) for rule in rules)
    num_ends = max(len(ends) + may_stop, int(with_pruned))
    config = SearchConfig(
        batch_shape=first_tokens.shape,
        num_groups=options.num_groups,
        group_size=group_size,
        max_length=max_length,
        num_results=options.num_beams if options.num_results is None else options.num_results,
        end_tokens=ends,
        early_stopping=options.early_stopping,
        num_candidates=group_size * min(1 + num_ends, vocab_size),
        vocab_size=vocab_size,
    )
    dtype = jnp.dtype(at_least_float32(logits.dtype))
    divisors = divisor_table(options.normalization, max_length)
    best_divisors = np.maximum.accumulate(divisors[::-1])[::-1]
    numbers = (jnp.asarray(x, dtype) for x in (divisors, best_divisors, options.diversity))
    row_step, state, coverage = _init_search(
        as_partial(step), carry, first_tokens, memory, rules, coverage, config, dtype=dtype
    )
    return SearchInputs(row_step, rules, coverage, *numbers), config, state


@partial(jax.jit, static_argnames=("config", "dtype"))
def _init_search(
    step: AnyStep,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    memory: Memory,
    constraints: tuple[Rule, ...],
    coverage: Coverage | None,
    config: SearchConfig,
    *,
    dtype: DType,
) -> tuple[Partial, SearchState, Coverage | None]:
    """The repeated rows; each group has one live hypothesis, the empty one."""
    states = tuple(constraint.initial_state(config.batch_shape, config.max_length) for constraint in constraints)
    mask = None if coverage is None else coverage.mask
    copies = config.num_groups * config.group_size
    row_step, (carry, states, mask), tokens = repeat_rows(step, (carry, states, mask), first_tokens, memory, copies)
    covered = None
    if coverage is not None:
        weights = jax.eval_shape(coverage.weights, carry)
        covered = jnp.zeros(weights.shape, dtype)
        coverage = Coverage(coverage.weights, jnp.asarray(coverage.strength, dtype), mask)
    shape = config.beam_shape
    lowest = jnp.full(shape, -jnp.inf, dtype)
    first = jnp.where(valid_ids(first_tokens, config.vocab_size), 0, jnp.asarray(jnp.nan, dtype))
    totals = lowest.at[:, :, 0].set(first.reshape(shape[0], 1))
    processed = any(not isinstance(rule, Constraint) for rule in constraints)
    empty = jnp.zeros(shape, jnp.int32)
    table = jnp.zeros((config.max_length, *shape), jnp.int32)
    state = SearchState(
        position=jnp.zeros((), jnp.int32),
        rows=RowState(carry, states, covered),
        tokens=tokens.reshape(shape),
        totals=totals,
        log_probabilities=jnp.copy(totals) if processed else None,
        finished=FinishedHypotheses(lowest, lowest, empty, empty, empty),
        done=jnp.zeros(shape[0], bool),
        invalid=jnp.zeros(shape[0], bool),
        token_table=table,
        parent_table=table,
    )
    return row_step, state, coverage
