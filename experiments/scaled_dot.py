"""Why dot-product attention divides by sqrt(D): variance, entropy and gradients with the scale and without it.

    python -m jaxseq analyze scaled-dot --run runs/scaled-dot

Queries and keys have D independent entries of variance 1. Then q.k has variance D, and q.k / sqrt(D) has variance 1.
Covariances of zero do not suffice: with k = r q and a random sign r, every covariance is zero and q.k has variance
D^2 + 2 D. With scores of standard deviation sqrt(D) the softmax puts nearly all weight on one of N keys, and its
derivative vanishes. A sharpness t multiplies the scores in the same way: the last panel shows the gradients of
``ops.hardmax``, ``ops.soft_argmax`` and ``ops.smooth_max`` against t.

The default takes 10 seconds on one CPU core. At D = 1024 and 128 keys, the median entropy is 0.002 nats without the
scale and 4.39 with it (uniform weights: 4.85), and the norm of the softmax's derivative 0.0004 and 0.13. Of six normal
numbers, hardmax has the largest median derivative at t = 3; at t = 30 it is 2e-5.
"""

import math
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq import ops, training
from jaxseq.plotting import Curve, CurvePanel, draw_curves
from jaxseq.training import resumable_field

QUARTILES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Config:
    """Sizes of the vectors, and numbers of samples."""

    run: Path = resumable_field(Path("runs/scaled-dot"))
    """The run folder."""
    sizes: tuple[int, ...] = (1, 4, 16, 64, 256, 1024)
    """Sizes D of queries and keys."""
    num_keys: int = 128
    """Keys N that a query attends to."""
    pairs: int = 20_000
    """Pairs (q, k) of which a variance is computed."""
    queries: int = 512
    """Queries of which entropy and gradients are computed."""
    entries: int = 6
    """Entries of the vectors x of the panel against t."""
    draws: int = 4_000
    """Number of vectors x."""
    seed: int = 0
    """Draws everything."""
    smoke: bool = False
    """Small sizes, to test that everything works."""

    def __post_init__(self) -> None:
        training.check_numbers(self)
        minimum = {"num_keys": 2, "pairs": 2, "queries": 1, "entries": 2, "draws": 1, "seed": 0}
        for name, bound in minimum.items():
            if getattr(self, name) < bound:
                raise ValueError(f"{name} must be at least {bound}, not {getattr(self, name)}")
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"sizes={self.sizes} must be one or more positive numbers")


class SizeRow(NamedTuple):
    """Measurements at one size D; lists are the quartiles over queries."""

    size: int
    variance: float
    scaled_variance: float
    dependent_variance: float
    entropy: list[float]
    scaled_entropy: list[float]
    gradient: list[float]
    scaled_gradient: list[float]


class SharpnessRow(NamedTuple):
    """Norms of gradients at one sharpness t: quartiles over vectors x, and the mean."""

    t: float
    hardmax: list[float]
    hardmax_mean: float
    soft_argmax: list[float]
    smooth_max: list[float]


def main(config: Config) -> dict[str, Any]:
    """Measure, draw, report; returns the results."""
    if config.smoke:
        config = smoke(config)
    with training.Run.open(config.run, config, fingerprint="normal numbers") as run, jax.enable_x64(True):
        start = time.perf_counter()
        generator = np.random.default_rng(config.seed)
        rows = []
        for size in config.sizes:
            rows.append(measure_size(config, generator, size))
            print(f"D = {size}: {time.perf_counter() - start:.1f} s", flush=True)
        x = generator.normal(size=(config.draws, config.entries))
        sharpness = [measure_sharpness(x, t) for t in np.geomspace(0.1, 30, 16).tolist()]
        gap = median_gap(x)
        run.write("sizes.json", [row._asdict() for row in rows])
        run.write("sharpness.json", [row._asdict() for row in sharpness])
        results = summarize(config, rows, sharpness, gap)
        run.write_results(results)
        (run.path / "figures").mkdir(exist_ok=True)
        figures = draw(config, rows, sharpness, gap, run.path / "figures")
        table = as_table(rows)
        report = training.write_report(run, title="The scale of dot products", samples=[table], figures=figures)
    print(f"{table}\nreport: {report}")
    return results


def smoke(config: Config) -> Config:
    """The same experiment with small sizes."""
    return Config(config.run, (1, 16), num_keys=16, pairs=2_000, queries=16, draws=200, seed=config.seed, smoke=True)


