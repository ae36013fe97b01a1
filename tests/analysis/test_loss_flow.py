import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxseq.analysis import carry_flow, loss_flow, receptive_field
from jaxseq.analysis.carry_vectors import float_leaves, with_float_leaves
from jaxseq.cores import CORES, Attention
from tests.analysis.flow_cases import RECURRENT, made, plain
from tests.compilation import jitted

T = 6


def perturbed(core, carry, xs, loss):
    """The gradient by a number added to each float leaf of the carry after each step, and that by the inputs."""
    time = xs.shape[-2]
    zeros = [jnp.zeros((time, *leaf.shape), leaf.dtype) for leaf in float_leaves(carry)]

    def total(added, xs):
        at, ys = carry, []
        for t in range(time):
            at, y = core(at, xs[..., t : t + 1, :])
            at = with_float_leaves(at, [leaf + a[t] for leaf, a in zip(float_leaves(at), added, strict=True)])
            ys.append(y)
        return loss(jnp.concatenate(ys, -2))

    return jax.grad(total, (0, 1))(zeros, xs)


def weighted(ys):
    """A loss of all outputs."""
    return jnp.sum(jnp.sin(ys) * jnp.cos(jnp.arange(ys.size, dtype=ys.dtype)).reshape(ys.shape))


@pytest.mark.parametrize("name", ["plain", *(pytest.param(n, marks=pytest.mark.full) for n in ("lstm", "hybrid"))])
def test_norms_are_those_of_perturbed_carries_and_of_the_gradient(name, x64):
    core, carry, xs = plain(T) if name == "plain" else made(RECURRENT[name](), time=3)
    flow, whole, (by_carry, by_input) = jitted(
        lambda xs: (
            loss_flow(core, carry, xs, weighted),
            loss_flow(core, carry, xs, weighted, carries=False),
            perturbed(core, carry, xs, weighted),
        )
    )(xs)
    want = np.linalg.norm(np.concatenate([leaf.reshape(len(leaf), -1) for leaf in by_carry], -1), axis=-1)
    np.testing.assert_allclose(flow.carries, want, rtol=1e-9, atol=1e-13)
    assert flow.carries[-1] == 0 and (flow.carries[:-1] > 0).all() and whole.carries is None
    for inputs in (flow.inputs, whole.inputs):
        np.testing.assert_allclose(inputs, np.linalg.norm(by_input, axis=-1), rtol=1e-9)


def test_a_batch_has_a_norm_for_each_row_and_a_part_of_the_carry_its_own(x64):
    core, carry, xs = plain(T, batch=(2,))
    whole, hidden, cell, (by_carry, _) = jitted(
        lambda xs: (
            loss_flow(core, carry, xs, weighted),
            loss_flow(core, carry, xs, weighted, part=lambda carry: carry.h),
            loss_flow(core, carry, xs, weighted, part=lambda carry: carry.c),
            perturbed(core, carry, xs, weighted),
        )
    )(xs)
    h, c = (np.linalg.norm(leaf, axis=-1).T for leaf in by_carry)
    assert whole.inputs.shape == whole.carries.shape == (2, T)
    np.testing.assert_allclose(hidden.carries, h, rtol=1e-9)
    np.testing.assert_allclose(cell.carries, c, rtol=1e-9)
    np.testing.assert_allclose(whole.carries, np.hypot(h, c), rtol=1e-9)


def test_losses_and_carries_that_do_not_fit_are_named(untyped):
    core, carry, xs = plain(4)
    with pytest.raises(ValueError, match=r"must be a scalar, not of shape \(4,\)"):
        loss_flow(core, carry, xs, lambda ys: ys.sum(-1))
    with pytest.raises(ValueError, match=r"T >= 1, not \(2,\)"):
        loss_flow(core, carry, xs[0], jnp.sum)
    with pytest.raises(ValueError, match="no floating-point leaves"):
        loss_flow(lambda carry, xs: (carry, xs), jnp.zeros((), jnp.int32), xs, jnp.sum)
    carry = Attention(3, num_heads=1, positions="none").initial_carry((), context=1)
    with pytest.raises(ValueError, match="4 positions are read one by one, but the carry keeps 1"):
        loss_flow(core, carry, xs, jnp.sum)


MAIN = ("mingru", "conv")


@pytest.mark.parametrize("name", [n if n in MAIN else pytest.param(n, marks=pytest.mark.full) for n in CORES])
def test_every_core_has_a_flow_and_a_receptive_field(name):
    core, carry, xs = made(CORES[name](features=4), time=4)
    flow, losses, field, whole = jitted(
        lambda xs: (
            carry_flow(core, carry, xs),
            loss_flow(core, carry, xs, weighted),
            receptive_field(lambda xs: core(carry, xs)[1], xs),
            jax.grad(lambda xs: weighted(core(carry, xs)[1]))(xs),
        )
    )(xs)
    whole = np.linalg.norm(whole, axis=-1)
    np.testing.assert_allclose(losses.inputs, whole, rtol=2e-3, atol=1e-5)
    assert all(np.isfinite(a).all() for a in (*flow, *losses, *field))
    assert (np.asarray(flow.norms)[:3] > 0).all() and losses.carries[0] > 0 and field.support >= 3
