"""The elementwise linear recurrence against what a user would write with ``jax.lax``, forward and backward.

python benchmarks/linear_recurrence.py            # one to two minutes on 2 CPU cores
python benchmarks/linear_recurrence.py --quick    # the first case alone, few repeats, writes nothing

``limit_ms`` is the least time that the copy bandwidth measured in the same run allows, for 3 passes over the data
forward (read a and b, write h) and 5 backward (read a, h and the cotangent, write two gradients).
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Candidate, Prepared, Row, compiled, copy_ceiling, measure, parse_arguments, report
from jax import lax

from jaxseq.ops import LinearRecurrenceImplementation, linear_recurrence, linear_recurrence_reference

CASES = (
    (8, 512, 256, "float32"),
    (8, 2048, 256, "float32"),
    (1, 8192, 256, "float32"),
    (32, 512, 128, "float32"),
    (1, 2048, 32, "float32"),
    (8, 512, 256, "complex64"),
    (1, 2048, 32, "complex64"),
)
PASSES = 3 + 5


def jaxseq(a: Any, b: Any, *, implementation: LinearRecurrenceImplementation = "auto") -> Any:
    """All states from zeros; without a batch dimension too."""
    return linear_recurrence(jnp.zeros_like(a[..., 0, :]), a, b, implementation=implementation)[1]


def reference(a: Any, b: Any) -> Any:
    """All states from zeros by the plain equation."""
    return linear_recurrence_reference(jnp.zeros_like(a[..., 0, :]), a, b)[1]


def plain_scan(a: Any, b: Any) -> Any:
    """``lax.scan`` over time, with the gradient JAX gives it."""

    def step(h: Any, ab: tuple[Any, Any]) -> tuple[Any, Any]:
        h = ab[0] * h + ab[1]
        return h, h

    in_time = (jnp.moveaxis(a, 1, 0), jnp.moveaxis(b, 1, 0))
    return jnp.moveaxis(lax.scan(step, jnp.zeros_like(a[:, 0]), in_time)[1], 0, 1)


def associative_scan(a: Any, b: Any) -> Any:
    """``lax.associative_scan`` over time, with the gradient JAX gives it."""

    def after(first: tuple[Any, Any], then: tuple[Any, Any]) -> tuple[Any, Any]:
        return first[0] * then[0], first[1] * then[0] + then[1]

    return lax.associative_scan(after, (a, b), axis=1)[1]


def with_gradients(function: Callable, a: Any, b: Any, cotangent: Any) -> tuple[Any, ...]:
    """``(a, b, cotangent) -> (h, da, db)``."""
    h, pullback = jax.vjp(function, a, b)
    return h, *pullback(cotangent)


def inputs(shape: tuple[int, int, int], dtype: str) -> list[tuple[np.ndarray, ...]]:
    """Two sets of decays between 0 and 1 (times a phase), what is added, and a cotangent."""

    def one(r: np.random.Generator) -> tuple[np.ndarray, ...]:
        a, (b, cotangent) = r.uniform(size=shape), r.normal(size=(2, *shape))
        if dtype == "complex64":
            a = a * np.exp(2j * np.pi * r.uniform(size=shape))
            b, cotangent = (x + 1j * r.normal(size=shape) for x in (b, cotangent))
        return a.astype(dtype), b.astype(dtype), cotangent.astype(dtype)

    return [one(np.random.default_rng(seed)) for seed in (0, 1)]


def checked(candidate: Candidate, expected: Sequence[np.ndarray]) -> Candidate:
    """The candidate with its first result compared to ``expected``, as the harness does it, complex or real."""

    def prepare(inputs: Sequence[tuple]) -> Prepared:
        prepared = candidate.prepare(inputs)

        def check() -> float:
            pairs = zip(map(np.asarray, prepared.run(0)), expected, strict=True)
            return float(max(np.abs(got - want).max() / np.abs(want).max() for got, want in pairs))

        return replace(prepared, check=check)

    return Candidate(candidate.name, prepare)


def case(shape: tuple[int, int, int], dtype: str, repeats: int) -> list[Row]:
    """One shape, all candidates in turn; each of ours behind a heavy one, whose traces in the caches all get alike."""
    functions: dict[str, Callable] = {
        "lax.scan": plain_scan,
        "jaxseq": jaxseq,
        "lax.associative_scan": associative_scan,
        "jaxseq under vmap": jaxseq,
        **{f"jaxseq {name}": partial(jaxseq, implementation=name) for name in ("associative", "loop")},
    }
    runs = {name: partial(with_gradients, function) for name, function in functions.items()}
    runs["jaxseq under vmap"] = jax.vmap(runs["jaxseq under vmap"])
    sets = inputs(shape, dtype)
    with jax.enable_x64(True):
        wide = [x.astype(np.promote_types(dtype, "float64")) for x in sets[0]]
        expected = [np.asarray(x) for x in jax.jit(partial(with_gradients, reference))(*wide)]
    candidates = [checked(compiled(name, run), expected) for name, run in runs.items()]
    limit = PASSES * sets[0][0].nbytes / copy_ceiling()
    sizes = {**dict(zip("BTF", shape, strict=True)), "dtype": dtype, "limit_ms": round(1e3 * limit, 3)}
    return measure(sizes, candidates, sets, reference=None, repeats=repeats)


def main() -> None:
    """Run the cases; the JSON lines go to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first case alone, few repeats, nothing written")
    quick = parse_arguments(parser).quick
    print(f"copy bandwidth {copy_ceiling() / 1e9:.1f} GB/s")
    rows = []
    for B, T, F, dtype in CASES[: 1 if quick else None]:
        rows += case((B, T, F), dtype, 3 if quick else 15)
    report("linear_recurrence", rows, baseline="jaxseq", write=not quick)


if __name__ == "__main__":
    main()
