"""Every core obeys the contract (``jaxseq.testing``): each row of CORES, and options and wrappers beside them."""

import functools
from collections.abc import Callable
from functools import partial

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
from jaxseq.layers import RelativeBuckets, Rotary
from jaxseq.testing import laws
from jaxseq.testing.subject import IDS, WIDTH, Subject

F = WIDTH


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
    return Stacked((Positions(F, "learned", 20, **precision), Residual(MinGRU(F, **precision), "post", **precision)))


def rotary_part(**precision) -> Core:
    """A part of larger heads rotated, in interleaved pairs, by tables as long as the longest document."""
    angles = np.arange(20)[:, None] * np.asarray([1.0, 0.3])
    positions = Rotary(interleaved=True, features=4, tables=(np.cos(angles), np.sin(angles)))
    return Attention(F, num_heads=2, num_kv_heads=1, head_size=5, positions=positions, **precision)


CASES: dict[str, Callable[..., Core]] = {
    **{name: partial(core, features=F) for name, core in CORES.items()},
    "elman-relu-two-heads": partial(Elman, F, num_heads=2, activation="relu"),
    "gru-two-heads-chunks": partial(GRU, F, num_heads=2, residuals="chunks"),
    "lstm-peepholes": partial(LSTM, F, peepholes=True),
    "slstm-two-heads": partial(SLSTM, F, num_heads=2),
    "layer-norm-lstm-two-heads": partial(LayerNormLSTM, F, num_heads=2),
    "conv-dilated": partial(Conv, F, kernel_size=3, dilation=2),
    "attention-grouped-alibi": partial(Attention, F, num_heads=4, num_kv_heads=2, positions="alibi"),
    "attention-rotary-part": rotary_part,
    "attention-relative": partial(Attention, F, num_heads=2, positions=RelativeBuckets(8, 6), window=7),
    "attention-window": partial(Attention, F, num_heads=2, window=3, positions="none"),
    "hybrid": hybrid,
    "post-norm": post_norm,
}
# The gradient of a kink jumps where rounding turns a sign: there it is only to be of the right size. The delta rule's
# norms (of keys, of what is read) are as sensitive here: parameters rounded to bfloat16, and nothing else, move its
# float64 gradient by 0.1.
SENSITIVE = {"elman-relu-two-heads": 1.0, "delta": 0.3}
FULL = pytest.mark.full
ORDINARY = CORES.keys() - {"slstm"}
"""The cores that ``make test`` holds to the laws; sLSTM takes as long as three others."""
EVERY = pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in ORDINARY else FULL) for n in CASES])


@functools.cache
def subject(name: str, dtype: str = "float64", param_dtype: str = "float64") -> Subject:
    """One subject, so that all laws share its compilations."""
    return Subject(CASES[name], dtype, param_dtype)


@pytest.fixture
def exact(name: str) -> Subject:
    """The core in float64."""
    return subject(name)


@EVERY
def test_split_is_whole_in_float64(exact: Subject) -> None:
    laws.check_splitting(exact, IDS, 1e-12, 1e-10)
    for seed in (1, 2):
        ids = np.random.default_rng(seed).integers(0, 3, IDS.shape).astype(np.int32)
        laws.check_splitting(exact, ids, 1e-12, 1e-10, seed)


@FULL
@pytest.mark.parametrize("name", [*CORES, "hybrid"])
def test_split_is_whole_in_float32_without_ids(name: str) -> None:
    laws.check_splitting(subject(name, "float32", "float32"), None, 1e-5, 1e-4)


@EVERY
def test_padding_changes_nothing(exact: Subject) -> None:
    laws.check_padding_is_ignored(exact)
    laws.check_padding_in_between(exact, 1e-12)


@EVERY
def test_packed_documents_are_those_documents_alone(exact: Subject) -> None:
    laws.check_documents(exact, 1e-12)


@EVERY
def test_vmap_gives_the_batch(exact: Subject) -> None:
    laws.check_vmap(exact, 1e-12)


@FULL
@EVERY
def test_two_batch_dims_give_the_batch(exact: Subject) -> None:
    laws.check_two_batch_dims(exact, 1e-12)


@EVERY
def test_nothing_depends_on_the_future_or_on_another_document(exact: Subject) -> None:
    laws.check_causality(exact)


@FULL
@EVERY
def test_ragged_data_compiles_once(exact: Subject) -> None:
    laws.check_compiles_once(exact)


@FULL
@pytest.mark.parametrize("name", [*CORES, "hybrid"])
def test_no_ids_mean_one_document(name: str, exact: Subject) -> None:
    laws.check_one_document(subject(name, "float32", "float32"), exact, 1e-4)


@FULL
@EVERY
def test_bfloat16_stays_near(name: str, exact: Subject) -> None:
    laws.check_low_precision(subject(name, "bfloat16", "float32"), exact, 0.05, SENSITIVE.get(name, 0.1))


@FULL
@EVERY
def test_an_empty_input_changes_nothing(name: str) -> None:
    laws.check_empty_input(subject(name, "float32", "float32"))


@EVERY
def test_initial_carry_leads_with_the_batch_dims(exact: Subject) -> None:
    laws.check_initial_carry(exact)


@pytest.mark.parametrize("name", CORES)
def test_parameters_may_be_bfloat16(name: str) -> None:
    """The state stays float32, and the output has the dtype of the computation."""
    core = CASES[name](param_dtype=jnp.bfloat16)
    xs, carry = jnp.zeros((2, 3, F)), core.initial_carry((2,))
    after, ys = jax.eval_shape(lambda key: core.init_with_output(key, carry, xs)[0], jax.random.key(0))
    assert ys.dtype == jnp.float32
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), carry)


@pytest.mark.parametrize("name", CORES)
def test_a_batch_without_rows_gives_one_without_rows(name: str) -> None:
    core = CASES[name]()
    xs, carry = jnp.zeros((0, 20, F)), core.initial_carry((0,))
    ids = jnp.ones((0, 20), jnp.int32)
    after, ys = jax.eval_shape(lambda key: core.init_with_output(key, carry, xs, ids)[0], jax.random.key(0))
    assert ys.shape == (0, 20, F)
    assert jax.tree.map(lambda a: a.shape, after) == jax.tree.map(lambda a: a.shape, carry)


@FULL
@pytest.mark.parametrize("name", ["elman", "layer_norm_lstm", "lru", "gla", "mlstm", "delta", "conv", "attention"])
def test_vmap_over_no_rows_gives_values_and_gradients_without_rows(name: str) -> None:
    core = CASES[name]()
    xs, carry, ids = jnp.zeros((0, 20, F)), core.initial_carry((0,)), jnp.ones((0, 20), jnp.int32)
    params = jax.eval_shape(core.init, jax.random.key(0), core.initial_carry((1,)), jnp.zeros((1, 2, F)))

    def loss(params, xs):
        after, ys = jax.vmap(core.apply, (None, 0, 0, 0))(params, carry, xs, ids)
        return ys.sum(), (after, ys)

    gradients, (after, ys) = jax.eval_shape(jax.grad(loss, (0, 1), has_aux=True), params, xs)
    assert ys.shape == (0, 20, F)
    assert jax.tree.map(jnp.shape, (gradients, after)) == jax.tree.map(jnp.shape, ((params, xs), carry))
