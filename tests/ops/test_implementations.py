"""A program says which implementations it runs; every op takes "reference" and refuses names that it does not know."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import pytest

from jaxseq import ops
from jaxseq.ops.implementations import explain_implementations, implementation_scope, used_implementations


@jax.custom_vjp
def twice(x: jax.Array) -> jax.Array:
    """An op with a gradient of its own."""
    return x + x


twice.defvjp(lambda x: (twice(x), None), lambda _, g: (g + g,))


def program(x: jax.Array) -> jax.Array:
    """One op at the top, another inside a scan, a third never."""
    with implementation_scope("outer", "two-level"):
        x = twice(x)

    def body(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, None]:
        with implementation_scope("inner", "fast" if row.shape[-1] > 2 else "plain"):
            return twice(carry) + row, None

    return jax.lax.scan(body, x[0], x)[0].sum()


def test_names_are_found_under_every_transformation() -> None:
    x = jnp.ones((2, 3))
    want = {"inner": ("fast",), "outer": ("two-level",)}
    assert used_implementations(program, x) == want
    assert used_implementations(jax.jit(jax.value_and_grad(jax.checkpoint(program))), x) == want
    assert used_implementations(jax.vmap(program), x[None]) == want
    assert used_implementations(program, jax.ShapeDtypeStruct((2, 2), x.dtype)) == want | {"inner": ("plain",)}
    assert used_implementations(jnp.sin, x) == {}


def op_calls() -> dict[str, tuple[Any, Any, tuple]]:
    """Every op with implementations: the Literal of their names, the op, and small arguments."""
    B, T, N, H = 2, 9, 1, 4
    z = jnp.zeros
    vectors, numbers, memory = z((B, T, N, H)), z((B, T, N)), z((B, N, H, H))
    lstm = ops.cells.LSTMState(z((B, H)), z((B, H)))
    projection = z((B, T, H)), z((H, 4 * H)), z(4 * H), z((1, H, 4, H))
    return {
        "attention": (ops.AttentionImplementation, ops.attention, (vectors,) * 3),
        "causal_convolution": (
            ops.ConvolutionImplementation,
            ops.causal_convolution,
            (z((B, 2, H)), z((B, T, H)), z((3, H))),
        ),
        "delta_rule": (
            ops.ChunkwiseImplementation,
            ops.delta_rule,
            (memory, vectors, vectors, vectors, numbers, numbers),
        ),
        "linear_attention": (
            ops.ChunkwiseImplementation,
            ops.linear_attention,
            (memory, vectors, vectors, vectors, numbers),
        ),
        "linear_recurrence": (
            ops.LinearRecurrenceImplementation,
            ops.linear_recurrence,
            (z((B, H)), z((B, T, H)), z((B, T, H))),
        ),
        "mlstm": (
            ops.ChunkwiseImplementation,
            ops.mlstm,
            (ops.MLSTMState(memory, z((B, N, H)), numbers[:, 0]), vectors, vectors, vectors, numbers, numbers),
        ),
        "recurrence": (
            ops.RecurrenceImplementation,
            lambda *args, **options: ops.recurrence_with_projection(ops.cells.lstm, *args, **options),
            (lstm, *projection),
        ),
    }


@pytest.mark.parametrize("name", op_calls())
def test_every_op_runs_what_it_is_asked_for_and_knows_no_other_name(name: str, unchecked: None) -> None:
    known, op, args = op_calls()[name]
    names = get_args(known)
    assert names[0] == "auto" and "reference" in names
    for implementation in names:
        if implementation != "cudnn":
            used = used_implementations(lambda *a, i=implementation: op(*a, implementation=i), *args)
            assert used.keys() == {name} and (implementation == "auto" or used == {name: (implementation,)})
    message = f"{name}: implementation='fast'; known: {', '.join(names)}"
    with pytest.raises(ValueError, match=message):
        op(*args, implementation="fast")


def test_an_lstm_takes_the_name_that_it_is_given(unchecked: None) -> None:
    _, _, (state, xs, _, _, R) = op_calls()["recurrence"]
    for name in ("fused", "reference", "cudnn"):
        assert ops.lstm_implementation(state, xs, R, implementation=name) == name
    with pytest.raises(ValueError, match="lstm: implementation='fast'; known: auto, fused, reference, cudnn"):
        ops.lstm_implementation(state, xs, R, implementation="fast")


@pytest.mark.parametrize("name", op_calls())
def test_every_choice_has_a_reason(name: str, unchecked: None) -> None:
    _, op, args = op_calls()[name]
    (choice,) = explain_implementations(op, *args)[name]
    assert used_implementations(op, *args) == {name: (choice.implementation,)} and choice.reason
    (forced,) = explain_implementations(jax.jit(lambda *a: op(*a, implementation="reference")), *args)[name]
    assert forced == ("reference", "it is asked for by name")
    assert explain_implementations(jnp.sin, jnp.ones(2)) == {}


def test_the_reason_names_what_decided(unchecked: None) -> None:
    x = jax.ShapeDtypeStruct((1, 2048, 2, 64), jnp.float32)
    reasons = {
        length: explain_implementations(
            ops.attention, jax.ShapeDtypeStruct((1, length, 2, 64), x.dtype), x, x, mask=ops.masks.causal(offset=2047)
        )["attention"][0]
        for length in (1, 2048)
    }
    assert jax.default_backend() != "cpu" or reasons[1] == ("decode", "fewer queries (1) than 16, on cpu")
    assert reasons[2048] == ("tiles", "2048 queries and 2048 keys are more than 1024") or jax.default_backend() != "cpu"
