"""The ops on this device: values and gradients against the plain equations in float64, and times.

    python benchmarks/accelerator_ops.py                  # every op, and cuDNN's forms where there is a CUDA device
    python benchmarks/accelerator_ops.py --part cudnn
    python benchmarks/accelerator_ops.py --quick          # small shapes, few cases

Each row is an implementation of an op in one dtype: its error, the largest of outputs and all gradients, relative to
the largest number of each (``error_vs_reference``), and the time of both. float32 runs at the precision ``highest``
unless the row says ``default``, where XLA may round products to TF32. ``used`` is what ``auto`` chose. The exit code
is 1 if an implementation fails or misses the reference.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import RESULTS, Row, compiled, device_name, measure, parse_arguments, report
from jax.tree_util import Partial

from jaxseq import ops
from jaxseq.ops import cells, masks, positions
from jaxseq.precision import cast_floating

TOLERANCES = {"highest": 1e-3, "default": 2e-2, "bfloat16": 4e-2}


@dataclass(frozen=True)
class Sizes:
    """Of the inputs: batch, time, features, heads, head size."""

    B: int
    T: int
    F: int
    N: int
    H: int


FULL, QUICK = Sizes(4, 256, 128, 4, 64), Sizes(2, 20, 8, 2, 8)
CUDNN = Sizes(8, 1024, 512, 8, 64)


@dataclass(frozen=True)
class Case:
    """``run(implementation, *arrays)`` gives outputs; the arrays have these shapes and receive gradients."""

    op: str
    variant: str
    run: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    implementations: tuple[str, ...]
    dtype: str = "float32"
    precision: str = "highest"

    @property
    def tolerance(self) -> float:
        """Of the error of outputs and gradients."""
        return TOLERANCES["bfloat16" if self.dtype == "bfloat16" else self.precision]


def documents(sizes: Sizes) -> jax.Array:
    """Two documents and padding at the end, ``[B, T]``."""
    T = sizes.T
    ids = np.repeat([1, 2, 0], [T // 3, T - T // 3 - T // 8, T // 8])
    return jnp.asarray(np.broadcast_to(ids, (sizes.B, T)), jnp.int32)


def lstm(ids: Any, implementation: str, xs: Any, kernel: Any, bias: Any, R: Any) -> Any:
    """An LSTM with its projection, from zeros."""
    zeros = jnp.zeros((*xs.shape[:-2], R.shape[0] * R.shape[1]), xs.dtype)
    state = cells.LSTMState(zeros, zeros)
    if ids is None and implementation in ("auto", "cudnn"):
        implementation = ops.lstm_implementation(state, xs, R, implementation=implementation)  # type: ignore[arg-type]
    if implementation == "cudnn":
        return ops.cudnn_lstm(state, xs, kernel, bias, R)[1]
    options: Any = {"segment_ids": ids, "implementation": implementation}
    return ops.recurrence_with_projection(cells.lstm, state, xs, kernel, bias, R, **options)[1]


def gru(ids: Any, implementation: str, xs: Any, kernel: Any, bias: Any, R: Any, own: Any) -> Any:
    """A GRU with its projection, from zeros."""
    state = cells.Hidden(jnp.zeros((*xs.shape[:-2], R.shape[0] * R.shape[1]), xs.dtype))
    options: Any = {"segment_ids": ids, "implementation": implementation}
    return ops.recurrence_with_projection(Partial(cells.gru, own), state, xs, kernel, bias, R, **options)[1]


def elementwise(ids: Any, implementation: Any, a: Any, b: Any) -> Any:
    """``h_t = a_t h_{t-1} + b_t`` with a decay between 0 and 1."""
    a = jax.nn.sigmoid(a + 2)
    return ops.linear_recurrence(jnp.zeros_like(b[..., 0, :]), a, b, segment_ids=ids, implementation=implementation)[1]


def rotating(ids: Any, implementation: Any, modulus: Any, angle: Any, real: Any, imaginary: Any) -> Any:
    """The complex linear recurrence; the result's real and imaginary parts."""
    a = jax.nn.sigmoid(modulus + 2) * jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
    b = jax.lax.complex(real, imaginary)
    options: Any = {"segment_ids": ids, "implementation": implementation}
    ys = ops.linear_recurrence(jnp.zeros_like(b[..., 0, :]), a, b, **options)[1]
    return jnp.concatenate([ys.real, ys.imag], -1)


def matrix_state(op: str, ids: Any, implementation: Any, q: Any, k: Any, v: Any, gate: Any, other: Any) -> Any:
    """linear_attention (a decay a head or a channel), delta_rule or mlstm."""
    options: Any = {"segment_ids": ids, "implementation": implementation}
    C, decay = jnp.zeros((*q.shape[:-3], *q.shape[-2:], v.shape[-1]), q.dtype), jax.nn.log_sigmoid(gate + 2)
    k = k / math.sqrt(k.shape[-1])
    if op == "linear_attention":
        return ops.linear_attention(C, q, k, v, decay, **options)[1] + 0 * other[..., None]
    if op == "mlstm":
        return ops.mlstm(ops.MLSTMState(C, C[..., 0], C[..., 0, 0]), q, k, v, other, decay, **options)[1]
    k = k / jnp.sqrt((k**2).sum(-1, keepdims=True))
    return ops.delta_rule(C, q, k, v, jax.nn.sigmoid(other), decay, **options)[1]


