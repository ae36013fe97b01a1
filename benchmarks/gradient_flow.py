"""Seconds and peak memory of ``jaxseq.analysis`` for F = 512 features, T = 1024 positions, and errors of its estimates.

    python benchmarks/gradient_flow.py             # elman, gru, lstm: about 6 minutes on 2 CPU cores
    python benchmarks/gradient_flow.py --core gru  # one of them
    python benchmarks/gradient_flow.py --errors    # carry_flow with random vectors against exact, F = 256, T = 256

Each function runs in a process of its own: compiled, then timed, the fastest of three runs. The peak is that of the
whole process; what JAX, the parameters and the inputs take is stated beside it.
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxseq.analysis import carry_flow, core_step, loss_flow, lyapunov_exponents, receptive_field
from jaxseq.cores import make_core

CORES = ("elman", "gru", "lstm")

CALLS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "carry_flow": carry_flow,
    "carry_flow, singular_values=0": lambda core, carry, xs: carry_flow(core, carry, xs, singular_values=0),
    "loss_flow": lambda core, carry, xs: loss_flow(core, carry, xs, lambda ys: ys[-1].sum()),
    "receptive_field": lambda core, carry, xs: receptive_field(lambda xs: core(carry, xs)[1], xs),
    "lyapunov_exponents, count=8": lambda core, carry, xs: lyapunov_exponents(core_step(core), carry, xs, count=8),
}


def prepared(name: str, features: int, steps: int) -> tuple[Any, Any, Any, Any]:
    """A core, its parameters, its carry and random inputs."""
    core = make_core(name, features)
    carry, xs = core.initial_carry(()), jax.random.normal(jax.random.key(1), (steps, features))
    return core, jax.block_until_ready(core.init(jax.random.key(0), carry, xs[:2])), carry, xs


def measure(name: str, call: str) -> None:
    """Prints one row."""
    core, variables, carry, xs = prepared(name, 512, 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    run = jax.jit(lambda variables: CALLS[call](partial(core.apply, variables), carry, xs))
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(run(variables))
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"| {name} | {call} | {min(seconds[1:]):.1f} | {seconds[0]:.1f} | {peak:.2f} | {before:.2f} |", flush=True)


def errors() -> None:
    """Prints the largest relative errors over the lags of norms and singular values."""
    lags = [2**i for i in range(8)]
    for name in CORES:
        core, variables, carry, xs = prepared(name, 256, 256)

        def flows(variables: Any, core: Any = core, carry: Any = carry, xs: Any = xs) -> list:
            options: list[dict] = [{"probes": 4096}, {}]
            flow = partial(carry_flow, partial(core.apply, variables), carry, xs, lags=lags, singular_values=4)
            return [flow(**o) for o in options]

        exact, estimate = jax.jit(flows)(variables)
        norm = np.abs(estimate.norms / exact.norms - 1).max()
        first, *_, fourth = np.asarray(jnp.abs(estimate.singular_values / exact.singular_values - 1).max(0))
        print(f"{name}: norm {norm:.1%}, first singular value {first:.1%}, fourth {fourth:.1%}", flush=True)


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--errors", action="store_true", help="print errors instead of times")
    parser.add_argument("--core", choices=CORES, help="this core alone; default: all")
    parser.add_argument("--one", nargs=2, metavar=("CORE", "CALL"), help="one row, in this process")
    arguments = parser.parse_args()
    if arguments.errors:
        errors()
    elif arguments.one:
        measure(*arguments.one)
    else:
        print("| core | call | s | s with compilation | peak GB | GB before |\n|---|---|---|---|---|---|", flush=True)
        for name in [arguments.core] if arguments.core else CORES:
            for call in CALLS:
                subprocess.run([sys.executable, __file__, "--one", name, call], check=True)


if __name__ == "__main__":
    main()
