"""Attention as a core: its options against their equations, positions in documents, dropout, forward mode."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparison import close
from compilation import jitted

from jaxseq.cores import Attention, Positions, make_core
from jaxseq.layers import Alibi, AttentionPositions, RelativeBuckets, Rotary, attention_positions
from jaxseq.ops.attention.positions import relative_buckets

B, T, F = 2, 7, 6
EXACT: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    """Random numbers."""
    return np.random.default_rng(seed).normal(size=shape)


def variables_of(core: Attention, width: int = F) -> Any:
    """Random parameters, without compiling their initializers."""
    xs = jnp.zeros((1, 2, width), core.dtype)
    shapes = jax.eval_shape(core.init, jax.random.key(0), core.initial_carry((1,)), xs)
    return jax.tree.map(lambda p: jnp.asarray(0.5 * drawn(*p.shape, seed=p.size), p.dtype), shapes)


def test_head_size_is_independent_of_features_and_relative_buckets_follow_their_equation(x64: None) -> None:
    heads, size = 3, 5
    positions = RelativeBuckets(num_buckets=6, max_distance=5)
    core = Attention(F, num_heads=heads, head_size=size, positions=positions, **EXACT)
    params = variables_of(core)["params"]
    assert {name: part["kernel"].shape for name, part in params.items() if name != "relative_bias"} == {
        "query": (F, 15), "key": (F, 15), "value": (F, 15), "out": (15, F)
    }  # fmt: skip
    xs = drawn(B, T, F)
    _, ys = jitted(core.apply)({"params": params}, core.initial_carry((B,)), jnp.asarray(xs))
    q, k, v = (
        (xs @ np.asarray(params[name]["kernel"])).reshape(B, T, heads, size) for name in ("query", "key", "value")
    )
    distance = np.arange(T) - np.arange(T)[:, None]
    buckets = relative_buckets(jnp.asarray(distance), 6, 5, bidirectional=False)
    scores = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(size) + np.asarray(params["relative_bias"])[:, buckets]
    weights = np.where(distance > 0, 0, np.exp(scores))
    mixed = np.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), v).reshape(B, T, heads * size)
    close(ys, mixed @ np.asarray(params["out"]["kernel"]), 1e-10)


def test_positions_as_text_equal_the_instance() -> None:
    for text, choice in {
        "rotary": Rotary(),
        "rotary(base=500000.0, interleaved=True, features=4)": Rotary(500000.0, True, 4),
        "relative(num_buckets=16)": RelativeBuckets(16),
        "alibi": Alibi(),
    }.items():
        assert attention_positions(text) == choice and hash(attention_positions(text)) == hash(choice)
        assert make_core("attention", 8, [f"positions={text}"]).positions == text
    assert attention_positions(Rotary(5.0)) == Rotary(5.0) != Rotary(6.0)
    tables = np.ones((3, 2)), np.zeros((3, 2))
    assert Rotary(tables=tables) == Rotary(tables=tables) != Rotary(tables=(np.ones((3, 2)), tables[1]))
    for wrong in ("rotery", "rotary(bass=3)", "rotary(5)", "rotary(base=x)", "rotary(", "", "3"):
        with pytest.raises(ValueError, match="known: rotary, alibi, relative, none, with options as in rotary"):
            Attention(8, positions=wrong).initial_carry((1,))


def test_errors_name_sizes_and_rates_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="num_heads=2 and head_size=0 must be positive"):
        Attention(8, num_heads=2, head_size=0).initial_carry((1,))
    with pytest.raises(ValueError, match=r"attention_dropout=1\.0 is not in \[0, 1\)"):
        make_core("attention", 8, ["attention_dropout=1"]).initial_carry((1,))
    core = make_core("attention", 8, ["head_size=3", "num_heads=3", "positions=none"])
    assert core.initial_carry((1,), 4).keys.shape == (1, 5, 3, 3)


def short_tables(length: int) -> AttentionPositions:
    """Rotary tables for two pairs at a few positions."""
    angles = np.arange(length)[:, None] * np.asarray([1.0, 0.1])
    return Rotary(tables=(np.cos(angles), np.sin(angles)))


@pytest.mark.full
def test_rotary_tables_are_indexed_by_the_position_in_the_document() -> None:
    """Positions are counted from the start of a document, at splits too; beyond the tables there is an error or NaN."""
    core, plain = Attention(4, positions=short_tables(3)), Attention(4, positions="rotary(base=100.0)")
    variables, xs = variables_of(core, 4), jnp.asarray(drawn(1, 12, 4), jnp.float32)
    ids = jnp.asarray([[1, 1, 0, 1, 2, 2, 2, 1, 1, 0, 0, 1]], jnp.int32)
    start, run = core.initial_carry((1,), 12), jitted(core.apply)
    _, whole = run(variables, start, xs, ids)
    close(whole, jitted(plain.apply)(variables, start, xs, ids)[1], 1e-5)
    carry, after = start, []
    for piece in (slice(0, 6), slice(6, 12)):
        carry, ys = run(variables, carry, xs[:, piece], ids[:, piece])
        after.append(ys)
    close(jnp.concatenate(after, 1), whole, 1e-5)
    _, ys = run(variables, carry, xs[:, :6], ids[:, 2:8])
    assert not ys[:, 0].any() and np.isnan(np.asarray(ys[:, 1])).all()
    with pytest.raises(ValueError, match=r"positions: id 3 at index \(0, 0\) is outside \[0, 3\)"):
        core.apply(variables, carry, xs[:, :1])


def test_learned_positions_beyond_their_table_are_an_error_or_nan() -> None:
    core = Positions(F, "learned", 3)
    xs, ids = jnp.ones((2, 6, F)), jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 0, 1, 1, 0]], jnp.int32)
    variables, carry = {"params": {"table": jnp.asarray(drawn(3, F), jnp.float32)}}, core.initial_carry((2,))
    with pytest.raises(
        ValueError, match=r"learned positions of max_length=3: id 3 at index \(1, 4\) is outside \[0, 3"
    ):
        core.apply(variables, carry, xs, ids)

    def loss(variables: Any, ids: Any) -> Any:
        ys = core.apply(variables, carry, xs, ids)[1]
        return jnp.where(jnp.isnan(ys), 0, ys).sum(), ys

    (_, ys), gradient = jitted(jax.value_and_grad(loss, has_aux=True))(variables, ids)
    invalid = np.zeros((2, 6), bool)
    invalid[1, 4] = True
    np.testing.assert_array_equal(np.isnan(np.asarray(ys)).all(-1), invalid)
    close(
        ys[~invalid & (np.asarray(ids) != 0)],
        1 + variables["params"]["table"][jnp.asarray([0, 1, 2, 0, 1, 0, 1, 2])],
        0,
    )
    close(gradient["params"]["table"][:, 0], [3.0, 3.0, 2.0], 0)


@pytest.mark.full
def test_dropout_of_weights_is_active_exactly_if_a_key_is_given() -> None:
    core, xs = (
        Attention(F, num_heads=2, positions="none", attention_dropout=0.5),
        jnp.asarray(drawn(B, T, F), jnp.float32),
    )
    variables, carry = variables_of(core), core.initial_carry((B,))
    plain = core.clone(attention_dropout=0.0)

    @jitted
    def run(variables: Any) -> Any:
        keys = [{"dropout": jax.random.key(seed)} for seed in (0, 0, 1)]
        outputs = [core.apply(variables, carry, xs, rngs=rngs)[1] for rngs in keys]
        _, collections = core.apply(variables, carry, xs, rngs=keys[0], mutable=["intermediates"])
        _, recorded = plain.apply(variables, carry, xs, mutable=["intermediates"])
        every = jax.vmap(lambda key: core.apply(variables, carry, xs, rngs={"dropout": key})[1])
        mean = every(jax.random.split(jax.random.key(2), 2000)).mean(0)
        without = core.apply(variables, carry, xs)[1], plain.apply(variables, carry, xs)[1]
        same = plain.apply(variables, carry, xs, rngs=keys[0])[1]
        return outputs, (collections, recorded), mean, (*without, same)

    outputs, recorded, mean, without = run(variables)
    for other in without[1:]:
        close(without[0], other, 0)
    close(outputs[0], outputs[1], 0)
    close(*recorded, 0)  # weights on request are without dropout
    assert np.abs(outputs[0] - outputs[2]).max() > 1e-2 and np.abs(outputs[0] - without[0]).max() > 1e-2
    assert np.abs(mean - without[0]).max() < 0.1 * np.abs(without[0]).max()


@pytest.mark.full
@pytest.mark.parametrize("positions", ["relative", "rotary"])
def test_forward_mode_works_at_any_length(positions: str, x64: None) -> None:
    """130 positions, for which attention takes its fast path: the tangent is a difference quotient."""
    core = Attention(4, num_heads=2, positions=positions, **EXACT)
    variables, carry = variables_of(core, 4), core.initial_carry((1,))
    xs, direction = jnp.asarray(drawn(1, 130, 4)), jnp.asarray(drawn(1, 130, 4, seed=1))
    along = jax.tree.map(lambda p: jnp.asarray(drawn(*p.shape, seed=p.size + 1)), variables)

    def run(variables: Any, xs: Any) -> Any:
        return core.apply(variables, carry, xs)[1]

    def moved(step: float) -> Any:
        return run(jax.tree.map(lambda p, d: p + step * d, variables, along), xs + step * direction)

    @jitted
    def tangents() -> Any:
        return jax.jvp(run, (variables, xs), (along, direction))[1], (moved(1e-5) - moved(-1e-5)) / 2e-5

    close(*tangents(), 1e-6)
