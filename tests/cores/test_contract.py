"""Every core obeys the contract (tests/contract.py): each row of CORES, and options and wrappers beside them."""

import functools
from collections.abc import Callable
from functools import partial

import contract
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.cores import (
    CORES,
    GRU,
    LSTM,
    SLSTM,
    Attention,
    Conv,
    Core,
    Elman,
    LayerNormLSTM,
    MinGRU,
    Positions,
    Residual,
    Stacked,
    block,
)

F = contract.WIDTH


def hybrid(**precision) -> Core:
    """Recurrence and window attention in turn, with positions and feed-forward blocks: everything at once."""
    return Stacked(
        (
            Positions(F, **precision),
            block(Elman(F, **precision), **precision),
            block(Attention(F, num_heads=2, window=4, **precision), feed_forward=12, **precision),
        )
    )


def post_norm(**precision) -> Core:
    """A residual with its norm after the sum, over learned positions."""
    return Stacked((Positions(F, "learned", 5, **precision), Residual(MinGRU(F, **precision), "post", **precision)))


CASES: dict[str, Callable[..., Core]] = {
    **{name: partial(core, features=F) for name, core in CORES.items()},
    "elman-relu-two-heads": partial(Elman, F, num_heads=2, activation="relu"),
    "gru-two-heads-chunks": partial(GRU, F, num_heads=2, residuals="chunks"),
    "lstm-peepholes": partial(LSTM, F, peepholes=True),
    "slstm-two-heads": partial(SLSTM, F, num_heads=2),
    "layer-norm-lstm-two-heads": partial(LayerNormLSTM, F, num_heads=2),
    "conv-dilated": partial(Conv, F, kernel_size=3, dilation=2),
    "attention-grouped-alibi": partial(Attention, F, num_heads=4, num_kv_heads=2, positions="alibi"),
    "attention-window": partial(Attention, F, num_heads=2, window=3, positions="none"),
    "hybrid": hybrid,
    "post-norm": post_norm,
}
# The gradient of a kink jumps where rounding turns a sign: there it is only to be of the right size. The delta rule's
# norms (of keys, of what is read) are as sensitive here: parameters rounded to bfloat16, and nothing else, move its
# float64 gradient by 0.1.
SENSITIVE = {"elman-relu-two-heads": 1.0, "delta": 0.3}
FULL = pytest.mark.full
EVERY = pytest.mark.parametrize("name", [name if name in CORES else pytest.param(name, marks=FULL) for name in CASES])


@functools.cache
def subject(name: str, dtype: str = "float64", param_dtype: str = "float64") -> contract.Subject:
    """One subject, so that all laws share its compilations."""
    return contract.Subject(CASES[name], dtype, param_dtype)


@pytest.fixture
def exact(name: str) -> contract.Subject:
    """The core in float64."""
    return subject(name)


@EVERY
def test_split_is_whole_in_float64(exact: contract.Subject) -> None:
    contract.check_splitting(exact, contract.IDS, 1e-12, 1e-10)
    for seed in (1, 2):
        ids = np.random.default_rng(seed).integers(0, 3, contract.IDS.shape).astype(np.int32)
        contract.check_splitting(exact, ids, 1e-12, 1e-10, seed)


@FULL
@pytest.mark.parametrize("name", [*CORES, "hybrid"])
def test_split_is_whole_in_float32_without_ids(name: str) -> None:
    contract.check_splitting(subject(name, "float32", "float32"), None, 1e-5, 1e-4)


@FULL
@EVERY
def test_padding_changes_nothing(exact: contract.Subject) -> None:
    contract.check_padding(exact, 1e-12)


@FULL
@EVERY
def test_packed_documents_are_those_documents_alone(exact: contract.Subject) -> None:
    contract.check_documents(exact, 1e-12)


@EVERY
def test_any_batch_dims_give_the_batch(exact: contract.Subject) -> None:
    contract.check_batch(exact, 1e-12)


@FULL
@EVERY
def test_nothing_depends_on_the_future_or_on_another_document(exact: contract.Subject) -> None:
    contract.check_causality(exact)


@FULL
@EVERY
def test_ragged_data_compiles_once(exact: contract.Subject) -> None:
    contract.check_compiles_once(exact)


@FULL
@pytest.mark.parametrize("name", [*CORES, "hybrid"])
def test_no_ids_mean_one_document(name: str, exact: contract.Subject) -> None:
    contract.check_one_document(subject(name, "float32", "float32"), exact, 1e-4)


@FULL
@EVERY
def test_bfloat16_stays_near(name: str, exact: contract.Subject) -> None:
    contract.check_low_precision(subject(name, "bfloat16", "float32"), exact, 0.05, SENSITIVE.get(name, 0.1))


@FULL
@EVERY
def test_a_stretch_of_no_length_changes_nothing(name: str) -> None:
    single = subject(name, "float32", "float32")
    contract.check_nothing(single.core, single.params)


@EVERY
def test_initial_carry_leads_with_the_batch_dims(name: str) -> None:
    contract.check_initial_carry(CASES[name]())


@pytest.mark.parametrize("name", CORES)
def test_parameters_may_be_bfloat16(name: str) -> None:
    """Kept so, that is: the state stays float32, the output is of the computation's dtype."""
    core = CASES[name](param_dtype=jnp.bfloat16)
    xs, carry = jnp.zeros((2, 3, F)), core.initial_carry((2,))
    after, ys = jax.eval_shape(lambda key: core.init_with_output(key, carry, xs)[0], jax.random.key(0))
    assert ys.dtype == jnp.float32
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), carry)
