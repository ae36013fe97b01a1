"""The base classes check their arguments and refuse overrides, in messages that name the value."""

import textwrap
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.cores import GRU, LRU, LSTM, Attention, Core, MinGRU, Pointwise, Stacked, StateCarry, StateCore, block
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.testing import check_core

B, T, F = 2, 3, 4


class Sum(StateCore):
    """``h_t = h_{t-1} + x_t`` of one document without padding; what it returns can be wrong."""

    wrong: str = ""

    def initial_state(self, batch_shape: tuple[int, ...]) -> Hidden:
        """Zeros."""
        return Hidden(jnp.zeros((*batch_shape, self.features)))

    def mix(self, state: Hidden, xs: jax.Array, segment_ids: Any) -> Any:
        """A running sum."""
        ys = state.h[..., None, :] + jnp.cumsum(xs, -2)
        after: Any = Hidden(ys[..., -1, :])
        if self.wrong == "structure":
            after = (ys[..., -1, :],)
        if self.wrong == "dtype":
            after = Hidden(ys[..., -1, :].astype(jnp.bfloat16))
        return after, ys[..., :-1] if self.wrong == "width" else ys


def call(core: Core, carry: Any, xs: Any, segment_ids: Any = None) -> Any:
    return jax.eval_shape(lambda: core.init_with_output(jax.random.key(0), carry, xs, segment_ids)[0])


XS, IDS = jnp.zeros((B, T, F)), jnp.ones((B, T), jnp.int32)
STACK = Stacked((LSTM(F), Attention(F)))


@pytest.mark.parametrize(
    ("core", "arguments", "message"),
    [
        (
            Sum(F),
            (XS.astype(jnp.int32),),
            r"Sum needs floating-point inputs of shape \[\*B, T, D\], not int32\(2, 3, 4\)",
        ),
        (Sum(F), (XS[0, 0],), r"Sum needs floating-point inputs of shape \[\*B, T, D\], not float32\(4,\)"),
        (
            Sum(F),
            (XS, IDS[:, :2]),
            r"Sum needs integer segment_ids of shape \[\*B, T\] = \(2, 3\) .* not int32\(2, 2\)",
        ),
        (Attention(F), (XS, IDS.astype(bool)), r"Attention needs integer segment_ids .* not bool\(2, 3\)"),
        (
            STACK,
            (XS[:1],),
            r"batch dimensions \(1,\) of its inputs \(1, 3, 4\); leaf \[0\]\.state\.h has shape \(2, 4\)",
        ),
        (
            Sum(F, "structure"),
            (XS,),
            r"Sum returns from mix a state of structure .*, not .*Hidden.* as in initial_state",
        ),
        (
            Sum(F, "dtype"),
            (XS,),
            r"Sum returns from mix a state whose leaf \.h is bfloat16\(2, 4\), not float32\(2, 4\)",
        ),
        (Sum(F, "width"), (XS,), r"Sum returns from mix outputs of shape \(2, 3, 3\), not .* = \(2, 3, 4\)"),
    ],
)
def test_a_wrong_argument_or_result_is_named(core: Core, arguments: tuple, message: str, untyped: None) -> None:
    with pytest.raises(ValueError, match=message):
        call(core, core.initial_carry((B,)), *arguments)


def test_a_carry_of_another_core_is_refused(untyped: None) -> None:
    own = LSTM(F).initial_carry((B,))
    others: dict[str, Any] = {
        r"LSTM needs a StateCarry, as initial_carry makes it, not tuple": (),
        r"LSTM is given a carry of structure .*Hidden.*, not .*LSTMState": GRU(F).initial_carry((B,)),
        r"LSTM is given a carry whose leaf \.state\.h is float32\(2, 5\), not": LSTM(5).initial_carry((B,)),
        r"whose leaf \.segment_id is int32\(2, 1\), not int32\(2,\)": own._replace(segment_id=own.segment_id[:, None]),
        r"whose leaf \.segment_id is float32\(2,\), not int32": own._replace(segment_id=jnp.zeros(B, jnp.float32)),
    }
    for message, carry in others.items():
        with pytest.raises(ValueError, match=message):
            call(LSTM(F), carry, XS)
    cache = Attention(F, num_heads=1).initial_carry((B,), 3)
    caches: dict[str, Any] = {
        r"Attention needs a Cache, as initial_carry makes it, not StateCarry": own,
        r"whose leaf \.keys is int32.*, not float32": cache._replace(keys=cache.keys.astype(jnp.int32)),
        r"whose leaf \.values is float32\(2, 4, 1, 3\), not": cache._replace(values=cache.values[..., :3]),
    }
    for message, carry in caches.items():
        with pytest.raises(ValueError, match=message):
            call(Attention(F, num_heads=1), carry, XS)
    for wrong, found in (((own,), "one of 1"), ((own,) * 3, "one of 3"), (own.state.h, "ArrayImpl")):
        with pytest.raises(ValueError, match=f"Stacked needs a carry that is a tuple of 2 parts, not {found}"):
            call(STACK, wrong, XS)
    with pytest.raises(ValueError, match="Pointwise needs an empty carry, as initial_carry makes it, not StateCarry"):
        call(Pointwise(nn.LayerNorm(), F), own, XS)


