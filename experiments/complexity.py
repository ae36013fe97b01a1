"""Measure the complexity table of "Attention is all you need" (Vaswani et al. 2017, table 1) and set it beside theory.

    python -m jaxseq analyze complexity --run runs/complexity

For each layer type: FLOPs, counted in the program; the longest chain of dependent operations; the maximum path length,
the number of layers or steps until the Jacobian from the first to the last position is not zero; temporary memory; wall
time. Exponents in n (length) and d (width) are least squares of logarithms over the upper half of the sizes. FLOPs and
path lengths are checked against formulas. Nothing is trained. docs/complexity.md explains the columns and the result.

The default takes 2 minutes on 2 CPU cores. FLOPs and paths have the exponents of the table. Attention becomes slower
than an LSTM at 4 to 6 times the theory's n = d, and slower than an Elman network at 0.4 to 2.6 times.
"""

import itertools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import numpy as np

from jaxseq import analysis, training
from jaxseq.pipelines.complexity_report import (
    Measured,
    Row,
    cost_table,
    crossing_table,
    draw_complexity,
    fit_exponents,
    theory_table,
)
from jaxseq.pipelines.layer_kinds import LayerKind, Program, layer_kinds
from jaxseq.training import resumable_field

ATTENTION, RECURRENCES = "attention", {"recurrence (Elman)": 1, "recurrence (LSTM)": 4}
"""The kinds that are timed at every size, recurrences with their gates."""

SMOKE = slice(0, 3, 2)
"""The kinds of a smoke run: attention and an Elman network."""

PATH_WINDOW, PATH_WIDTH = 8, 4
"""The window r of restricted attention, and the width, where paths are measured: on shorter sequences than costs."""


@dataclass(frozen=True)
class Config:
    """The sizes that are measured."""

    run: Path = resumable_field(Path("runs/complexity"))
    """The run folder."""
    seed: int = 0
    """Draws weights and inputs."""
    lengths: tuple[int, ...] = (32, 64, 128, 256, 512, 1024, 2048, 4096)
    """Sequence lengths n, multiples of the window."""
    widths: tuple[int, ...] = (32, 64, 128, 256, 512)
    """Widths d."""
    path_lengths: tuple[int, ...] = (16, 64, 256)
    """Lengths at which paths are measured, multiples of 8."""
    batch: int = 1
    """Sequences in a timed call; a step of a recurrence serves all of them."""
    kernel: int = 3
    """Kernel size k of the convolutions."""
    window: int = 32
    """Window r of restricted attention."""
    seconds: float = 0.7
    """Time for the repeats of one size, 3 at least and 15 at most."""
    smoke: bool = False
    """A run of a few seconds, to test that everything works; sets the sizes itself."""

    def __post_init__(self) -> None:
        training.check_numbers(self)
        for name in ("lengths", "widths", "path_lengths"):
            sizes = getattr(self, name)
            if len(sizes) < 2 or list(sizes) != sorted(set(sizes)) or sizes[0] < 1:
                raise ValueError(f"{name}={sizes} must be 2 different positive sizes at least, in ascending order")
        for name, sizes, unit in (("lengths", self.lengths, self.window), ("path_lengths", self.path_lengths, 8)):
            if unit < 2 or any(size % unit for size in sizes):
                raise ValueError(f"{name}={sizes} must be multiples of the window {unit}, which must be 2 at least")
        if self.batch < 1 or self.kernel < 2 or self.seed < 0 or not self.seconds > 0:
            told = f"batch={self.batch} (1), kernel={self.kernel} (2), seed={self.seed} (0), seconds={self.seconds}"
            raise ValueError(f"{told} must be at least what is in brackets, and seconds positive")


