"""One law for every op with segment ids: NaN at padding gives the values and gradients of zeros there."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilation import jitted
from jax.tree_util import Partial

from jaxseq import ops
from jaxseq.ops import cells

B, T, N, H = 2, 5, 1, 4
IDS = jnp.asarray([[1, 1, 0, 2, 0], [0, 1, 1, 1, 1]])


class Case(NamedTuple):
    """An op: ``op(state, sequences, weights, **options)``, the shapes of its arguments, and its options."""

    op: Callable
    state: Any
    sequences: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[int, ...], ...] = ()
    options: tuple[dict, ...] = ({},)


def implementations(*names: str) -> tuple[dict, ...]:
    """An option for each name."""
    return tuple({"implementation": name} for name in names)


def of_cell(cell: Callable, run: Callable) -> Callable:
    """A recurrence whose first weight is the cell's own parameter, or belongs to no cell if it is empty."""

    def op(state: Any, sequences: tuple, weights: tuple, **options: Any) -> Any:
        own, *weights = weights
        bound = Partial(cell, own) if own.size else cell
        return run(bound, state, *sequences, *weights, segment_ids=IDS, **options)

    return op


def plain(op: Callable) -> Callable:
    """An op of state, sequences and weights."""
    return lambda state, sequences, weights, **options: op(state, *sequences, *weights, segment_ids=IDS, **options)


def decay_first(op: Callable) -> Callable:
    """A matrix-state op; its decays must be at most 0."""
    return lambda state, sequences, weights, **options: op(
        state, *sequences[:-1], -jnp.abs(sequences[-1]), segment_ids=IDS, **options
    )


def dense_scan(state: Any, sequences: tuple, weights: tuple) -> Any:
    """``plain_recurrence`` with a step that mixes units."""

    def step(state: cells.Hidden, x: jax.Array) -> cells.Hidden:
        return cells.Hidden(jnp.tanh(x @ weights[0] + state.h @ weights[1]))

    return ops.plain_recurrence(step, state, *sequences, segment_ids=IDS)


def attended(state: Any, sequences: tuple, weights: tuple, **options: Any) -> Any:
    """Self-attention within segments; it has no state."""
    mask = ops.masks.causal() & ops.masks.segments(IDS, IDS)
    return state, ops.attention(*sequences, mask=mask, **options)


CHUNKWISE = implementations("chunkwise", "reference")
FUSED = (*implementations("fused", "reference"), {"residuals": "chunks"})
one = cells.Hidden((B, H))
two = cells.LSTMState((B, H), (B, H))
vectors, numbers, memory = (B, T, N, H), (B, T, N), (B, N, H, H)
CASES = {
    "recurrence": Case(of_cell(cells.gru, ops.recurrence), one, ((B, T, 3, H),), ((H,), (1, H, 3, H)), FUSED),
    "recurrence, two heads": Case(
        of_cell(cells.lstm, ops.recurrence), two, ((B, T, 4, H),), ((0,), (2, H // 2, 4, H // 2)), FUSED
    ),
    "recurrence_with_projection": Case(
        of_cell(cells.lstm, ops.recurrence_with_projection),
        two,
        ((B, T, 3),),
        ((0,), (3, 4 * H), (4 * H,), (1, H, 4, H)),
        FUSED,
    ),
    "recurrence_reference": Case(
        of_cell(cells.elman_tanh, ops.recurrence_reference), one, ((B, T, 1, H),), ((0,), (1, H, 1, H))
    ),
    "plain_recurrence": Case(dense_scan, one, ((B, T, 3),), ((3, H), (H, H))),
    "gru_reset_before": Case(plain(ops.gru_reset_before), one, ((B, T, 3, H),), ((H, 3, H),)),
    "linear_recurrence": Case(
        plain(ops.linear_recurrence),
        (B, H),
        ((B, T, H), (B, T, H)),
        options=implementations("loop", "associative", "reference"),
    ),
    "linear_attention": Case(
        decay_first(ops.linear_attention), memory, (vectors, vectors, vectors, numbers), options=CHUNKWISE
    ),
    "linear_attention, decay by channel": Case(
        decay_first(ops.linear_attention), memory, (vectors, vectors, vectors, vectors), options=CHUNKWISE
    ),
    "delta_rule": Case(
        decay_first(ops.delta_rule), memory, (vectors, vectors, vectors, numbers, numbers), options=CHUNKWISE
    ),
    "mlstm": Case(
        decay_first(ops.mlstm),
        ops.MLSTMState(memory, (B, N, H), (B, N)),
        (vectors, vectors, vectors, numbers, numbers),
        options=CHUNKWISE,
    ),
    "causal_convolution": Case(
        plain(ops.causal_convolution), (B, 2, H), ((B, T, H),), ((3, H),), implementations("direct", "reference")
    ),
    "causal_convolution, full": Case(
        plain(ops.causal_convolution), (B, 2, H), ((B, T, H),), ((3, H, 2),), implementations("direct", "reference")
    ),
    "attention": Case(
        attended, (0,), (vectors, vectors, vectors), options=implementations("reference", "decode", "tiles")
    ),
}


def arguments(case: Case) -> tuple:
    """Random (state, sequences, weights)."""
    rng = np.random.default_rng(0)
    shapes = (case.state, case.sequences, case.weights)
    is_shape = lambda s: isinstance(s, tuple) and all(isinstance(n, int) for n in s)  # noqa: E731
    make = lambda s: jnp.asarray(np.abs(rng.normal(size=s)), jnp.float32)  # noqa: E731
    return jax.tree.map(lambda s: make(s) if s else (), shapes, is_leaf=lambda s: is_shape(s))


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.full if n.endswith("two heads") else ()) for n in CASES]
)
def test_nan_at_padding_is_as_good_as_zero(name: str) -> None:
    case = CASES[name]
    state, sequences, weights = arguments(case)

    def fill(value: float) -> tuple:
        return tuple(jnp.where((IDS == 0).reshape(B, T, *(1,) * (x.ndim - 2)), value, x) for x in sequences)

    def both(options: dict, *args: Any) -> Any:
        def total(*args: Any) -> Any:
            after, ys = case.op(*args, **options)
            return sum(jnp.sin(leaf).sum() for leaf in jax.tree.leaves((after, ys))), (after, ys)

        return jax.value_and_grad(total, (0, 1, 2), has_aux=True)(*args)

    run = jitted(lambda *args: [both(options, *args) for options in case.options])
    want = run(state, fill(0.0), weights)
    got = run(state, fill(jnp.nan), weights)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(want))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    for _, (_, *gradients) in want:
        assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients) if g.size), "the test cannot fail"
    padding = np.asarray(IDS == 0)
    for _, (_, of_sequences, _) in want:
        assert all(not np.asarray(g)[padding].any() for g in of_sequences)


def test_the_law_covers_every_op_with_segment_ids() -> None:
    with_ids = {
        name
        for name in ops.__all__
        if callable(op := getattr(ops, name)) and "segment_ids" in inspect.signature(op).parameters
    }
    without_padding = {"cudnn_lstm", "lstm_implementation"}  # they refuse segment ids
    covered = {name.split(",")[0] for name in CASES} | {f"{name.split(',')[0]}_reference" for name in CASES}
    assert with_ids - without_padding <= covered