@pytest.mark.parametrize("name", ["__call__", "initial_carry", "hidden", "reset_states"])
def test_final_methods_are_refused_when_the_class_is_defined(name: str) -> None:
    with pytest.raises(
        TypeError, match=rf"Mine overrides Core\.{name}, which is final .* Subclass StateCore and define"
    ):
        type("Mine", (Core,), {name: lambda self, *arguments: None})


def test_a_field_or_a_mixin_cannot_replace_a_final_method() -> None:
    mixin = type("Mixin", (), {"initial_carry": lambda self, *arguments: None})
    with pytest.raises(TypeError, match=r"Mine overrides Core\.initial_carry, which is final"):
        type("Mine", (mixin, StateCore), {})
    with pytest.raises(TypeError, match=r"Mine overrides Core\.hidden, which is final"):
        type("Mine", (StateCore,), {"__annotations__": {"hidden": int}})


@pytest.mark.parametrize("name", ["make_carry", "run", "map_states"])
def test_what_a_state_core_defines_is_final_too(name: str) -> None:
    with pytest.raises(TypeError, match=rf"Mine overrides StateCore\.{name}, which is final"):
        type("Mine", (StateCore,), {name: lambda self, *arguments: None})


def test_a_transformation_may_wrap_a_final_method() -> None:
    core: Any = nn.remat(Sum)(F)
    _, ys = call(core, core.initial_carry((B,)), XS)
    assert ys.shape == XS.shape


def test_a_core_may_use_setup() -> None:
    class WithSetup(StateCore):
        def setup(self) -> None:
            self.dense = nn.Dense(self.features)

        def initial_state(self, batch_shape: tuple[int, ...]) -> Hidden:
            return Hidden(jnp.zeros((*batch_shape, self.features)))

        def mix(self, state: Hidden, xs: jax.Array, segment_ids: Any) -> Any:
            return state, self.dense(xs)

    core = WithSetup(F)
    assert set(core.init(jax.random.key(0), core.initial_carry((B,)), XS)["params"]) == {"dense"}


def test_states_are_found_in_order_and_replaced() -> None:
    stack = Stacked((GRU(F), block(LSTM(F), feed_forward=6), Pointwise(nn.LayerNorm(), F), Attention(F), LRU(F)))
    carry = stack.initial_carry((B,))
    seen = []

    def one(part: StateCarry) -> StateCarry:
        seen.append(type(part.state).__name__)
        return part._replace(state=jax.tree.map(lambda s: s + len(seen), part.state))

    after = stack.map_states(one, carry)
    assert seen == ["Hidden", "LSTMState", "Complex"]
    assert jax.tree.structure(after) == jax.tree.structure(carry)
    np.testing.assert_array_equal(stack.hidden(after), jnp.full((B, F), 2.0))


@pytest.mark.parametrize("core", [Attention(F), Pointwise(nn.LayerNorm(), F), LRU(F)])
def test_a_core_without_hidden_state_says_so(core: Core) -> None:
    with pytest.raises(
        ValueError, match=rf"{type(core).__name__} has no hidden state h; DecoderBlock works with any core"
    ):
        core.hidden(core.initial_carry((B,)))


def test_states_are_reset_where_another_document_starts() -> None:
    core = Stacked((MinGRU(F), GRU(F)))
    carry = jax.tree.map(lambda a: jnp.ones((4, *a.shape[1:]), a.dtype), core.initial_carry((4,)))
    after = core.reset_states(carry, jnp.asarray([[1, 1], [0, 2], [0, 0], [1, 2]], jnp.int32))
    for part in after:
        np.testing.assert_array_equal(part.state.h[:, 0], [1, 0, 1, 1])
        np.testing.assert_array_equal(part.segment_id, [1, 2, 1, 2])


def test_the_example_of_the_documentation_obeys_the_contract() -> None:
    text = StateCore.__doc__ or ""
    code = textwrap.dedent(text.split("A complete core::")[1].split("``jaxseq.testing")[0])
    imports = """
import flax.linen as nn
import jax.numpy as jnp
from jaxseq.cores import StateCore
from jaxseq.ops import plain_recurrence
from jaxseq.ops.recurrence.cells import Hidden
from jaxseq.precision import at_least_float32
"""
    names: dict[str, Any] = {"__name__": "example"}
    exec(imports + code, names)
    check_core(names["Leaky"])
