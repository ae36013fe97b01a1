"""A user's own core may make cores in any of its methods, without ``parent=None``."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from jaxseq.cores import GRU, LSTM, Core, Pointwise, Residual, Stacked, StateCarry, StateCore, block
from jaxseq.decoders import AttentionDecoder, Decoder, DecoderBlock, DecoderStack
from jaxseq.encoders import Bidirectional, CoreEncoder, EncoderBlock, EncoderStack
from jaxseq.layers import AdditiveAttention, Embedding, Fusion, MultiHeadAttention
from jaxseq.models import EncoderDecoder, LanguageModel
from jaxseq.ops.recurrence.cells import LSTMState
from jaxseq.testing import check_core

F = 8


class Compact(Core):
    """Cores made where they are used, by a function of the class."""

    @property
    def features(self) -> int:
        """The width of the parts."""
        return self.parts().features

    def parts(self) -> Core:
        """Cores in cores, and layers of Flax."""
        return Stacked((LSTM(F, name="first"), block(GRU(F), feed_forward=5), Residual(Pointwise(nn.Dense(F), F))))

    def make_carry(self, batch_shape: tuple[int, ...], context: int) -> Any:
        """The carry of the parts."""
        return self.parts().initial_carry(batch_shape, context)

    def run(self, carry: Any, xs: jax.Array, segment_ids: Any) -> Any:
        """Runs the parts."""
        return self.parts()(carry, xs, segment_ids)

    def map_states(self, function: Any, carry: Any) -> Any:
        """Maps the states of the parts."""
        return self.parts().map_states(function, carry)


class Setup(Core):
    """Cores made in ``setup``, and read from there."""

    features: int = F

    def setup(self) -> None:
        """Makes the parts."""
        self.parts = Stacked((LSTM(F), block(LSTM(F))))

    def make_carry(self, batch_shape: tuple[int, ...], context: int) -> Any:
        """The carry of the parts."""
        return self.parts.initial_carry(batch_shape, context)

    def run(self, carry: Any, xs: jax.Array, segment_ids: Any) -> Any:
        """Runs the parts."""
        return self.parts(carry, xs, segment_ids)

    def map_states(self, function: Any, carry: Any) -> Any:
        """Maps the states of the parts."""
        return self.parts.map_states(function, carry)


class OfAState(StateCore):
    """A recurrent state that is the state of a core."""

    def initial_state(self, batch_shape: tuple[int, ...]) -> LSTMState:
        """The LSTM's."""
        return LSTM(self.features, dtype=self.dtype, param_dtype=self.param_dtype).initial_state(batch_shape)

    def mix(self, state: LSTMState, xs: jax.Array, segment_ids: Any) -> Any:
        """The LSTM's."""
        lstm = LSTM(self.features, dtype=self.dtype, param_dtype=self.param_dtype)
        ids = jnp.zeros(xs.shape[:-2], jnp.int32)
        carry, ys = lstm(StateCarry(state, ids), xs, segment_ids)
        return carry.state, ys


class OwnDecoder(Decoder):
    """Decoders made where they are used."""

    features: int = F

    def parts(self) -> Decoder:
        """A stack."""
        first = AttentionDecoder(LSTM(F), AdditiveAttention(F), Fusion("add"))
        return DecoderStack((first, DecoderBlock(LSTM(F), MultiHeadAttention(F, num_heads=1))), name="parts")

    def prepare_memory(self, encoded: jax.Array, segment_ids: Any, summary: Any) -> Any:
        """The encoded source: the parts project it."""
        return encoded, jnp.ones(encoded.shape[:-1], jnp.int32) if segment_ids is None else segment_ids

    def initial_carry(self, memory: Any, batch_shape: tuple[int, ...], context: int = 0) -> Any:
        """The carry of the parts."""
        return LSTM(F).initial_carry(batch_shape, context)

    def run(self, carry: Any, xs: jax.Array, segment_ids: Any, memory: Any) -> Any:
        """Runs the parts afresh, from their own carry, and a core that keeps its state."""
        parts = self.parts()
        read = parts.prepare_memory(*memory, None)
        _, context = parts(parts.initial_carry(read, xs.shape[:-2]), xs, segment_ids, read)
        return LSTM(F)(carry, jnp.zeros_like(context) + xs, segment_ids)

    def map_states(self, function: Any, carry: Any) -> Any:
        """Maps the state of the core."""
        return LSTM(F).map_states(function, carry)

    def last_attention_weights(self, carry: Any) -> jax.Array:
        """Raises: there are no weights."""
        raise ValueError("no weights")


class OwnEncoder(nn.Module):
    """Encoders made where they are used."""

    @nn.compact
    def __call__(self, xs: jax.Array, segment_ids: Any = None) -> Any:
        """Both directions, and a block."""
        both = Bidirectional(Compact(), Setup())
        return EncoderStack((both, EncoderBlock(CoreEncoder(Stacked((GRU(2 * F),))))))(xs, segment_ids)


XS = jnp.zeros((2, 3, F))


def shapes(module: Any, *arguments: Any) -> Any:
    return jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), *arguments))


def test_cores_may_be_made_in_setup_and_read_there() -> None:
    core = Setup()
    carry = core.initial_carry((2,))
    assert core.hidden(carry).shape == (2, F) and core.reset_states(carry, None)[0].segment_id.shape == (2,)
    (_, ys), variables = shapes(core, carry, XS)
    assert ys.shape == XS.shape and set(variables["params"]) == {"parts"}
    assert Compact().features == F


def test_encoders_and_models_take_cores_that_make_cores() -> None:
    assert shapes(Bidirectional(Setup(), OfAState(F)), XS)[0].shape == (2, 3, 2 * F)
    tokens, core = jnp.zeros((2, 3), jnp.int32), Stacked((Compact(), block(Setup())))
    assert shapes(LanguageModel(Embedding(5, F), core), core.initial_carry((2,)), tokens)[0][1].shape == (2, 3, 5)


@pytest.mark.full
def test_an_encoder_decoder_takes_parts_that_make_their_parts() -> None:
    tokens = jnp.zeros((2, 3), jnp.int32)
    of_a_core = DecoderStack((AttentionDecoder(Setup(), AdditiveAttention(F), Fusion("add")), OwnDecoder()))
    model = EncoderDecoder(OwnEncoder(), Embedding(5, F), of_a_core)
    assert shapes(model, XS, tokens)[0].shape == (2, 3, 5)


def test_an_error_in_a_method_of_the_user_is_raised() -> None:
    class Wrong(Compact):
        """Reads what nothing defines."""

        def make_carry(self, batch_shape: tuple[int, ...], context: int) -> Any:
            """An error."""
            return self.missing

    with pytest.raises(AttributeError, match='"Wrong" object has no attribute "missing"'):
        Wrong().initial_carry((2,))


@pytest.mark.full
@pytest.mark.parametrize("core", [Compact, OfAState])
def test_cores_that_make_cores_obey_the_contract(core: Any) -> None:
    check_core(core, quick=True)
