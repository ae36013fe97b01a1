"""The one timing harness: compile apart, warm up, interleave, check against float64, then print a number.

A benchmark names a case (a flat dict of what was run), some candidates that all compute the same thing, at
least two input sets, and a reference::

    rows = measure(
        {"T": 512},
        [compiled("jaxseq", f), compiled("jax.nn", g), plain("torch", h, to_torch)],
        inputs,                      # a list of argument tuples of numpy arrays
        reference=r,                 # runs in float64; outputs and gradients of all must agree with it
    )
    report("attention", rows, baseline="jaxseq")

`matmul_ceiling` and `copy_ceiling` measure what the device can do at most, to say how near a figure is to it.

What fails (is not installed, does not compile, runs out of memory, misses the reference) is a row with its
error. Times are seconds of wall clock, memory is bytes. Rows of one case compare; absolute figures drift.
"""

import argparse
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optional_tyro  # noqa: F401  (before jaxseq.training)

from jaxseq.training import check_repeated_flags

Row = dict[str, Any]
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Prepared:
    """A candidate ready to be timed: ``run(i)`` works on input set i and returns when the result is there.

    ``check()`` gives the error against a reference of the candidate's own, where it has one, and judges it itself.
    """

    run: Callable[[int], Any]
    facts: Row
    check: Callable[[], float] | None = None


@dataclass(frozen=True)
class Candidate:
    """A name, and what makes it ready: ``prepare(inputs) -> Prepared``. If it raises, the row says why."""

    name: str
    prepare: Callable[[Sequence[tuple]], Prepared]


