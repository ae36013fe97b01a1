"""Mixers with a matrix state, by chunks and token by token, forward and backward.

python benchmarks/linear_attention.py            # about two minutes on 2 CPU cores
python benchmarks/linear_attention.py --quick    # one small case each, few repeats, writes nothing
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Row, compiled, matmul_ceiling, measure, parse_arguments, report

from jaxseq.ops import MLSTMState, delta_rule, linear_attention, mlstm

HEADS, SIZE = 4, 64
CASES = (
    ("head decay", 4, 2048),
    ("head decay", 16, 512),
    ("head decay", 1, 8192),
    ("channel decay", 4, 2048),
    ("mlstm", 4, 2048),
    ("delta", 4, 2048),
)


def linear(query: Any, key: Any, value: Any, gate: Any, other: Any, **options: Any) -> Any:
    """Linear attention; the gate is by head or by channel."""
    return linear_attention(fresh(query, value), query, key, value, jax.nn.log_sigmoid(gate + 2), **options)


def memory(query: Any, key: Any, value: Any, gate: Any, other: Any, **options: Any) -> Any:
    """The mLSTM."""
    C = fresh(query, value)
    state = MLSTMState(C, C[..., 0], C[..., 0, 0])
    return mlstm(state, query, key, value, other, jax.nn.log_sigmoid(gate + 2), **options)


def delta(query: Any, key: Any, value: Any, gate: Any, other: Any, **options: Any) -> Any:
    """The gated delta rule."""
    key = key / jnp.sqrt((key**2).sum(-1, keepdims=True))
    log_decay, beta = jax.nn.log_sigmoid(gate + 2), jax.nn.sigmoid(other)
    return delta_rule(fresh(query, value), query, key, value, beta, log_decay, **options)


MIXERS: dict[str, Callable] = {"head decay": linear, "channel decay": linear, "mlstm": memory, "delta": delta}


def fresh(query: Any, value: Any) -> Any:
    """A state of zeros."""
    return jnp.zeros((*query.shape[:-3], HEADS, query.shape[-1], value.shape[-1]), query.dtype)


def with_gradients(cotangent: Any, *args: Any, run: Callable) -> tuple[Any, ...]:
    """``(cotangent, arguments) -> (outputs, gradients)``."""
    out, pullback = jax.vjp(lambda *args: run(*args)[1], *args)
    return out, *pullback(cotangent)


def inputs(name: str, batch: int, time: int) -> list[tuple[np.ndarray, ...]]:
    """Two sets: a cotangent, queries, keys, values, a gate for decays, another gate."""
    shape, by_head = (batch, time, HEADS, SIZE), (batch, time, HEADS)
    gate = shape if name == "channel decay" else by_head
    sets: list[tuple[np.ndarray, ...]] = []
    for seed in (0, 1):
        normal = np.random.default_rng(seed).normal
        cotangent, query, key, value = (normal(size=shape).astype("f") for _ in range(4))
        sets.append((cotangent, query / 8, key, value, normal(size=gate).astype("f"), normal(size=by_head).astype("f")))
    return sets


def products(name: str, time: int, batch: int) -> float:
    """Floating point operations of the step form's two products, forward and backward: what no form can save."""
    return 3 * 4 * batch * time * HEADS * SIZE * SIZE * (1.5 if name == "delta" else 1)


def case(name: str, batch: int, time: int, repeats: int, ceiling: float) -> list[Row]:
    """One mixer at one size: by chunks, under vmap, token by token."""
    forms = {form: partial(MIXERS[name], implementation=form) for form in ("chunkwise", "reference")}
    runs = {
        "chunkwise": forms["chunkwise"],
        "under vmap": jax.vmap(forms["chunkwise"]),
        "reference": forms["reference"],
    }
    facts = {"flops": products(name, time, batch), "matmul_flops_per_s": ceiling}
    rows = measure(
        {"mixer": name, "B": batch, "T": time, "N": HEADS, "H": SIZE, **facts},
        [compiled(run, partial(with_gradients, run=function)) for run, function in runs.items()],
        inputs(name, batch, time),
        reference=partial(with_gradients, run=forms["reference"]),
        repeats=repeats,
    )
    for row in rows:
        if "median_s" in row:
            share = facts["flops"] / row["median_s"] / ceiling
            print(
                f"{name:14} T={time:5} {row['name']:11} {1e3 * row['median_s']:8.1f} ms, {share:.1%} of the matmul rate"
            )
    return rows


def main() -> None:
    """Run the cases; the JSON lines go to benchmarks/results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small case each, few repeats, nothing written")
    quick = parse_arguments(parser).quick
    cases = tuple((name, 1, 256) for name in MIXERS) if quick else CASES
    ceiling = matmul_ceiling()
    rows = [row for sizes in cases for row in case(*sizes, 3 if quick else 7, ceiling)]
    report("linear_attention", rows, baseline="chunkwise", write=not quick)


if __name__ == "__main__":
    main()
