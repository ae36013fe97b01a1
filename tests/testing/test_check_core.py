"""A core as a new user writes it holds the contract, or fails with a message that names the law."""

from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.cores import CORES, StateCore, find_core
from jaxseq.decoders import Decoder, RecurrentDecoder, make_decoder
from jaxseq.ops import linear_recurrence
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.precision import at_least_float32
from jaxseq.testing import ContractError, check_core, check_decoder

IMPORTS = """
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxseq.cores import Core, StateCore
from jaxseq.ops import plain_recurrence
from jaxseq.ops.recurrence.cells import Hidden
"""

# As written before there were final methods: it trained, reported and sampled, and broke the contract.
ON_CORE = (
    IMPORTS
    + """

class Mine(Core):
    features: int
    dtype: object = jnp.float32
    param_dtype: object = jnp.float32

    def initial_carry(self, batch_shape, context=0):
        return jnp.zeros((*batch_shape, self.features))

    @nn.compact
    def __call__(self, carry, xs, segment_ids=None):
        decay = nn.sigmoid(self.param("decay", nn.initializers.ones, (self.features,)))
        xs = nn.Dense(self.features)(xs)

        def step(h, x):
            h = decay * h + x
            return h, h

        carry, ys = lax.scan(step, carry, jnp.moveaxis(xs, -2, 0))
        return carry, jnp.moveaxis(ys, 0, -2)
"""
)

ON_STATE_CORE = (
    IMPORTS
    + """

class Mine(StateCore):
    def initial_state(self, batch_shape):
        return Hidden(jnp.zeros((*batch_shape, self.features)))

    def mix(self, state, xs, segment_ids):
        decay = nn.sigmoid(self.param("decay", nn.initializers.ones, (self.features,)))
        xs = nn.Dense(self.features)(xs)

        def step(state, x):
            return Hidden(jnp.broadcast_to(decay, x.shape) * state.h + x)

        MIX
"""
)
BY_SCAN = """def body(state, x):
            state = step(state, x)
            return state, state.h

        state, ys = lax.scan(body, state, jnp.moveaxis(xs, -2, 0))
        return state, jnp.moveaxis(ys, 0, -2)"""
BY_OP = "return plain_recurrence(step, state, xs, segment_ids=segment_ids)"


def written(folder: Path, source: str) -> str:
    """The file as a command line names its core."""
    path = folder / "mine.py"
    path.write_text(source)
    return f"{path}:Mine"


def test_a_core_that_overrides_the_enforced_methods_is_refused_when_it_is_defined(tmp_path: Path) -> None:
    message = "Mine overrides Core.initial_carry, which is final .* Subclass StateCore and define initial_state"
    with pytest.raises(ValueError, match=message):
        find_core(written(tmp_path, ON_CORE))


def test_a_core_that_ignores_documents_fails_and_the_message_names_the_law(tmp_path: Path) -> None:
    core = find_core(written(tmp_path, ON_STATE_CORE.replace("MIX", BY_SCAN)))
    with pytest.raises(
        ContractError, match=r"Mine: splitting law: split into .* off by .*\n.*mix must honour segment_ids"
    ):
        check_core(core, quick=True)


def test_the_same_core_by_an_op_holds_the_contract(tmp_path: Path) -> None:
    check_core(find_core(written(tmp_path, ON_STATE_CORE.replace("MIX", BY_OP))), quick=True)


class Broken(StateCore):
    """``h_t = h_{t-1} / 2 + W x_t`` with one law broken."""

    law: str = ""

    def initial_state(self, batch_shape: tuple[int, ...]) -> Hidden:
        """Zeros, or not."""
        fill = 1.0 if self.law == "initial carry" else 0.0
        return Hidden(jnp.full((*batch_shape, self.features), fill, self.param_dtype))

    def mix(self, state: Hidden, xs: Any, segment_ids: Any) -> Any:
        """A linear recurrence, and what breaks the law."""
        driven = nn.Dense(self.features, dtype=self.dtype, param_dtype=self.param_dtype)(xs).astype(state.h.dtype)
        if self.law == "splitting":  # the last input is not carried
            driven = driven + jnp.pad(driven, [(0, 0)] * (driven.ndim - 2) + [(1, 0), (0, 0)])[..., :-1, :]
        if self.law == "batch" and driven.ndim > 2:
            driven = driven + driven.mean(0, keepdims=True)
        if self.law == "causality":
            driven = driven + driven.sum(-2, keepdims=True)
        ids = segment_ids
        if self.law == "padding" and ids is not None:
            ids = jnp.where(ids == 0, 9, ids)  # a document of its own
        if self.law == "documents":
            ids = None if ids is None else (ids != 0).astype(ids.dtype)
        if self.law == "one document" and ids is None:
            driven = 2 * driven
        if self.law == "no ids" and ids is None:
            state = Hidden(jnp.zeros_like(state.h))
        if self.law == "chunks" and xs.shape[-2] > 16:
            driven = driven - driven.mean(-2, keepdims=True)
        h, ys = linear_recurrence(state.h, jnp.full_like(driven, 0.5), driven, segment_ids=ids)
        if self.law == "precision":
            ys = jnp.round(8 * ys) / 8 if self.dtype == jnp.bfloat16 else ys
        return Hidden(h), ys