def measure_size(config: Config, generator: np.random.Generator, size: int) -> SizeRow:
    """Variances of products of random pairs, and entropy and gradient of the softmax over random keys."""
    products, dependent = [], []
    for first in range(0, config.pairs, 1_000):  # in parts, for memory
        count = min(1_000, config.pairs - first)
        q, k = generator.normal(size=(2, count, size))
        sign = generator.choice([-1.0, 1.0], size=(count, 1))
        products.append((q * k).sum(-1))
        dependent.append((q * (sign * q)).sum(-1))
    product = np.concatenate(products)
    plain, scaled = [], []
    for first in range(0, config.queries, 16):  # 16 queries share their keys
        q = generator.normal(size=(min(16, config.queries - first), size))
        weights = attention_weights(q, generator.normal(size=(config.num_keys, size)))
        plain.append(np.asarray(weights[0]))
        scaled.append(np.asarray(weights[1]))
    unscaled_weights, scaled_weights = np.concatenate(plain), np.concatenate(scaled)
    return SizeRow(
        size,
        float(product.var()),
        float((product / math.sqrt(size)).var()),
        float(np.concatenate(dependent).var()),
        quartiles(entropy(unscaled_weights)),
        quartiles(entropy(scaled_weights)),
        quartiles(softmax_derivative_norm(unscaled_weights)),
        quartiles(softmax_derivative_norm(scaled_weights)),
    )


def entropy(weights: np.ndarray) -> np.ndarray:
    """``-Σ a log a`` in nats."""
    return -(weights * np.log(np.maximum(weights, np.finfo(float).tiny))).sum(-1)


def softmax_derivative_norm(weights: np.ndarray) -> np.ndarray:
    """The Frobenius norm of the derivative of the weights by their scores, ``|diag(a) - a a^T|``."""
    squares = (weights**2).sum(-1)
    diagonal = (weights * (1 - weights)) ** 2
    return np.sqrt(diagonal.sum(-1) + np.maximum(squares**2 - (weights**4).sum(-1), 0))


def measure_sharpness(x: np.ndarray, t: float) -> SharpnessRow:
    """Norms of the derivatives by x at sharpness t."""
    hard, index, smooth = (np.asarray(norms) for norms in derivative_norms(x, t))
    return SharpnessRow(t, quartiles(hard), float(hard.mean()), quartiles(index), quartiles(smooth))


@jax.jit
def derivative_norms(x: jax.Array, t: jax.Array) -> tuple[jax.Array, ...]:
    """Frobenius norms of the derivatives of hardmax, soft argmax and smooth max by each vector x."""

    def norm(function: Any, x: jax.Array) -> jax.Array:
        return jnp.sqrt((jax.jacrev(function)(x, t) ** 2).sum())

    return tuple(jax.vmap(partial(norm, f))(x) for f in (ops.hardmax, ops.soft_argmax, ops.smooth_max))


