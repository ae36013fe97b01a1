"""The receptive field: how strongly an output depends on the input at each lag."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxseq.analysis.carry_vectors import stable_norm
from jaxseq.typing import Array, Float, Int, Key

EXACT_FEATURES = 128
"""The widest output whose Jacobian is computed by all of its rows unless ``probes`` are given."""

DEFAULT_PROBES = 32


class ReceptiveField(NamedTuple):
    """The Frobenius norm of ``d y_position / d x_{position - lag}`` at each lag, ascending; negative: later inputs."""

    lags: Int[np.ndarray | Array, " T"]
    norms: Float[np.ndarray | Array, " T"]

    @property
    def support(self) -> int:
        """The largest lag with a norm that is not exactly zero.

        Raises:
            ValueError: all norms are zero.
        """
        return int(np.asarray(self.lags)[self._norms() != 0].max())

    def effective_length(self, share: float = 0.95) -> int:
        """The smallest n such that the lags from -n to n hold this share of the sum of the squared norms.

        Raises:
            ValueError: ``share`` is not in (0, 1], or all norms are zero.
        """
        if not 0 < share <= 1:
            raise ValueError(f"share={share} is not in (0, 1]")
        norms, distances = self._norms(), np.abs(np.asarray(self.lags))
        energy = np.square(norms / norms.max())
        within = np.cumsum(np.bincount(distances, energy))
        return int(np.argmax(within >= share * within[-1] * (1 - 1e-12)))

    def _norms(self) -> np.ndarray:
        norms = np.asarray(self.norms, np.float64)
        if norms.ndim != 1 or not np.isfinite(norms).all() or not norms.any():
            raise ValueError(f"norms of one output, finite and not all zero, are needed, not {norms}")
        return norms


def receptive_field(
    function: Callable[[Array], Array],
    xs: Float[Array, "T D"],
    *,
    position: int = -1,
    probes: int | None = None,
    key: Key[Array, ""] | None = None,
) -> ReceptiveField:
    """The norm of the derivative of one output by each input, ``|d y_position / d x_{position - lag}|_F`` against lag.

    The function may be anything that maps a sequence to one of the same length: a recurrence, an attention, a dilated
    convolution, an encoder that reads in both directions (lags of later inputs are negative). One backward pass for
    each of the F features of the output, eight at a time, gives the exact norms. For a wide output the passes are of
    ``probes`` random cotangents instead, ``E |J^T v|² = |J|_F²`` for v of independent normal numbers (Hutchinson's
    estimate): the relative error of a norm is at most about ``sqrt(1 / (2 probes))``, and exact zeros stay exact.

    In float32 a derivative below 1e-38 is zero; use float64 to follow it further.

    Args:
        function: ``xs[T D] -> ys[T F]``, parameters and any carry bound.
        xs: the inputs at which to differentiate.
        position: the output, negative from the end.
        probes: the number of random cotangents; None: exact for at most 128 features, else 32. A number of at least F
            is exact as well.
        key: of the random cotangents; None: ``jax.random.key(0)``.

    Raises:
        ValueError: inputs or outputs that are not ``[T D]`` and ``[T F]``, a position outside them, or ``probes < 1``.

    Example::

        field = receptive_field(lambda xs: core.apply(variables, carry, xs)[1], xs)
        field.support, field.effective_length(0.95)
    """
    if jnp.ndim(xs) != 2:
        raise ValueError(f"inputs of one sequence, [T D], are needed, not {jnp.shape(xs)}; use jax.vmap")
    time = xs.shape[0]
    if not -time <= position < time:
        raise ValueError(f"position={position} is not one of {time} positions")
    if probes is not None and probes < 1:
        raise ValueError(f"probes={probes} must be at least 1")
    position %= time
    ys, pullback = jax.vjp(function, xs)
    if ys.ndim != 2 or ys.shape[0] != time:
        raise ValueError(f"the function maps {xs.shape} to {ys.shape}, not to [T F] with T={time}")
    features = ys.shape[1]
    if probes is None:
        probes = features if features <= EXACT_FEATURES else min(DEFAULT_PROBES, features)
    exact = probes >= features
    if exact:
        cotangents = jnp.eye(features, dtype=ys.dtype)
    else:
        cotangents = jax.random.normal(jax.random.key(0) if key is None else key, (probes, features), ys.dtype)

    def norms(cotangent: Array) -> Array:
        return stable_norm(pullback(jnp.zeros_like(ys).at[position].set(cotangent))[0], -1)

    found = stable_norm(lax.map(norms, cotangents, batch_size=8), 0)[::-1]
    lags = position - jnp.arange(time, dtype=jnp.int32)[::-1]
    return ReceptiveField(lags, found if exact else found / np.sqrt(probes).astype(found.dtype))
