"""Every decoder obeys the contract of cores with its memory as a constant: the same laws, by the same code."""

import functools
from collections.abc import Callable
from typing import Any

import contract
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.cores import Core
from jaxseq.decoders import Decoder, make_decoder
from jaxseq.layers import Memory

S, E, F = 5, 6, contract.WIDTH
ENCODED = np.random.default_rng(11).normal(size=(S, E))
IDS = np.array([1, 1, 0, 1, 1], np.int32)


class WithMemory(Core):
    """A decoder as a core: what it reads travels in the carry, so that its gradient is compared, too."""

    decoder: Decoder

    @property
    def features(self) -> int:
        """The decoder's."""
        return self.decoder.features

    def make_carry(self, batch_shape: tuple[int, ...], context: int) -> Any:
        """The decoder's, and the encoded source."""
        types = self.decoder.dtype if hasattr(self.decoder, "dtype") else self.decoder.core.cores[0].dtype
        shape = (*batch_shape, S, 1, 1)
        memory: Any = Memory(jnp.zeros(shape, types), jnp.zeros(shape, types), None)
        if hasattr(self.decoder, "decoders"):
            memory = (memory,) * len(self.decoder.decoders)
        encoded = jnp.broadcast_to(jnp.asarray(ENCODED, types), (*batch_shape, S, E))
        return self.decoder.initial_carry(memory, batch_shape, context), encoded

    def map_states(self, function: Callable, carry: Any) -> Any:
        """No law asks for the states."""
        return carry

    def run(self, carry: Any, xs: Any, segment_ids: Any) -> Any:
        """Reads the source anew in every call."""
        own, encoded = carry
        ids = jnp.broadcast_to(jnp.asarray(IDS), encoded.shape[:-1])
        memory = self.decoder.prepare_memory(encoded, ids, encoded.mean(-2))
        own, ys = self.decoder(own, xs, segment_ids, memory)
        return (own, encoded), ys


def decoder(kind: str, name: str, *, layers: int = 1, **fields: Any) -> Callable[..., Core]:
    """Made at any precision."""
    return lambda **types: WithMemory(make_decoder(kind, name, F, layers, **fields, **types))


CASES: dict[str, Callable[..., Core]] = {
    "rnn": decoder("rnn", "gru", fusion="multiply"),
    "additive": decoder("attention", "lstm"),
    "general": decoder("attention", "elman", attention="general", fusion="add", layers=2),
    "transformer": decoder(
        "transformer", "transformer", attention="multi_head", num_heads=2, feed_forward=12, layers=2
    ),
    "post-norm hybrid": decoder("transformer", "mingru", attention="additive", feed_forward=12, norm="post"),
}
EVERY = pytest.mark.parametrize("name", CASES)
FULL = pytest.mark.full


@functools.cache
def subject(name: str, dtype: str = "float64", param_dtype: str = "float64") -> contract.Subject:
    """One subject, so that all laws share its compilations."""
    return contract.Subject(CASES[name], dtype, param_dtype)


@EVERY
def test_split_is_whole(name: str) -> None:
    contract.check_splitting(subject(name), contract.IDS, 1e-12, 1e-10)


@EVERY
def test_padding_changes_nothing(name: str) -> None:
    contract.check_padding(subject(name), 1e-12)


@EVERY
def test_any_batch_dims_give_the_batch(name: str) -> None:
    contract.check_batch(subject(name), 1e-12)


@FULL
@EVERY
def test_documents_in_one_row_are_those_documents_alone(name: str) -> None:
    contract.check_documents(subject(name), 1e-12)


@FULL
@EVERY
def test_nothing_depends_on_the_future_or_on_another_document(name: str) -> None:
    contract.check_causality(subject(name))


@FULL
@EVERY
def test_bfloat16_stays_near(name: str) -> None:
    contract.check_low_precision(subject(name, "bfloat16", "float32"), subject(name), 0.05, 0.1)


@FULL
@EVERY
def test_a_stretch_of_no_length_changes_nothing(name: str) -> None:
    single = subject(name, "float32", "float32")
    contract.check_nothing(single.core, single.params)