def convolution(ids: Any, implementation: Any, xs: Any, kernel: Any) -> Any:
    """A causal convolution, from zeros."""
    state = jnp.zeros((*xs.shape[:-2], kernel.shape[0] - 1, xs.shape[-1]), xs.dtype)
    return ops.causal_convolution(state, xs, kernel, segment_ids=ids, implementation=implementation)[1]


def attend(mask: Any, options: dict[str, Any], implementation: Any, q: Any, k: Any, v: Any) -> Any:
    """Masked attention; "vmap": ``auto``, for one sequence, mapped over the batch."""
    if implementation == "vmap":
        return jax.vmap(partial(ops.attention, mask=mask, **options))(q, k, v)
    return ops.attention(q, k, v, mask=mask, implementation=implementation, **options)


def op_cases(sizes: Sizes) -> list[Case]:
    """Every op but cuDNN's forms."""
    B, T, F, N, H = sizes.B, sizes.T, sizes.F, sizes.N, sizes.H
    ids, sequence = documents(sizes), (B, T, F)
    heads, by_head = (B, T, N, H), (B, T, N)
    found = []
    for variant, which in (("", None), ("documents", ids)):
        gates: tuple = (sequence, (F, 4 * F), (4 * F,), (N, F // N, 4, F // N))
        found.append(Case("recurrence", f"lstm, {N} heads {variant}".strip(), partial(lstm, which), gates, ("fused",)))
        gates = (sequence, (F, 3 * F), (3 * F,), (1, F, 3, F), (F,))
        found.append(Case("recurrence", f"gru {variant}".strip(), partial(gru, which), gates, ("fused",)))
        scans = ("auto", "associative")
        found.append(Case("linear_recurrence", f"real {variant}", partial(elementwise, which), (sequence,) * 2, scans))
    found.append(Case("linear_recurrence", "complex", partial(rotating, None), (sequence,) * 4, ("associative",)))
    for op, variant, gate in (
        ("linear_attention", "decay a head", by_head),
        ("linear_attention", "decay a channel", heads),
        ("delta_rule", "decay a head", by_head),
        ("mlstm", "", by_head),
    ):
        shapes = (heads, heads, heads, gate, by_head)
        found.append(Case(op, variant, partial(matrix_state, op, ids), shapes, ("chunkwise",)))
    for variant, kernel in (("depthwise", (4, F)), ("full", (4, F, F))):
        run = partial(convolution, ids)
        found.append(Case("causal_convolution", variant, run, (sequence, kernel), ("direct",)))
    return found + attention_cases(sizes)


def attention_cases(sizes: Sizes) -> list[Case]:
    """Attention by tiles under masks, biases and caps, and what "auto" takes in both dtypes."""
    B, T, N, H = sizes.B, sizes.T, sizes.N, sizes.H
    heads = ((B, T, N, H),) * 3
    ids = documents(sizes)
    variants: dict[str, tuple[Any, dict[str, Any]]] = {
        "causal": (masks.causal(), {}),
        "window": (masks.sliding_window(T // 4), {}),
        "documents": (masks.causal() & masks.segments(ids, ids), {}),
        "alibi, soft cap": (masks.causal(), {"bias": positions.alibi(jnp.linspace(0.1, 0.5, N)), "soft_cap": 5.0}),
    }
    found = []
    for dtype in ("float32", "bfloat16"):
        for variant, (mask, options) in variants.items():
            run = partial(attend, mask, options)
            found.append(Case("attention", variant, run, heads, ("tiles", "auto"), dtype))
    return found


def cudnn_cases(sizes: Sizes) -> list[Case]:
    """Calls that cuDNN can compute: an LSTM in float32, attention in bfloat16; "auto" must take it."""
    B, T, F, N, H = sizes.B, sizes.T, sizes.F, sizes.N, sizes.H
    gates = ((B, T // 4, F), (F, 4 * F), (4 * F,), (1, F, 4, F))
    found = [
        Case("lstm", "", partial(lstm, None), gates, ("cudnn", "fused", "auto"), precision=precision)
        for precision in ("highest", "default")
    ]
    heads, lengths = (B, T, N, H), jnp.asarray(np.linspace(T // 2, T, B), jnp.int32)
    variants: dict[str, tuple[Any, tuple[int, ...]]] = {
        "causal": (masks.causal(), heads),
        "window": (masks.sliding_window(T // 4), heads),
        "lengths": (masks.prefix(lengths), heads),
        "causal, 2 query heads a key head": (masks.causal(), (B, T, N // 2, H)),
    }
    for variant, (mask, keys) in variants.items():
        others = ("tiles", "auto") if variant == "lengths" else ("tiles", "auto", "vmap")  # vmap: one length for all
        run = partial(attend, mask, {})
        found.append(Case("attention", variant, run, (heads, keys, keys), ("cudnn", *others), "bfloat16"))
    return found


def with_gradients(run: Callable[..., Any], dtype: str | None, cotangent: Any, *arrays: Any) -> tuple[Any, ...]:
    """Outputs, and the gradients of all arrays; computed in ``dtype`` if it is given."""
    if dtype is not None:
        arrays = cast_floating(arrays, jnp.dtype(dtype))
    out, pullback = jax.vjp(run, *arrays)
    return out, *pullback(cotangent.astype(out.dtype))


def inputs(case: Case) -> list[tuple[np.ndarray, ...]]:
    """Two sets of a cotangent and arrays, with the numbers that ``case.dtype`` can hold; weights are scaled down."""
    out = jax.eval_shape(partial(case.run, "reference"), *(jax.ShapeDtypeStruct(s, "float32") for s in case.shapes))

    def one(seed: int) -> tuple[np.ndarray, ...]:
        rng = np.random.default_rng(seed)
        arrays = []
        for shape in (out.shape, *case.shapes):
            weight = shape[:2] != case.shapes[0][:2]  # all others lead with batch and time
            scale = 1 / math.sqrt(math.prod(shape[:-1])) if weight else 1.0
            rounded = jnp.asarray(scale * rng.normal(size=shape), case.dtype)
            arrays.append(np.asarray(rounded.astype("float32")))
        return tuple(arrays)

    return [one(0), one(1)]


def run_case(case: Case, repeats: int) -> list[Row]:
    """Check and time the implementations of a case."""
    sets = inputs(case)
    candidates, used = [], {}
    for implementation in case.implementations:
        run = partial(with_gradients, partial(case.run, implementation), case.dtype)

        def at_precision(*arrays: Any, run: Callable = run) -> Any:
            with jax.default_matmul_precision("highest" if case.precision == "highest" else "default"):
                return run(*arrays)

        candidates.append(compiled(implementation, at_precision))
        if implementation in ("auto", "vmap"):
            used[implementation] = ops.used_implementations(at_precision, *sets[0])
    facts = {"op": case.op, "variant": case.variant, "dtype": case.dtype, "precision": case.precision}
    facts["shape"] = "x".join(map(str, case.shapes[0]))
    reference = partial(with_gradients, partial(case.run, "reference"), None)
    rows = measure(facts, candidates, sets, reference=reference, tolerance=case.tolerance, repeats=repeats)
    for row in rows:
        if row["name"] in used:
            row["used"] = {op: sorted(names) for op, names in used[row["name"]].items()}
    return rows


def check_choice(rows: Sequence[Row]) -> None:
    """Mark rows of "auto" and "vmap" that did not take cuDNN."""
    for row in rows:
        if "used" in row and "error" not in row and not any("cudnn" in names for names in row["used"].values()):
            row["error"] = f"auto took {row['used']} instead of cuDNN"


def main(arguments: Sequence[str] | None = None) -> None:
    """Check, time, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("ops", "cudnn"), help="one part alone")
    parser.add_argument("--quick", action="store_true", help="small shapes and few cases; writes with --out alone")
    parser.add_argument("--out", type=Path, help="the JSON lines; by default a file of benchmarks/results")
    options = parse_arguments(parser, arguments)
    cuda = jax.default_backend() == "gpu"
    if options.part == "cudnn" and not cuda:
        sys.exit(f"error: cuDNN needs a CUDA device, not {device_name()}")
    cases = {"ops": op_cases(QUICK if options.quick else FULL)[:: 5 if options.quick else 1]}
    if cuda:
        cases["cudnn"] = cudnn_cases(FULL if options.quick else CUDNN)
    out = options.out
    if out is None and not options.quick:
        out = RESULTS / f"accelerator_{options.part or 'ops'}-{device_name()}.jsonl"
    rows: list[Row] = []
    for part in (options.part,) if options.part else tuple(cases):
        for case in cases[part]:
            found = [row | {"part": part} for row in run_case(case, 3 if options.quick else 9)]
            if part == "cudnn":
                check_choice(found)
            rows += found
            if out:  # what is there counts if the time runs out
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = [{key: value for key, value in row.items() if key != "used"} for row in rows]
    report("accelerator_ops", shown, baseline="auto", write=False)
    if out:
        print(f"\nwritten: {out}")
    failed = [row for row in rows if "error" in row]
    if failed:
        sys.exit(f"{len(failed)} of {len(rows)} failed, the first: {failed[0]['op']} {failed[0]['name']}")


if __name__ == "__main__":
    main()