def parse_arguments(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The parsed command line; exits where a flag is abbreviated or given twice (argparse would take the last)."""
    words = sys.argv[1:] if arguments is None else arguments
    parser.allow_abbrev = False
    try:
        check_repeated_flags(words)
    except ValueError as error:
        parser.error(str(error))
    return parser.parse_args(words)


def compiled(name: str, function: Callable[..., Any]) -> Candidate:
    """A JAX function, lowered and compiled ahead of time; its row holds compile time and memory."""

    def prepare(inputs: Sequence[tuple]) -> Prepared:
        on_device = [jax.device_put(args) for args in inputs]
        start = time.perf_counter()
        executable = jax.jit(function).lower(*on_device[0]).compile()
        seconds = time.perf_counter() - start
        memory = executable.memory_analysis()
        facts = {"compile_s": seconds, "temp_bytes": getattr(memory, "temp_size_in_bytes", None)}
        return Prepared(lambda i: jax.block_until_ready(executable(*on_device[i])), facts)

    return Candidate(name, prepare)


def plain(name: str, function: Callable[..., Any], convert: Callable[[np.ndarray], Any] = lambda x: x) -> Candidate:
    """Any Python callable that is done when it returns (torch, numpy); ``convert`` is put on every input."""

    def prepare(inputs: Sequence[tuple]) -> Prepared:
        converted = [jax.tree.map(convert, args) for args in inputs]
        return Prepared(lambda i: function(*converted[i]), {})

    return Candidate(name, prepare)


def unavailable(name: str, reason: str) -> Candidate:
    """A candidate that cannot run here (a peer that is not installed): its row holds the reason."""

    def prepare(inputs: Sequence[tuple]) -> Prepared:
        raise RuntimeError(reason)

    return Candidate(name, prepare)


def measure(
    case: Row,
    candidates: Sequence[Candidate],
    inputs: Sequence[tuple],
    *,
    reference: Callable[..., Any] | None,
    tolerance: float = 1e-3,
    warmup: int = 2,
    repeats: int = 9,
    budget_s: float | None = None,
) -> list[Row]:
    """Time the candidates on one case, in turn, over all input sets; one row each.

    ``reference`` gets float64 inputs and returns the same tree as the candidates; the error of a leaf is
    its largest absolute deviation over the reference's largest absolute value. ``None`` leaves the check
    to the candidates; where they have none either, the row says so (``"error_vs_reference": null``).
    ``budget_s`` makes the repeats fewer, 3 at least, where they would take longer in all.

    Raises:
        ValueError: fewer than two input sets.
    """
    if len(inputs) < 2:
        raise ValueError(f"a benchmark needs at least two input sets, got {len(inputs)}")
    expected = None if reference is None else in_float64(reference, inputs[0])
    rows: list[Row] = []
    ready: list[tuple[Row, Prepared, list[float]]] = []
    for candidate in candidates:
        row = {"name": candidate.name, **case, **environment()}
        rows.append(row)
        try:
            prepared = candidate.prepare(inputs)
            row |= prepared.facts
            if expected is not None:
                row["error_vs_reference"] = judged(deviation(prepared.run(0), expected), tolerance)
            else:
                row["error_vs_reference"] = prepared.check() if prepared.check else None
            row |= prepared.facts  # a check may add to them
            for i in range(warmup):
                prepared.run(i % len(inputs))
        except Exception as failure:  # a candidate may fail in any way; the others are still measured
            row["error"] = _in_one_line(failure)
        else:
            ready.append((row, prepared, []))
    if budget_s is not None:
        _interleave(ready, len(inputs), 1)
        round_s = sum(seconds.pop() for _, _, seconds in ready if seconds)
        repeats = min(repeats, max(3, int(budget_s / max(round_s, 1e-9))))
    _interleave(ready, len(inputs), repeats)
    for row, _, seconds in ready:
        if "error" in row:
            continue
        low, middle, high = np.percentile(seconds, [25, 50, 75])
        row |= {
            "median_s": float(middle),
            "iqr_s": float(high - low),
            "best_s": min(seconds),
            "repeats": repeats,
        }
    return rows


def _interleave(ready: Sequence[tuple[Row, Prepared, list[float]]], num_inputs: int, repeats: int) -> None:
    """One timing of each candidate per round, the first place going round, so that drift hits all alike."""
    for repeat in range(repeats):
        for turn in range(len(ready)):
            row, prepared, seconds = ready[(repeat + turn) % len(ready)]
            if "error" in row:
                continue
            start = time.perf_counter()
            try:
                prepared.run(repeat % num_inputs)
            except Exception as failure:  # memory may run out beside the others' arrays
                row["error"] = _in_one_line(failure)
            seconds.append(time.perf_counter() - start)


def judged(error: float, tolerance: float) -> float:
    """The error, if it is tolerable (NaN is not).

    Raises:
      ArithmeticError: it is not.
    """
    if not error <= tolerance:
        raise ArithmeticError(f"misses the reference: error {error:.2g} > {tolerance:.2g}")
    return error


def _in_one_line(failure: Exception) -> str:
    """The error as a row holds it; "out of memory" whatever an allocator calls it."""
    text = str(failure).splitlines()[0] if str(failure) else ""
    if isinstance(failure, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        return f"out of memory: {text.removeprefix('out of memory: ')}"
    return f"{type(failure).__name__}: {text}"


def in_float64(function: Callable[..., Any], args: tuple) -> list[np.ndarray]:
    """The leaves that a JAX function gives for these arguments in double precision."""

    def widen(x: Any) -> Any:
        x = np.asarray(x)
        return x.astype(np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x

    with jax.enable_x64(True):
        out = jax.jit(function)(*jax.tree.map(widen, args))
        return [np.asarray(leaf) for leaf in jax.tree.leaves(out)]


def deviation(got: Any, expected: list[np.ndarray], floor: float = 0.0) -> float:
    """The largest error of a leaf: its largest absolute deviation over the expected leaf's largest number.

    That number is at least ``floor`` times the largest of all leaves (a gradient that vanishes in theory).
    """
    leaves = [np.asarray(leaf).astype(np.float64) for leaf in jax.tree.leaves(got)]
    if [leaf.shape for leaf in leaves] != [leaf.shape for leaf in expected]:
        raise ValueError(f"returns shapes {[x.shape for x in leaves]}, the reference {[x.shape for x in expected]}")
    sizes = [max(np.max(np.abs(b), initial=0.0), 1e-30) for b in expected]
    least = floor * max(sizes)
    pairs = zip(leaves, expected, sizes, strict=True)
    return float(max(np.max(np.abs(a - b), initial=0.0) / max(size, least) for a, b, size in pairs))


@functools.cache
def matmul_ceiling(dtype: str = "float32") -> float:
    """FLOP/s of the fastest of a few matrix products, square and tall (2 m n k a product), once a process.

    Compiled by XLA, on all cores, at the precision that XLA takes by default (TF32 for float32 on some GPUs).
    """
    size = 2048 if jax.default_backend() == "cpu" else 8192
    shapes = [(size, size, size), (4 * size, size // 4, size // 4), (2 * size, size // 4, size)]
    rates = []
    for m, k, n in shapes:
        keys = jax.random.split(jax.random.key(0))
        a = jax.random.normal(keys[0], (m, k), dtype)
        b = jax.random.normal(keys[1], (k, n), dtype)
        product = jax.jit(jnp.matmul).lower(a, b).compile()
        rates.append(2 * m * n * k / _best(lambda: jax.block_until_ready(product(a, b))))  # noqa: B023
    return max(rates)


@functools.cache
def copy_ceiling(dtype: str = "float32") -> float:
    """Bytes/s that a large elementwise pass moves between two buffers of 1 GiB, once a process.

    Every byte of the source is counted as read once and every byte of the target as written once; what the
    hardware reads of the target before it writes there is not counted. Both buffers are there already (the target
    is donated), so the system hands out no fresh pages.
    """
    elements = 2**30 // jnp.dtype(dtype).itemsize
    buffers = [jnp.ones(elements, dtype), jnp.ones(elements, dtype)]
    move = jax.jit(lambda source, target: -source, donate_argnums=1, keep_unused=True).lower(*buffers).compile()

    def turn() -> None:
        buffers[:] = jax.block_until_ready(move(*buffers)), buffers[0]

    return 2 * buffers[0].nbytes / _best(turn)


def _best(run: Callable[[], Any], repeats: int = 7) -> float:
    """Seconds of the fastest run, after two to warm up."""
    seconds = []
    for _ in range(2 + repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds[2:])


def device_name() -> str:
    """The first device's kind as a file name: ``cpu2`` (two cores), ``nvidia-h200``."""
    kind = jax.devices()[0].device_kind.lower().replace(" ", "-")
    return f"{kind}{len(os.sched_getaffinity(0))}" if kind == "cpu" else kind


def environment() -> Row:
    """The versions, flags and device that a figure depends on besides the code."""
    versions: dict[str, str | None] = {}
    for package in ("jax", "jaxlib", "flax", "numpy", "torch", "dm-haiku", "equinox"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None
    return {
        "device": device_name(),
        "processor": _processor(),
        "python": platform.python_version(),
        "versions": versions,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if "model name" in line] if info.exists() else []
    return names[0].split(":")[1].strip() if names else platform.machine()


def report(benchmark: str, rows: Sequence[Row], *, baseline: str, write: bool = True) -> None:
    """Print a table and write the rows as JSON lines.

    The last column is a row's time over ``baseline``'s (over the first row's in a case without it): 3 means
    that the baseline is three times as fast. The file is ``benchmarks/results/<benchmark>-<device>.jsonl``,
    written anew each time.
    """
    hidden = {*environment(), "compile_s", "temp_bytes", "median_s", "iqr_s", "best_s", "repeats"}
    hidden |= {"name", "error", "error_vs_reference", "gflops"}
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(" ".join(f"{k}={v}" for k, v in row.items() if k not in hidden), []).append(row)
    print(f"{benchmark} on {device_name()} ({_processor()}), jax {metadata.version('jax')}")
    for case, members in cases.items():
        against = baseline if any(row["name"] == baseline for row in members) else members[0]["name"]
        base = next((r["median_s"] for r in members if r["name"] == against and "median_s" in r), None)
        print(f"\n{case}\n  {'':24}{'ms':>10}{'IQR':>8}{'compile s':>11}{'temp MB':>9}{f'/ {against}':>12}")
        for row in members:
            print("  " + _line(row, base))
    if not write:
        return
    path = RESULTS / f"{benchmark}-{device_name()}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"\nwritten: {path.relative_to(RESULTS.parent.parent)}")


def _line(row: Row, base: float | None) -> str:
    if "error" in row:
        return f"{row['name']:24}{row['error']}"
    compile_s = f"{row['compile_s']:.2f}" if row.get("compile_s") is not None else "-"
    memory = f"{row['temp_bytes'] / 1e6:.1f}" if row.get("temp_bytes") is not None else "-"
    ratio = f"{row['median_s'] / base:.2f}" if base else "-"
    times = f"{1e3 * row['median_s']:10.2f}{1e3 * row['iqr_s']:8.2f}"
    return f"{row['name']:24}{times}{compile_s:>11}{memory:>9}{ratio:>12}"
