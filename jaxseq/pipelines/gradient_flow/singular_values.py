"""The derivative of an Elman network's state by an earlier one, beside the bound by the largest singular value."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.analysis import carry_flow, norm_bound
from jaxseq.cores import Elman
from jaxseq.pipelines.gradient_flow.part import Say, Values, check_counts, check_positive
from jaxseq.plotting import Curve, CurvePanel, draw_curves
from jaxseq.typing import Array, Float, Key, PyTree

SMALLEST = 1e-45
"""Of positive float32 numbers; a norm of zero counts as it."""


@dataclass(frozen=True)
class SingularValues:
    """Gaussian matrices scaled to a largest singular value, and a chain of units that is not normal."""

    largest: tuple[float, ...] = (0.7, 1.5, 4.0)
    """Largest singular values sigma_max of the recurrent matrix."""
    features: int = 32
    """Units of the networks with Gaussian matrices."""
    length: int = 60
    """Positions, and the largest lag."""
    sequences: int = 4
    """Sequences of normal inputs, whose norms are averaged (geometric mean)."""
    chain: int = 12
    """Units of the chain ``R = radius I + coupling S``, with S the shift by one unit."""
    radius: float = 0.7
    """The chain's only eigenvalue."""
    coupling: float = 0.5
    """The weight between neighbours in the chain."""

    def __post_init__(self) -> None:
        check_counts("singular_values", features=self.features, length=self.length, sequences=self.sequences)
        check_counts("singular_values", largest=len(self.largest), chain=self.chain)
        for sigma in self.largest:
            check_positive("singular_values", largest=sigma)
        check_positive("singular_values", radius=self.radius, coupling=self.coupling)

    def compute(self, seed: int, say: Say) -> Values:
        """The norms and bounds of each matrix against lag, and those of the chain with the power of its radius."""
        key, lags = jax.random.key(seed), list(range(self.length + 1))
        matrix_key, input_key = jax.random.split(key)
        gaussian = jax.random.normal(matrix_key, (self.features, self.features))
        gaussian = gaussian / jnp.linalg.norm(gaussian, 2)
        xs = jax.random.normal(input_key, (self.sequences, self.length, self.features))
        swept = {}
        for sigma in self.largest:
            norms = elman_norms(sigma * gaussian, xs, lags, key)
            radius = np.abs(np.linalg.eigvals(sigma * np.asarray(gaussian))).max()
            swept[str(sigma)] = {"norms": norms, "bound": norm_bound(sigma * gaussian, 1.0, lags), "radius": radius}
            say(f"singular values: sigma_max {sigma}, spectral radius {radius:.2f}, lag {lags[-1]}: {norms[-1]:.1e}")
        R = self.radius * jnp.eye(self.chain) + self.coupling * jnp.eye(self.chain, k=1)
        still = jnp.zeros((1, self.length, self.chain))  # the state stays 0, where tanh' = 1
        chain = {"norms": elman_norms(R, still, lags, key), "bound": norm_bound(R, 1.0, lags)}
        chain["radius_power"] = self.radius ** np.asarray(lags)
        arrays = {"lags": lags, "swept": swept, "chain": chain}
        return jax.tree.map(lambda a: np.asarray(a, np.float64).tolist(), arrays)

    def draw(self, values: Values, file: Path) -> Path:
        """Norms (solid) and bounds (dashed) against lag; the chain."""
        lags, x_label = values["lags"], "lag k (positions)"
        curves = {}
        for sigma, found in values["swept"].items():
            curves[f"σmax = {sigma}"] = Curve(lags, found["norms"])
            curves[f"σmax = {sigma} bound"] = Curve(lags, found["bound"], dashed=True)
        chain = values["chain"]
        panel = {
            "|dh_T/dh_T-k|": Curve(lags, chain["norms"]),
            "|dh_T/dh_T-k| bound": Curve(lags, chain["bound"], dashed=True),
            f"{self.radius:g}^k (spectral radius)": Curve(lags, chain["radius_power"]),
        }
        return draw_curves(
            [
                CurvePanel(
                    "Gaussian R, normal inputs", curves, x_label, "largest singular value of dh_T/dh_T-k", log_y=True
                ),
                CurvePanel(
                    f"Not normal: R = {self.radius:g} I + {self.coupling:g} S, h = 0", panel, x_label, "", log_y=True
                ),
            ],
            file,
            title="Elman network: derivative of the state by an earlier one; dashed: the bound (γ σmax)^k",
        )

    def results(self, values: Values) -> dict[str, float]:
        """Norms at the largest lag, the largest ratio to a bound, and the peak of the chain."""
        every = [*values["swept"].values(), values["chain"]]
        ratios = [np.max(np.asarray(found["norms"]) / np.asarray(found["bound"])) for found in every]
        peak = int(np.argmax(values["chain"]["norms"]))
        found = {"largest_ratio_to_bound": float(max(ratios))}
        for sigma, one in values["swept"].items():
            found |= {f"sigma_{sigma}_norm": one["norms"][-1], f"sigma_{sigma}_radius": one["radius"]}
        return found | {"chain_peak": values["chain"]["norms"][peak], "chain_peak_lag": values["lags"][peak]}


def elman_norms(
    R: Float[Array, "F F"], xs: Float[Array, "B T F"], lags: Sequence[int], key: Key[Array, ""]
) -> Float[np.ndarray, " L"]:
    """The geometric mean over sequences of the largest singular value of ``dh_T/dh_{T-lag}``."""
    core = Elman(R.shape[0])
    params = core.init(key, core.initial_carry(()), xs[0, :1])["params"]
    found = np.asarray(_norms(core, tuple(lags), params | {"recurrent": R[None, :, None]}, xs), np.float64)
    return np.exp(np.log(np.maximum(found, SMALLEST)).mean(0))


@partial(jax.jit, static_argnums=(0, 1))
def _norms(core: Elman, lags: tuple[int, ...], params: PyTree, xs: Float[Array, "B T F"]) -> Float[Array, "B L"]:
    function: Any = partial(core.apply, {"params": params})
    size = core.features  # as many probes as units: exact
    flow = jax.vmap(lambda x: carry_flow(function, core.initial_carry(()), x, lags=lags, probes=size))(xs)
    return flow.singular_values[..., 0]
