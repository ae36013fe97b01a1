"""Cores with random parameters, bound, for the tests of gradient flow."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.cores import GRU, LSTM, Attention, Conv, Core, Elman, MinGRU, Stacked, block
from tests.compilation import jitted


def made(core: Core, time: int, width: int = 3, context: int | None = None, scale: float = 1.0) -> tuple[Any, Any, Any]:
    """The core with its parameters bound, the carry after two positions, and inputs ``[time, width]``."""
    wide = core.initial_carry((), time + 1 if context is None else context)
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(time + 2, width)), dtype)
    variables = jitted(core.init)(jax.random.key(0), wide, xs[:2])
    variables = jax.tree.map(lambda a: a * jnp.asarray(scale, a.dtype), variables)
    carry = wide if context is not None else jitted(core.apply)(variables, wide, xs[:2])[0]
    return partial(core.apply, variables), carry, xs[2:]


def double(core: type[Core], features: int, **options: Any) -> Core:
    """A core in float64."""
    return core(features=features, dtype=jnp.float64, param_dtype=jnp.float64, **options)


def hybrid() -> Core:
    """Recurrence, and a block of window attention, stacked: a carry of states, caches and integers."""
    precision: dict[str, Any] = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    attention = double(Attention, 2, num_heads=1, window=3)
    return Stacked((double(GRU, 2), block(attention, **precision)))


class Plain(NamedTuple):
    """The carry of ``plain``: two states, and a count of positions, which is no float."""

    h: Any
    c: Any
    count: Any


def plain(time: int, size: int = 3, width: int = 2, batch: tuple[int, ...] = (), scale: float = 1.0) -> tuple:
    """A core written by hand, which compiles fast: a leaky state read by a simple recurrence; a carry and inputs."""
    rng = np.random.default_rng(0)
    dtype = jnp.float64 if jax.config.jax_enable_x64 else jnp.float32
    R = jnp.asarray(scale * np.linalg.qr(rng.normal(size=(size, size)))[0], dtype)
    W, xs, h, c = (
        jnp.asarray(rng.normal(size=s), dtype)
        for s in ((width, size), (*batch, time, width), (*batch, size), (*batch, size))
    )

    def step(carry: Plain, x: Any) -> tuple[Plain, Any]:
        x = x @ W
        c = jax.nn.sigmoid(x) * carry.c + x * jnp.cos(carry.count).astype(dtype)[..., None]
        h = jnp.tanh(carry.h @ R + c)
        return Plain(h, c, carry.count + 1), h * x

    def core(carry: Plain, xs: Any) -> tuple[Plain, Any]:
        carry, ys = jax.lax.scan(step, carry, jnp.moveaxis(xs, -2, 0))
        return carry, jnp.moveaxis(ys, 0, -2)

    return core, Plain(h, c, jnp.zeros(batch, jnp.int32)), xs


def simple(R: Any, activation: Callable, time: int) -> tuple:
    """``h_t = activation(h_{t-1} R + x_t)`` for a given R, as a core, with a carry and inputs."""
    xs = jnp.asarray(np.random.default_rng(2).normal(size=(time, len(R))))

    def step(h: Any, x: Any) -> tuple:
        h = activation(h @ R + x)
        return h, h

    return partial(jax.lax.scan, step), jnp.zeros(len(R)), xs


RECURRENT = {
    "elman": partial(double, Elman, 3),
    "lstm": partial(double, LSTM, 3),
    "hybrid": hybrid,
    "conv": partial(double, Conv, 2, kernel_size=3),
    "mingru": partial(double, MinGRU, 3),
}
