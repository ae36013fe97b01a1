"""Options of sampling and beam search: what is compiled for them, and what they check."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from toy_models import table_forward, table_step

from jaxseq.decoding import (
    GNMT,
    BeamOptions,
    Coverage,
    Forbid,
    SamplingOptions,
    beam_search,
    filter_logits,
    sample,
    speculative_sample,
)
from jaxseq.decoding.options import known_integer

V, END = 5, 1
FIRST, CARRY = jnp.array([0, 2], jnp.int32), jnp.zeros(2, jnp.int32)


def table(seed: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), (V, V))


def counting_step():
    """A step, and the list of its traces."""
    traces: list[int] = []

    def step(table, carry, tokens):
        traces.append(1)
        return table_step(table, carry, tokens)

    return step, traces


def attention(carry: jax.Array) -> jax.Array:
    """Weights over three source positions."""
    return jnp.broadcast_to(jnp.array([0.5, 0.25, 0.25]), (*carry.shape, 3))


def test_new_values_of_sampling_options_need_no_new_compilation() -> None:
    chex.clear_trace_counter()
    run = jax.jit(chex.assert_max_traces(filter_logits, n=1))
    logits = jnp.arange(5.0)
    for temperature, p in [(0.5, 0.9), (2.0, 0.1)]:
        options = SamplingOptions(temperature, top_k=4, top_p=p, min_p=0.01, typical_p=p)
        assert jnp.array_equal(run(logits, options), filter_logits(logits, options))


def test_new_parameters_and_values_of_beam_options_need_no_new_compilation() -> None:
    step, traces = counting_step()
    counts = []
    for seed, normalization, strength, diversity in [
        (0, "none", 0.1, 0.5),
        (1, "mean", 0.2, 0.7),
        (2, GNMT(0.3), 0.0, 0.0),
    ]:
        mask = jnp.array([[True, True, seed > 0]] * 2)
        coverage = Coverage(attention, strength, mask)
        options = BeamOptions(4, 2, normalization, num_groups=2, diversity=diversity, coverage=coverage)
        constraints = [Forbid([2 + seed])]
        beam_search(
            Partial(step, table(seed)), CARRY, FIRST, options, max_length=4, end_token=END, constraints=constraints
        )
        counts.append(len(traces))
    assert counts[0] > 0 and counts == counts[:1] * 3


@pytest.mark.full
def test_options_of_the_same_values_compile_once() -> None:
    step, traces = counting_step()
    bound, counts = Partial(step, table(0)), []
    for _ in range(2):
        coverage = Coverage(attention, 0.1, jnp.array([[True, True, False]] * 2))
        beam_search(bound, CARRY, FIRST, BeamOptions(2, coverage=coverage), max_length=4, end_token=END)
        sample(bound, CARRY, FIRST, SamplingOptions(0.7, top_k=3), key=jax.random.key(0), max_length=4)
        counts.append(len(traces))
    assert counts[0] > 0 and counts[1] == counts[0]


def test_a_traced_value_is_used_as_it_is() -> None:
    """Its range cannot be checked; it gives what the same number gives."""

    def run(temperature, p):
        options = SamplingOptions(temperature, top_p=p)
        return sample(Partial(table_step, table(1)), CARRY, FIRST, options, key=jax.random.key(0), max_length=4).tokens

    assert jnp.array_equal(jax.jit(run)(0.7, 0.9), run(0.7, 0.9))


def test_equal_options_are_equal_and_hashable() -> None:
    assert SamplingOptions(0.5, top_k=3) == SamplingOptions(0.5, top_k=3) != SamplingOptions(0.5)
    coverage = Coverage(attention, 0.1, jnp.ones((2, 3), bool))
    assert {BeamOptions(coverage=coverage)} == {BeamOptions(coverage=coverage)}


@pytest.mark.parametrize("name", ["top_p", "min_p", "typical_p"])
@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan")])
def test_a_probability_outside_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be in \(0, 1\], not {value}"):
        SamplingOptions(**{name: value})


@pytest.mark.full
def test_rows_with_options_of_their_own_draw_what_they_draw_alone(key: jax.Array) -> None:
    """Also when the options are traced, and when each row is drawn several times."""
    step, values = Partial(table_step, table(1)), {"temperature": [0.5, 3.0], "top_p": [1.0, 0.7]}
    rows = {name: jnp.array(value) for name, value in values.items()}

    def run(options, **more):
        return sample(step, CARRY, FIRST, options, key=key, max_length=6, **more).tokens

    made = run(SamplingOptions(**rows))
    assert jnp.array_equal(jax.jit(run)(SamplingOptions(**rows)), made)
    several = run(SamplingOptions(**rows), num_samples=2)
    for i in range(2):
        alone = SamplingOptions(**{name: value[i] for name, value in values.items()})
        assert jnp.array_equal(run(alone)[i], made[i]) and jnp.array_equal(run(alone, num_samples=2)[i], several[i])
    draft, target = (Partial(table_forward, table(seed)) for seed in (2, 1))
    drafted = [
        speculative_sample(draft, target, CARRY, CARRY, FIRST, options, key=key, max_length=6)
        for options in (SamplingOptions(jnp.array(pair)) for pair in ([0.5, 3.0], [0.5, 0.5], [3.0, 3.0]))
    ]
    for i in range(2):
        assert jnp.array_equal(drafted[0].tokens[i], drafted[1 + i].tokens[i])
    with pytest.raises(ValueError, match=r"top_p must be a single value or one for each row, \(2,\), not \(3,\)"):
        run(SamplingOptions(top_p=jnp.ones(3)))
    with pytest.raises(ValueError, match=r"top_p must be in \(0, 1\], not 1.5"):
        SamplingOptions(top_p=jnp.array([0.5, 1.5]))


@pytest.mark.full
def test_static_options_may_be_arrays_and_are_refused_if_traced(key: jax.Array) -> None:
    step = Partial(table_step, table(1))

    def run(top_k=3, max_length=4, num_samples=2):
        options = SamplingOptions(top_k=top_k)
        return sample(step, CARRY, FIRST, options, key=key, max_length=max_length, num_samples=num_samples).tokens

    assert jnp.array_equal(run(jnp.int32(3), np.int64(4), jnp.int32(2)), run())
    for name in ("top_k", "max_length", "num_samples"):
        with pytest.raises(TypeError, match=f"{name} is part of the compiled program and cannot be traced"):
            jax.jit(lambda n, name=name: run(**{name: n}))(3)
        with pytest.raises(TypeError, match=f"{name} must be an integer, not 2.5"):
            known_integer(name, 2.5)
