"""Attention weights on request, of any module that has attention somewhere within."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close

from jaxseq.cores import Attention
from jaxseq.layers import DotAttention, MemoryAttention, capture_weights

B, S, D = 3, 7, 8


def drawn(*shape: int) -> jax.Array:
    """Random numbers."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


class ReadsItself(nn.Module):
    """Layers of attention of a sequence to itself; each leaves something of its own beside its weights."""

    layers: tuple[MemoryAttention, ...]

    @nn.compact
    def __call__(self, xs: Any) -> Any:
        for layer in self.layers:
            self.sow("intermediates", "own", xs)
            xs = layer(xs, layer.project(xs))
        return xs


def test_weights_come_by_path_in_numerical_order_and_nothing_else_does() -> None:
    module = ReadsItself(tuple(DotAttention(D) for _ in range(11)))
    found = capture_weights(module, {}, drawn(S, D))
    assert list(found) == [f"layers_{i}" for i in range(11)]  # not 0, 1, 10, 2, ...
    assert {weights.shape for weights in found.values()} == {(1, S, S)}


@pytest.mark.full
def test_self_attention_of_the_core_is_captured_too(key: jax.Array) -> None:
    core = Attention(D, num_heads=2, num_kv_heads=1, positions="alibi", window=3)
    xs = drawn(B, S, D)
    carry = core.initial_carry((B,))
    variables = core.init(key, carry, xs)
    weights = capture_weights(core, variables, carry, xs)[""]
    seen = np.tril(np.ones((S, S))) - np.tril(np.ones((S, S)), -3)
    assert weights.shape == (B, 2, S, S) and not np.asarray(weights)[..., seen == 0].any()
    close(weights.sum(-1), np.ones((B, 2, S), np.float32), 1e-6)
