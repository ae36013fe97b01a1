"""The epsilon of every norm is that of its field."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from jaxseq.cores import GLA, GRU, Delta, LayerNormLSTM, Mamba2, Residual, block
from jaxseq.decoders import DecoderBlock, DecoderStack, make_decoder
from jaxseq.encoders import CoreEncoder, EncoderBlock, EncoderStack, make_encoder
from jaxseq.layers import FeedForward, LayerNorm, MultiHeadAttention, Sublayer

F, EPSILON = 8, 0.3125
XS = jnp.ones((2, 3, F))


def with_carry(core: Any) -> Any:
    return lambda: core.init_with_output(jax.random.key(0), core.initial_carry((2,)), XS)


def encoder(module: Any) -> Any:
    return lambda: module.init_with_output(jax.random.key(0), XS)


def decoder(module: Any) -> Any:
    def run(module: Any) -> Any:
        memory = module.prepare_memory(XS, None, None)
        return module(module.initial_carry(memory, (2,)), XS, None, memory)[1]

    return lambda: module.init_with_output(jax.random.key(0), method=run)


ALL: dict[str, Any] = {
    "LayerNorm": encoder(LayerNorm(epsilon=EPSILON)),
    "Sublayer": lambda: Sublayer(epsilon=EPSILON).init_with_output(jax.random.key(0), jnp.tanh, XS),
    "LayerNormLSTM": with_carry(LayerNormLSTM(F, epsilon=EPSILON)),
    "GLA": with_carry(GLA(F, epsilon=EPSILON)),
    "Mamba2": with_carry(Mamba2(F, epsilon=EPSILON)),
    "Delta": with_carry(Delta(F, epsilon=EPSILON, length_epsilon=EPSILON)),
    "Residual": with_carry(Residual(GRU(F), epsilon=EPSILON)),
    "block": with_carry(block(GRU(F), feed_forward=5, epsilon=EPSILON)),
    "EncoderStack": encoder(EncoderStack((CoreEncoder(GRU(F)),), norm=True, epsilon=EPSILON)),
    "EncoderBlock": encoder(EncoderBlock(CoreEncoder(GRU(F)), FeedForward(F, 5), epsilon=EPSILON)),
    "make_encoder": encoder(make_encoder("gru", F, 2, feed_forward=5, epsilon=EPSILON)),
    "make_decoder": decoder(make_decoder("transformer", "gru", F, 2, feed_forward=5, epsilon=EPSILON)),
    "DecoderStack": decoder(
        DecoderStack(
            (DecoderBlock(GRU(F), MultiHeadAttention(F, num_heads=2), FeedForward(F, 5), epsilon=EPSILON),),
            norm=True,
            epsilon=EPSILON,
        )
    ),
}


@pytest.mark.full
@pytest.mark.parametrize("name", ALL)
def test_every_norm_has_the_epsilon_that_is_given(name: str) -> None:
    """The traced program adds this number, and the default nowhere."""
    program = str(jax.make_jaxpr(ALL[name])())
    assert str(EPSILON) in program
    assert "1e-06" not in program and "e-07:" not in program