def main(config: Config) -> Row:
    """Count, measure paths, time, fit, report; returns the results."""
    if config.smoke:
        config = replace(config, lengths=(16, 32), widths=(8, 16), path_lengths=(8, 16), window=8, seconds=0.01)
    began = time.perf_counter()
    kinds = layer_kinds(kernel=config.kernel, window=config.window)[SMOKE if config.smoke else slice(None)]
    with training.Run.open(config.run, config, fingerprint="no data") as run:
        line = config.lengths[2 * len(config.lengths) // 3], config.widths[len(config.widths) // 2]
        times = measure_times(config, kinds, line)
        measured = Measured(count_costs(config, kinds), measure_paths(config), times, line)
        crossings = find_crossings(config, times)
        fits = {kind.name: fit_exponents(kind.name, measured) for kind in kinds}
        tables = {
            "Theory and what was counted": theory_table(kinds, measured, fits),
            "What mixing takes on this machine": cost_table(kinds, measured, fits),
            "Crossing of attention and recurrence": crossing_table(crossings),
        }
        run.write("complexity.json", measured._asdict() | {"fits": fits, "crossings": crossings})
        results = {f"{slug(name)}_{fitted}": value for name, fit in fits.items() for fitted, value in fit.items()}
        results |= {f"attention_slower_than_{slug(row['kind'])}_d{row['d']}": row["measured"] for row in crossings}
        results["seconds"] = time.perf_counter() - began
        run.write_results(results)
        try:
            figures = draw_complexity(kinds, measured, crossings, run.path / "figures")
        except ImportError as error:
            figures = {}
            print(f"no figures: {error}", flush=True)
        report = training.write_report(run, title="Complexity of layers", samples=tables, figures=figures)
    print("\n".join(f"\n{title}\n\n{table}" for title, table in tables.items()))
    print(f"\n{results['seconds']:.0f} s; report: {report}")
    return results


def slug(name: str) -> str:
    """A kind's name in ``results.json``."""
    return re.sub(r"\W+", "_", name).strip("_").lower()


def count_costs(config: Config, kinds: Sequence[LayerKind]) -> list[Row]:
    """FLOPs and chains of programs, traced alone: every length at the smallest width, every width at the smallest n.

    Raises:
        ArithmeticError: a count differs from the formula.
    """
    rows = []
    (n0, *_), (d0, *_) = config.lengths, config.widths
    for kind in kinds:
        for n, d in [*((n, d0) for n in config.lengths), *((n0, d) for d in config.widths[1:])]:
            mixing, layer = kind.counted(1, n, d), kind.layer(1, n, d)
            row = {"kind": kind.name, "n": n, "d": d}
            row["mixing_flops"] = analysis.program_flops(mixing.function, *mixing.args, elementwise=kind.elementwise)
            row["layer_flops"] = analysis.program_flops(layer.function, *layer.args)
            if (row["mixing_flops"], row["layer_flops"]) != kind.flops(n, d):
                raise ArithmeticError(f"{row}: the formulas give {kind.flops(n, d)}")
            if d == d0:
                row["products"] = analysis.sequential_depth(mixing.function, *mixing.args)
                row["arithmetic"] = analysis.sequential_depth(mixing.function, *mixing.args, counted="arithmetic")
            rows.append(row)
        print(f"counted: {kind.name}", flush=True)
    return rows


def measure_paths(config: Config) -> list[Row]:
    """Layers, or steps, that a signal needs from the first position to the last.

    Raises:
        ArithmeticError: a number differs from the formula.
    """
    rows = []
    key = jax.random.key(config.seed)
    for kind in layer_kinds(kernel=config.kernel, window=PATH_WINDOW)[SMOKE if config.smoke else slice(None)]:
        for n in config.path_lengths:
            layers, values = kind.signal(n, PATH_WIDTH, config.seed)
            found = analysis.path_length(itertools.islice(layers, 2 * n), values, key=key)
            if found != kind.path(n):
                raise ArithmeticError(f"{kind.name}, n={n}: a path of {found}, the formula gives {kind.path(n)}")
            rows.append({"kind": kind.name, "n": n, "path": found})
        print(
            f"path lengths: {kind.name}: {', '.join(str(row['path']) for row in rows if row['kind'] == kind.name)}",
            flush=True,
        )
    return rows


def measure_times(config: Config, kinds: Sequence[LayerKind], line: tuple[int, int]) -> list[Row]:
    """Compile and time what mixes positions: attention and recurrences at every size, the others at one n and one d."""
    rows = []
    for n, d in itertools.product(config.lengths, config.widths):
        whole = n == line[0] or d == line[1]
        here = {kind.name: kind for kind in kinds if whole or kind.name in (ATTENTION, *RECURRENCES)}
        timed = time_programs(config, {name: kind.mixing(config.batch, n, d) for name, kind in here.items()})
        for row in timed:
            flops = config.batch * here[row["kind"]].flops(n, d)[0]
            rows.append(row | {"n": n, "d": d, "gflops_per_s": flops / row["seconds"] / 1e9})
        print(f"timed: n={n} d={d}: {', '.join(format(1e3 * row['seconds'], '.3g') for row in timed)} ms", flush=True)
    return rows


def time_programs(config: Config, programs: Mapping[str, Program]) -> list[Row]:
    """Median seconds of each program, in turns, compilation apart, and its memory."""
    rows, runs = [], []
    for name, (function, shapes) in programs.items():
        rng = np.random.default_rng(config.seed)
        args = jax.tree.map(lambda s: jax.device_put(rng.normal(size=s.shape, scale=0.1).astype(s.dtype)), shapes)  # noqa: B023
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*args).compile()
        row: Row = {"kind": name, "compile_seconds": time.perf_counter() - start}
        memory = analysis.compiled_memory(compiled)
        rows.append(row | {"temporary_bytes": memory.temporary, "peak_bytes": memory.peak})
        runs.append(lambda compiled=compiled, args=args: jax.block_until_ready(compiled(*args)))
    seconds: list[list[float]] = [[] for _ in runs]
    repeats = 3
    for repeat in itertools.count(-1):  # the first turn warms up and is dropped
        if repeat >= repeats:
            break
        for turn in range(len(runs)):
            index = (repeat + turn) % len(runs)
            start = time.perf_counter()
            runs[index]()
            seconds[index].append(time.perf_counter() - start)
        if repeat == 0:
            repeats = max(3, min(15, int(config.seconds / sum(taken[-1] for taken in seconds))))
    for row, taken in zip(rows, seconds, strict=True):
        low, middle, high = np.percentile(taken[1:], [25, 50, 75])
        row |= {"seconds": float(middle), "low_seconds": float(low), "high_seconds": float(high)}
    return rows


