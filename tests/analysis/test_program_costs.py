"""FLOPs, chains of dependent operations and path lengths of programs: equal to what is counted by hand."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxseq import ops
from jaxseq.analysis import (
    crossing_size,
    fitted_exponent,
    path_length,
    program_flops,
    program_memory,
    receptive_field,
    sequential_depth,
)


def shape(*sizes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def elman(h, xs, W, R):
    """A recurrence whose projection of the input does not read the state."""
    return lax.scan(lambda h, x: (jnp.tanh(h @ R + x @ W), h), h, xs)


ELMAN = shape(5), shape(7, 5), shape(5, 5), shape(5, 5)


def test_products_are_counted_as_by_hand():
    def function(a, b, c):
        def step(s, x):
            return s + jnp.outer(x, x), s @ x

        return a @ b, lax.scan(step, c, b)

    counted = program_flops(function, shape(3, 4), shape(4, 5), shape(5, 5))
    assert counted == 2 * 3 * 4 * 5 + 4 * (2 * 5 * 5 + 2 * 5 * 5)
    branches = lambda i, a, b: lax.cond(i, lambda: (a @ b).sum(), lambda: a.sum())  # noqa: E731
    assert program_flops(branches, jnp.array(True), shape(3, 4), shape(4, 5)) == 2 * 3 * 4 * 5


def test_elementwise_arithmetic_is_counted_where_it_is_asked_for():
    a, h = shape(2, 9, 3), shape(2, 3)
    loop = partial(ops.linear_recurrence, implementation="loop")
    assert program_flops(loop, h, a, a) == 0 and program_flops(loop, h, a, a, elementwise=True) == 2 * 2 * 9 * 3
    softmax = program_flops(lambda x: jnp.exp(x) / jnp.exp(x).sum(), shape(9), elementwise=True)
    assert softmax == 4 * 9  # exp twice, a sum, a division
    assert program_flops(lambda x: x.at[0].add(1.0), shape(9), elementwise=True) == 1


def test_xla_counts_the_body_of_a_loop_once_and_program_flops_does_not():
    def loop(steps: int):
        return lambda h, R: lax.scan(lambda h, _: (h @ R, None), h, length=steps)[0]

    def xla(steps: int) -> float:
        found = jax.jit(loop(steps)).lower(shape(4, 8), shape(8, 8)).compile().cost_analysis()
        return (found[0] if isinstance(found, list) else found)["flops"]

    def ours(steps: int) -> float:
        return program_flops(loop(steps), shape(4, 8), shape(8, 8))

    assert xla(10) == pytest.approx(xla(50), rel=0.01)  # the counter may add the loop's index
    assert ours(50) == 50 * 2 * 4 * 8 * 8 == 50 * ours(1)


def test_a_chain_follows_the_carry_of_a_scan_and_nothing_else():
    assert sequential_depth(elman, *ELMAN) == 7  # x @ W runs beside h @ R
    assert sequential_depth(elman, *ELMAN, counted="arithmetic") == 7 * 3  # product, sum, tanh
    projected = lambda h, xs, W, R: elman(h, xs @ W @ W, W, R)[1] @ W  # noqa: E731
    assert sequential_depth(projected, *ELMAN) == 2 + 7  # the last output needs 6 steps, and a product after them
    mapped = lambda xs, W: lax.scan(lambda _, x: (None, jnp.tanh(x @ W) @ W), None, xs)[1]  # noqa: E731
    assert sequential_depth(mapped, shape(7, 5), shape(5, 5)) == 2
    pair = lambda h, R: lax.scan(lambda c, _: ((c[1], c[0] @ R), None), (h, h), length=7)[0]  # noqa: E731
    assert sequential_depth(pair, shape(5), shape(5, 5)) == 4  # two carries take turns: h_t depends on h_{t-2}


def test_chains_of_products_trees_and_loops():
    chain = lambda a, b: a @ b @ b + a @ b  # noqa: E731
    assert sequential_depth(chain, shape(3, 3), shape(3, 3)) == 2
    for levels in (1, 3, 6):
        tree = partial(lax.associative_scan, jnp.matmul)
        assert sequential_depth(tree, shape(2**levels, 3, 3)) == 2 * levels - 1
    assert sequential_depth(jnp.cumsum, shape(64), counted="arithmetic") == 6
    h, a = shape(3), shape(64, 3)
    depths = [sequential_depth(partial(ops.linear_recurrence, implementation=form), h, a, a, counted="arithmetic")
              for form in ("loop", "associative")]  # fmt: skip
    assert depths[0] == 2 * 64 and depths[1] < 64
    query = shape(300, 1, 4)
    for implementation in ("reference", "tiles"):
        assert sequential_depth(partial(ops.attention, implementation=implementation), query, query, query) == 2


def test_the_result_of_a_branch_follows_its_predicate_and_the_longest_branch():
    def function(x, W):
        return lax.cond((x @ W @ W @ W).sum() > 0, lambda: x, lambda: x @ W) @ W

    assert sequential_depth(function, shape(3, 3), shape(3, 3)) == 4
    longest = lambda i, x, W: lax.cond(i, lambda: x @ W @ W, lambda: x)  # noqa: E731
    assert sequential_depth(longest, jnp.array(True), shape(3, 3), shape(3, 3)) == 2


@pytest.mark.usefixtures("untyped")
def test_a_loop_of_unknown_length_has_a_chain_only_if_nothing_grows():
    def function(step, x, W):
        return lax.while_loop(lambda c: c.sum() < 1, step, x) @ W

    with pytest.raises(ValueError, match="while loop of unknown length"):
        sequential_depth(lambda x, W: function(lambda c: c @ W, x, W), shape(3, 3), shape(3, 3))
    bounded = lambda x, W: function(lambda c: c + x @ W, x, W)  # noqa: E731
    assert sequential_depth(bounded, shape(3, 3), shape(3, 3)) == 2
    with pytest.raises(ValueError, match="counted='flops'; known: products, arithmetic"):
        sequential_depth(bounded, shape(3, 3), shape(3, 3), counted="flops")


def test_memory_is_that_of_the_buffers():
    found = program_memory(lambda x: jnp.tanh(x @ x.T) @ x, shape(64, 8))
    assert found.arguments == found.outputs == 64 * 8 * 4
    assert found.temporary >= 64 * 64 * 4 and (found.peak is None or found.peak > 0)


def shift(xs):
    """Moves a signal 3 positions a layer."""
    return 0.01 * xs + jnp.pad(xs, ((3, 0), (0, 0)))[: len(xs)]


def test_a_path_is_the_least_number_of_layers_with_a_derivative():
    xs = jnp.ones((13, 2))
    assert path_length(itertools.repeat(shift, 100), xs, key=jax.random.key(0)) == 4  # 12 positions, 3 a layer
    assert path_length([shift] * 3, xs, key=jax.random.key(0), source=3, target=12) == 3
    with pytest.raises(ValueError, match="3 layers carry nothing from position 0 to position -1 of 13"):
        path_length([shift] * 3, xs, key=jax.random.key(0))
    with pytest.raises(ValueError, match="target=13 is not among 13 positions"):
        path_length([shift], xs, key=jax.random.key(0), target=13)


@pytest.mark.full
def test_a_path_ends_where_the_receptive_field_of_a_stack_begins():
    def norm(count: int) -> float:
        def stack(xs):
            for _ in range(count):
                xs = shift(xs)
            return xs

        return float(receptive_field(stack, jnp.ones((13, 2))).norms[12])

    assert norm(3) == 0 and norm(4) > 0


def test_exponents_and_crossings_are_those_of_power_laws():
    sizes = [64, 128, 512, 4096]
    assert fitted_exponent(sizes, [3 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    quadratic, linear = [n * n for n in sizes], [300 * n for n in sizes]
    assert crossing_size(sizes, quadratic, linear) == pytest.approx(300)
    assert crossing_size(sizes, linear, quadratic) is None
    assert crossing_size(sizes, [2 * n for n in sizes], sizes) == 0
    for sizes, costs in (([1], [1]), ([1, 2], [0, 1]), ([1, 2], [1, np.nan]), ([1, 2], [1])):
        with pytest.raises(ValueError, match="sizes"):
            fitted_exponent(sizes, costs)
    with pytest.raises(ValueError, match=r"sizes=\[2, 1\] must increase"):
        crossing_size([2, 1], [1, 1], [1, 1])
