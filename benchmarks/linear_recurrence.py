"""The implementations of the elementwise linear recurrence against each other, forward and backward.

python benchmarks/linear_recurrence.py            # about half a minute on 2 CPU cores
python benchmarks/linear_recurrence.py --quick    # the first case alone, few repeats, writes nothing
"""

import argparse
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, compiled, measure, report

from jaxseq.ops import linear_recurrence
from jaxseq.ops.linear_recurrence import IMPLEMENTATIONS

CASES = ((8, 512, 256), (8, 2048, 256), (1, 8192, 256), (32, 512, 128), (1, 2048, 32))


def with_gradients(a: Any, b: Any, cotangent: Any, *, implementation: str) -> tuple[Any, ...]:
    """``(a, b, cotangent) -> (h, da, db)``."""

    def run(a: Any, b: Any) -> Any:
        state = jnp.zeros((a.shape[0], a.shape[-1]), a.dtype)
        return linear_recurrence(a, b, state, implementation=implementation)[1]

    h, pullback = jax.vjp(run, a, b)
    return h, *pullback(cotangent)


def inputs(shape: tuple[int, int, int]) -> list[tuple[np.ndarray, ...]]:
    """Two sets of decays between 0 and 1, what is added, and a cotangent."""
    sets = (np.random.default_rng(seed) for seed in (0, 1))
    return [(r.uniform(size=shape).astype("f"), *r.normal(size=(2, *shape)).astype("f")) for r in sets]


def case(shape: tuple[int, int, int], repeats: int) -> list[Row]:
    """One shape, all implementations in turn."""
    candidates = [compiled(name, partial(with_gradients, implementation=name)) for name in IMPLEMENTATIONS]
    reference = partial(with_gradients, implementation="sequential")
    sizes = dict(zip("BTF", shape, strict=True))
    return measure(sizes, candidates, inputs(shape), reference=reference, repeats=repeats)


def main() -> None:
    """Run the cases; the JSON lines go to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the first case alone, few repeats, nothing written")
    quick = parser.parse_args().quick
    rows = [row for shape in CASES[: 1 if quick else None] for row in case(shape, 3 if quick else 9)]
    report("linear_recurrence", rows, baseline="sequential", write=not quick)


if __name__ == "__main__":
    main()
