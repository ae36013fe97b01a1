"""Beam search over a step and any carry.

    hypotheses = beam_search(step, carry, first_tokens, end_token=2, num_beams=4, max_length=50)

The beam is the K best, by score, of all that have finished in it and of all one-token extensions of those in it that
have not. What finishes inside the beam is never lost: it holds its place as long as it is among the K best, and takes
it again when others fall behind. The search is over when all K best are finished, or at ``max_length``, where those
alive are taken as they are. So it is greedy decoding for K = 1, whatever the normalisation, and knows every sequence
for K = V^L.

Nothing is copied that grows with what was made: hypotheses are a table of tokens and parents, read backwards once.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxseq.decoding.beam_steps import (
    Beams,
    Coverage,
    Hypotheses,
    Plan,
    Pool,
    Remembered,
    Search,
    read,
    search_all,
)
from jaxseq.decoding.constraints import Constraint, as_constraints, check_constraints
from jaxseq.decoding.generation import check_max_length
from jaxseq.decoding.normalization import Normalization, divisors
from jaxseq.decoding.step import (
    Step,
    as_arrays,
    as_partial,
    as_tokens,
    check_rows,
    check_step,
    repeated_rows,
    with_memory,
)
from jaxseq.precision import at_least_float32
from jaxseq.typing import Array, Carry, Int, Integer


def beam_search(
    step: Step,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    *,
    end_token: int | None,
    num_beams: int,
    max_length: int,
    num_results: int | None = None,
    normalization: str | Normalization = "none",
    early_stopping: bool = True,
    num_groups: int = 1,
    diversity: float = 0.0,
    coverage: Coverage | None = None,
    constraints: Sequence[Constraint] = (),
    memory: Any = None,
) -> Hypotheses:
    """The ``num_results`` (all ``num_beams`` unless given) best hypotheses that a beam of ``num_beams`` finds.

    A score is ``log P(y | x) / divisor(|y|)``, plus the coverage penalty: ``normalization`` is ``"none"``,
    ``"mean"``, ``"gnmt"``, ``GNMT(alpha)``, or any positive function of a length. With ``early_stopping`` a row is
    also over as soon as no live hypothesis can reach the results any more: a log-probability only falls, so that a
    live one is worth at most itself over the largest divisor to come. What is returned is the same without it.

    Diverse beam search (Vijayakumar et al. 2018): ``num_groups`` groups share the beams and search side by side. At
    each step a group chooses after the ones before it, and each of its tokens costs ``diversity`` for every
    hypothesis of theirs that has just taken it. Scores stay free of that cost; two groups may find the same.

    The carry is repeated ``num_beams`` times, whatever it is; its leaves must lead with the batch dimensions.

    Raises:
        ValueError: ``num_beams`` below 1 or above the number of sequences there are, ``V^max_length``; groups that
            do not divide the beams; ``num_results`` outside [1, num_beams]; a normalization that is not positive;
            else as ``greedy``.
    """
    search, plan, beams = begin(
        step,
        carry,
        first_tokens,
        end_token=end_token,
        num_beams=num_beams,
        max_length=max_length,
        num_results=num_results,
        normalization=normalization,
        early_stopping=early_stopping,
        num_groups=num_groups,
        diversity=diversity,
        coverage=coverage,
        constraints=constraints,
        memory=memory,
    )
    return read(search, search_all(search, beams, plan), plan)


def begin(
    step: Step,
    carry: Carry,
    first_tokens: Integer[np.ndarray | Array, "*B"],
    *,
    end_token: int | None,
    num_beams: int,
    max_length: int,
    num_results: int | None,
    normalization: str | Normalization,
    early_stopping: bool,
    num_groups: int,
    diversity: float,
    coverage: Coverage | None,
    constraints: Sequence[Constraint],
    memory: Any,
    traced: bool = False,
) -> tuple[Search, Plan, Beams]:
    """Everything checked, and the beams before the first step; ``traced`` also looks at what is dropped."""
    first_tokens, carry, parts = as_tokens(first_tokens), as_arrays(carry), as_constraints(constraints)
    check_max_length(carry, max_length)
    check_rows((carry, memory), first_tokens.shape, "(carry, memory)")
    logits = check_step(with_memory(step, memory), carry, first_tokens, end_token)
    vocab_size = logits.shape[-1]
    results = num_beams if num_results is None else num_results
    _check_sizes(num_beams, num_groups, results, diversity, vocab_size, max_length)
    check_constraints(parts, vocab_size, max_length, end_token)
    if coverage is not None and not 0 <= float(coverage.strength) < float("inf"):
        raise ValueError(f"coverage strength must not be below 0, and finite, not {coverage.strength}")
    if coverage is not None:
        check_rows(coverage.mask, first_tokens.shape, "coverage mask")
    table = divisors(normalization, max_length)
    dtype = at_least_float32(logits.dtype)
    width = num_beams // num_groups
    candidates = min(2 * width, width * vocab_size) if coverage is not None or traced else width
    plan = Plan(first_tokens.shape, num_groups, width, max_length, results, end_token, early_stopping, candidates)
    best = np.maximum.accumulate(table[::-1])[::-1]
    arrays = (jnp.asarray(x, dtype) for x in (table, best, diversity))
    given = (as_partial(step), carry, first_tokens, memory, parts, coverage)
    rows_step, beams, coverage = _start(*given, plan, dtype=jnp.dtype(dtype))
    return Search(rows_step, parts, coverage, *arrays), plan, beams


def _check_sizes(
    num_beams: int, num_groups: int, num_results: int, diversity: float, vocab_size: int, max_length: int
) -> None:
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, not {num_beams}")
    if num_beams > vocab_size**max_length:
        raise ValueError(
            f"num_beams={num_beams}: there are only {vocab_size**max_length} sequences of "
            f"max_length={max_length} over a vocabulary of {vocab_size}"
        )
    if num_groups < 1 or num_beams % num_groups:
        raise ValueError(f"num_beams={num_beams} is not divisible by num_groups={num_groups}")
    if not 1 <= num_results <= num_beams:
        raise ValueError(f"num_results must lie in [1, {num_beams}] (the beams), not {num_results}")
    if not 0 <= diversity < float("inf"):
        raise ValueError(f"diversity must not be below 0, and finite, not {diversity}")
    if diversity and num_groups == 1:
        raise ValueError(f"diversity={diversity} works between groups: num_groups must be above 1")


@partial(jax.jit, static_argnames=("plan", "dtype"))
def _start(
    step: Step,
    carry: Carry,
    first_tokens: Int[Array, "*B"],
    memory: Any,
    constraints: tuple[Constraint, ...],
    coverage: Coverage | None,
    plan: Plan,
    *,
    dtype: Any,
) -> tuple[Partial, Beams, Coverage | None]:
    """One live hypothesis a group: the empty one."""
    copies = plan.num_groups * plan.width
    states = tuple(constraint.initial_state(plan.batch_shape, plan.max_length) for constraint in constraints)
    mask = None if coverage is None else coverage.mask
    step, (carry, states, mask), tokens = repeated_rows(step, (carry, states, mask), first_tokens, memory, copies)
    covered = None
    if coverage is not None:
        weights = jax.eval_shape(coverage.weights, carry)
        covered = jnp.zeros(weights.shape, dtype)
        coverage = Coverage(coverage.weights, jnp.asarray(coverage.strength, dtype), mask)
    lanes = plan.lanes
    low = jnp.full(lanes, -jnp.inf, dtype)
    empty = jnp.zeros(lanes, jnp.int32)
    tables = jnp.zeros((plan.max_length, *lanes), jnp.int32)
    return (
        step,
        Beams(
            position=jnp.zeros((), jnp.int32),
            remembered=Remembered(carry, states, covered),
            tokens=tokens.reshape(lanes),
            log_probabilities=low.at[:, :, 0].set(0),
            pool=Pool(low, low, empty, empty, empty),
            done=jnp.zeros(lanes[0], bool),
            made=tables,
            parents=tables,
        ),
        coverage,
    )