def test_the_core_that_breaks_nothing_passes() -> None:
    check_core(Broken)


# Some break an earlier law first, as they must: what sees the future cannot be split.
@pytest.mark.parametrize(
    ("law", "named"),
    [
        ("initial carry", "initial carry law: the initial state's leaf h is not zero"),
        ("splitting", "splitting law: split into"),
        ("padding", "(splitting|padding) law"),
        ("documents", "(splitting|documents) law"),
        ("causality", "(splitting|causality) law"),
        ("batch", "(padding|documents|batch) law"),
        ("no ids", r"splitting law: split into \[35, 35\] without ids"),
        ("chunks", r"splitting law: split into \[35, 35\] without ids"),
    ],
)
def test_a_broken_law_is_named(law: str, named: str) -> None:
    with pytest.raises(ContractError, match=f"^Broken: {named}"):
        check_core(partial(Broken, law=law), quick=law != "batch")


class ComplexState(StateCore):
    """A linear recurrence whose state is one complex array; ``split`` makes the state depend on the splits."""

    split: bool = False

    def initial_state(self, batch_shape: tuple[int, ...]) -> Hidden:
        """Zeros."""
        dtype = np.result_type(at_least_float32(self.param_dtype), np.complex64)
        return Hidden(jnp.zeros((*batch_shape, self.features), dtype))

    def mix(self, state: Hidden, xs: Any, segment_ids: Any) -> Any:
        """The recurrence; the output is its real part."""
        driven = xs.astype(state.h.dtype)
        h, ys = linear_recurrence(state.h, jnp.full_like(driven, 0.5 + 0.5j), driven, segment_ids=segment_ids)
        return Hidden(h + 1j * driven.mean(-2) if self.split else h), ys.real


def test_imaginary_parts_are_compared() -> None:
    check_core(ComplexState, quick=True)
    with pytest.raises(ContractError, match=r"^ComplexState: splitting law"):
        check_core(partial(ComplexState, split=True), quick=True)


@pytest.mark.full
def test_a_complex_state_holds_the_contract() -> None:
    check_core(ComplexState)


def test_parameters_of_another_dtype_are_named_and_instances_refused() -> None:
    class Fixed(StateCore):
        def initial_state(self, batch_shape: tuple[int, ...]) -> Hidden:
            return Hidden(jnp.zeros((*batch_shape, self.features), at_least_float32(self.param_dtype)))

        def mix(self, state: Hidden, xs: Any, segment_ids: Any) -> Any:
            driven = nn.Dense(self.features, dtype=self.dtype)(xs).astype(state.h.dtype)
            h, ys = linear_recurrence(state.h, jnp.full_like(driven, 0.5), driven, segment_ids=segment_ids)
            return Hidden(h), ys

    with pytest.raises(ContractError, match=r"precision law: parameter params\.Dense_0\.bias is float32"):
        check_core(Fixed)
    with pytest.raises(TypeError, match=r"check_core needs a class .* not an instance of Fixed"):
        check_core(Fixed(8), quick=True)
    with pytest.raises(TypeError, match=r"check_decoder needs a class .* not an instance of RecurrentDecoder"):
        check_decoder(make_decoder("rnn", "elman", 8), quick=True)


@pytest.mark.full
@pytest.mark.parametrize("law", ["one document", "precision"])
def test_a_law_of_the_long_form_is_named(law: str) -> None:
    with pytest.raises(ContractError, match=f"^Broken: {law} law"):
        check_core(partial(Broken, law=law), bfloat16_tolerance=(0.02, 0.1))


def test_an_error_of_the_core_says_which_law_was_checked() -> None:
    class Failing(StateCore):
        def initial_state(self, batch_shape: tuple[int, ...]) -> Hidden:
            return Hidden(jnp.zeros((*batch_shape, self.features)))

        def mix(self, state: Hidden, xs: Any, segment_ids: Any) -> Any:
            if xs.shape[0] > 1:
                raise NotImplementedError("one row only")
            return state, xs

    with pytest.raises(NotImplementedError, match="one row only") as caught:
        check_core(Failing, quick=True)
    assert any("checked the splitting law of Failing" in note for note in caught.value.__notes__)


@pytest.mark.full
@pytest.mark.parametrize("name", CORES)
def test_the_short_form_passes_for_every_core(name: str) -> None:
    check_core(CORES[name], quick=True)


def decoder(**dtypes: Any) -> Decoder:
    """A recurrent decoder that attends to its memory."""
    return make_decoder("attention", "mingru", 8, **dtypes)


@pytest.mark.full
def test_a_decoder_holds_the_contract_in_short_form() -> None:
    check_decoder(decoder, quick=True)


@pytest.mark.full
def test_a_decoder_holds_the_contract() -> None:
    check_decoder(decoder)


def test_a_decoder_around_a_broken_core_is_told_the_law() -> None:
    def make(**dtypes: Any) -> Decoder:
        return RecurrentDecoder(Broken(8, "splitting", **dtypes))

    with pytest.raises(ContractError, match="RecurrentDecoder: splitting law"):
        check_decoder(make, quick=True)