@jax.jit
def attention_weights(q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The weights ``[T S]`` of queries for keys, without the scale and with it."""
    heads = q[:, None], k[:, None]
    return ops.attention_weights(*heads, scale=1.0)[0], ops.attention_weights(*heads)[0]


def median_gap(x: np.ndarray) -> float:
    """The median over vectors of the difference of the two largest entries."""
    ordered = np.sort(x, axis=-1)
    return float(np.median(ordered[:, -1] - ordered[:, -2]))


def quartiles(values: np.ndarray) -> list[float]:
    """The quartiles, the median in the middle."""
    return np.quantile(values, QUARTILES).tolist()


def two_entries(sharpness: np.ndarray) -> np.ndarray:
    """``|diag(s) - s s^T|`` of the softmax of two entries that differ by ``sharpness``: ``2 s_1 s_2``."""
    small = np.exp(-np.abs(sharpness))
    return 2 * small / (1 + small) ** 2


def summarize(config: Config, rows: list[SizeRow], sharpness: list[SharpnessRow], gap: float) -> dict[str, Any]:
    """The flat results: those at the largest D, and the sharpness of the largest median gradient."""
    last, peak = rows[-1], max(sharpness, key=lambda row: row.hardmax[1])
    return {
        "size": last.size,
        "variance_over_size": last.variance / last.size,
        "scaled_variance": last.scaled_variance,
        "dependent_variance_over_theory": last.dependent_variance / (last.size**2 + 2 * last.size),
        "entropy": last.entropy[1],
        "scaled_entropy": last.scaled_entropy[1],
        "largest_entropy": math.log(config.num_keys),
        "gradient": last.gradient[1],
        "scaled_gradient": last.scaled_gradient[1],
        "best_t": peak.t,
        "best_gradient": peak.hardmax[1],
        "gradient_at_largest_t": sharpness[-1].hardmax[1],
        "median_gap": gap,
    }


def draw(
    config: Config, rows: list[SizeRow], sharpness: list[SharpnessRow], gap: float, folder: Path
) -> dict[str, Path]:
    """Two figures, by caption: medians with the quartiles as bands, and theory, dashed.

    The theory of entropy and derivative is the limit of many keys. Of N normal scores with variance v, the weights have
    the entropy ``log N - v / 2`` up to ``v = 2 log N``, where it reaches 0 (random energy model, Derrida 1981);
    then the two largest scores decide, whose gap has the median ``log(2) sqrt(v / (2 log N))``.
    """
    sizes = np.array([row.size for row in rows], float)
    log_n, smallest_t = math.log(config.num_keys), 1.0
    t = np.array([row.t for row in sharpness])
    large = t >= smallest_t
    typical_gap = np.sqrt(sizes) * math.log(2) / math.sqrt(2 * log_n)

    def band(values: list[list[float]], x: np.ndarray) -> Curve:
        low, middle, high = np.array(values).T
        return Curve(x, middle, low=low, high=high)

    variance = {
        "q.k": Curve(sizes, [row.variance for row in rows]),
        "q.k theory": Curve(sizes, sizes, dashed=True),
        "q.k / √D": Curve(sizes, [row.scaled_variance for row in rows]),
        "q.k / √D theory": Curve(sizes, np.ones_like(sizes), dashed=True),
        "k = ±q": Curve(sizes, [row.dependent_variance for row in rows]),
        "k = ±q theory": Curve(sizes, sizes**2 + 2 * sizes, dashed=True),
    }
    entropies = {
        "q.k": band([row.entropy for row in rows], sizes),
        "q.k limit": Curve(sizes, np.maximum(log_n - sizes / 2, 0), dashed=True),
        "q.k / √D": band([row.scaled_entropy for row in rows], sizes),
        "q.k / √D limit": Curve(sizes, np.full_like(sizes, log_n - 0.5), dashed=True),
    }
    gradients = {
        "q.k": band([row.gradient for row in rows], sizes),
        "q.k limit": Curve(sizes, np.where(sizes > 2 * log_n, two_entries(typical_gap), np.nan), dashed=True),
        "q.k / √D": band([row.scaled_gradient for row in rows], sizes),
        "q.k / √D limit": Curve(sizes, np.full_like(sizes, math.sqrt(math.e / config.num_keys)), dashed=True),
    }
    by_t = {
        "hardmax": band([row.hardmax for row in sharpness], t),
        "hardmax limit": Curve(t[large], t[large] * two_entries(t[large] * gap), dashed=True),
        "hardmax, mean": Curve(t, [row.hardmax_mean for row in sharpness]),
        "soft argmax": Curve(t, [row.soft_argmax[1] for row in sharpness]),
        "smooth max": Curve(t, [row.smooth_max[1] for row in sharpness]),
    }
    axis = "size D of queries and keys"
    scores = [
        CurvePanel("Variance of the scores", variance, axis, "variance", log_x=True, log_y=True),
        CurvePanel(f"Entropy of the weights, {config.num_keys} keys", entropies, axis, "nats", True, band="quartiles"),
    ]
    derivatives = [
        CurvePanel("Derivative of the weights by the scores", gradients, axis, "norm", True, True, "quartiles"),
        CurvePanel("Derivative by x", by_t, "sharpness t", "norm", log_x=True, log_y=True, band="quartiles"),
    ]
    return {
        "Variance and entropy with the scale 1/sqrt(D) and without it": draw_curves(
            scores, folder / "scaled-dot-scores.png"
        ),
        "Derivatives with the scale and without it, and against a sharpness t": draw_curves(
            derivatives, folder / "scaled-dot-derivatives.png"
        ),
    }


def as_table(rows: list[SizeRow]) -> str:
    """One line for each size: variances, and medians of entropy and gradient."""
    heads = ["D", "var q.k", "scaled", "k = ±q", "entropy", "scaled", "gradient", "scaled"]
    lines = ["".join(f"{head:>12}" for head in heads)]
    for row in rows:
        numbers = [row.variance, row.scaled_variance, row.dependent_variance]
        numbers += [part[1] for part in (row.entropy, row.scaled_entropy, row.gradient, row.scaled_gradient)]
        lines.append(f"{row.size:>12}" + "".join(f"{number:>12.4g}" for number in numbers))
    return "\n".join(lines)


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__)
