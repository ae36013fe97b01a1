"""Small random models for the tests of decoding: one for each kind of carry, and Markov chains with known tables."""

import functools
import itertools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from jaxseq.cores import CORES, Stacked, block
from jaxseq.decoding import step_of
from jaxseq.layers import Embedding
from jaxseq.models import LanguageModel

WIDTH, CONTEXT = 8, 24
KINDS = {
    "state": lambda: CORES["gru"](features=WIDTH),
    "two states": lambda: CORES["lstm"](features=WIDTH),
    "complex state": lambda: CORES["lru"](features=WIDTH),
    "matrix state": lambda: CORES["mamba2"](features=WIDTH),
    "last inputs": lambda: CORES["conv"](features=WIDTH),
    "cache": lambda: CORES["attention"](features=WIDTH, num_heads=2),
    "hybrid": lambda: Stacked(
        (CORES["mingru"](features=WIDTH), block(CORES["attention"](features=WIDTH, num_heads=2, window=3)))
    ),
}

FIRST_KINDS = ("cache",)
EVERY_KIND = [pytest.param(k, marks=() if k in FIRST_KINDS else pytest.mark.full, id=k) for k in KINDS]


class Model(NamedTuple):
    """A language model and its functions."""

    forward: Partial
    step: Partial
    module: LanguageModel

    def carry(self, *batch_shape: int, context: int = CONTEXT) -> Any:
        """A fresh carry."""
        return self.module.initial_carry(batch_shape, context)


def apply(module: LanguageModel, params: Any, carry: Any, tokens: jax.Array, ids: Any = None) -> Any:
    """The model as a forward function."""
    return module.apply(params, carry, tokens, ids)


@functools.cache
def model(kind: str, vocab_size: int, seed: int = 0, sharpness: float = 3.0) -> Model:
    """A random model whose predictions are far from uniform."""
    module = LanguageModel(Embedding(vocab_size, WIDTH), KINDS[kind](), head=nn.Dense(vocab_size))
    params = jax.jit(module.init)(jax.random.key(seed), module.initial_carry((1,)), jnp.zeros((1, 2), jnp.int32))
    head = params["params"]["head"]
    head["kernel"] = sharpness * head["kernel"]
    forward = Partial(functools.partial(apply, module), params)
    return Model(forward, step_of(forward), module)


def table_forward(table: jax.Array, carry: Any, tokens: jax.Array, ids: Any = None) -> Any:
    """A Markov chain's logits; the carry counts the tokens read."""
    read = jnp.ones(tokens.shape, bool) if ids is None else ids != 0
    return carry + jnp.sum(read, -1, dtype=jnp.int32), table[tokens]


def table_step(table: jax.Array, carry: Any, tokens: jax.Array) -> Any:
    """The same, one token at a time; the chain may depend on time: ``table[position, token]``."""
    return carry + 1, table[carry, tokens] if table.ndim == 3 else table[tokens]


def every_sequence(vocab_size: int, length: int, end_token: int | None) -> list[tuple[int, ...]]:
    """All sequences that can be generated: ended, or of full length."""
    found = []
    for n in range(1, length + 1):
        for sequence in itertools.product(range(vocab_size), repeat=n):
            if end_token not in sequence[:-1] and (sequence[-1] == end_token or n == length):
                found.append(sequence)
    return found


def as_rows(sequences: list[tuple[int, ...]], length: int, fill: int) -> tuple[np.ndarray, np.ndarray]:
    """Sequences as an array with ``fill`` behind each, and their lengths."""
    rows = np.full((len(sequences), length), fill, np.int32)
    for row, sequence in zip(rows, sequences, strict=True):
        row[: len(sequence)] = sequence
    return rows, np.array([len(sequence) for sequence in sequences], np.int32)