def find_crossings(config: Config, times: Sequence[Row]) -> list[Row]:
    """The length from which attention takes longer than a recurrence; None: not by the longest, 0: at all lengths.

    By the FLOPs of mixing, ``4 n² d`` and ``2 G n d²`` for G gates, it is ``G d / 2``.
    """
    rows = []
    known = {row["kind"] for row in times}
    for kind, d in itertools.product((kind for kind in RECURRENCES if kind in known), config.widths):
        attention, recurrence = (
            [row for row in times if (row["kind"], row["d"]) == (name, d)] for name in (ATTENTION, kind)
        )
        seconds = ([row["seconds"] for row in rows] for rows in (attention, recurrence))
        row = {"kind": kind, "d": d, "by_flops": RECURRENCES[kind] * d // 2}
        row |= {"measured": analysis.crossing_size(config.lengths, *seconds)}
        row |= {"shortest": config.lengths[0], "longest": config.lengths[-1]}
        row |= {"attention_gflops_per_s": attention[-1]["gflops_per_s"]}
        row |= {"recurrence_gflops_per_s": recurrence[-1]["gflops_per_s"]}
        rows.append(row | {"step_microseconds": 1e6 * recurrence[-1]["seconds"] / config.lengths[-1]})
    return rows


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__, resumable=False)
