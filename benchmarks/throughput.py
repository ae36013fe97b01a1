"""Scan or attend, and with which mixer: every core of the table over length, width, dtype and what is done.

    python benchmarks/throughput.py                        # preset quick: about 2 minutes on 2 CPU cores
    python benchmarks/throughput.py --preset cpu           # 9 minutes on 2 CPU cores
    python benchmarks/throughput.py --preset gpu           # sized for one H200; not measured
    python benchmarks/throughput.py --mixers lstm attention attention,window=256 --lengths 256 1024 4096 --peers
    python benchmarks/throughput.py --redraw benchmarks/results/throughput-cpu2.jsonl

A mixer is a row of the table or ``FILE.py:CLASS``, with ``,field=value`` for its options; the whole table unless given.
Lengths run along two axes: at constant tokens (fewer sequences as they grow longer) and at constant batch. Decoding is
at constant batch: single steps in a compiled loop at position T, with a cache of T where there is one.

Compiled ahead of time, warmed up, timed in turn over two random input sets; the median and the spread. Outputs and
gradients are checked first (``throughput_cases``); FLOPs and bytes are counted (``throughput_costs``) and held against
ceilings measured in the same run. Rows are JSON lines (``--out``; ``--append`` keeps those there), written as they
come: a mixer that fails, or needs more memory than there is, is a row that says so. ``--limit-s`` ends a run in time:
no case is started that would take longer than is left, judged by the longest before. Presets but ``quick`` write to
``benchmarks/results``. Figures (matplotlib, extra ``plots``) go to ``--figures``, by default a folder beside the rows.
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from harness import RESULTS, Row, copy_ceiling, device_name, matmul_ceiling, measure, parse_arguments
from throughput_cases import DTYPES, MODES, Case, check_name, make_inputs, mixer
from throughput_costs import Cost
from throughput_report import AXES, print_case, print_crossovers

from jaxseq.cores import CORES


@dataclass(frozen=True)
class Plan:
    """The cases of a run. Each axis keeps ``tokens`` or ``batch`` constant; ``budget_s`` is the time for one case."""

    mixers: tuple[str, ...] = tuple(CORES)
    lengths: tuple[int, ...] = (256, 1024)
    widths: tuple[int, ...] = (128,)
    dtypes: tuple[str, ...] = ("float32",)
    modes: tuple[str, ...] = ("forward+backward", "decode")
    axis: tuple[str, ...] = ("batch",)
    tokens: int = 8192
    batch: int = 4
    repeats: int = 9
    budget_s: float = 3.0
    check_length: int = 128
    peers: bool = False

    def __post_init__(self) -> None:
        """Raises ValueError, naming what does not fit and its value; an unknown mixer is answered by the known ones."""
        known = {"modes": MODES, "dtypes": DTYPES, "axis": tuple(AXES)}
        for name, choices in known.items():
            for value in getattr(self, name):
                if value not in choices:
                    raise ValueError(f"{name}={value!r}; known: {', '.join(choices)}")
        for field in ("tokens", "batch", "repeats", "check_length", "lengths", "widths", "budget_s"):
            value = getattr(self, field)
            if not value or any(v <= 0 for v in (value if isinstance(value, tuple) else [value])):
                raise ValueError(f"{field}={value} is not positive")
        if "tokens" in self.axis:
            for length in self.lengths:
                if self.tokens % length:
                    raise ValueError(f"tokens={self.tokens} is not divisible by length={length}")
        for name in self.mixers:
            check_name(name)

    def cases(self) -> Iterator[tuple[Case, list[str]]]:
        """Every case once, with the axes that it lies on; what gives gradients first: its reference serves the rest."""
        modes = sorted(self.modes, key=lambda mode: mode != "forward+backward")
        for width in self.widths:
            for dtype in self.dtypes:
                for mode in modes:
                    for length in self.lengths:
                        batches: dict[int, list[str]] = {}
                        for axis in self.axis if mode != "decode" else ("batch",):
                            batch = self.batch if axis == "batch" else self.tokens // length
                            batches.setdefault(batch, []).append(axis)
                        for batch, axes in batches.items():
                            yield Case(mode, batch, length, width, dtype, self.check_length), axes


PRESETS = {
    "quick": Plan(),
    "cpu": Plan(
        mixers=(*CORES, "attention,window=256"),
        lengths=(128, 512, 2048, 8192),
        widths=(256,),
        axis=("tokens", "batch"),
        batch=1,
        budget_s=24.0,
        repeats=5,
        check_length=256,
    ),
    "gpu": Plan(
        mixers=(*CORES, "attention,window=1024"),
        lengths=(512, 2048, 8192, 32768),
        widths=(1024,),
        dtypes=("bfloat16", "float32"),
        modes=("forward+backward", "forward", "decode"),
        axis=("tokens", "batch"),
        tokens=65536,
        batch=4,
        check_length=512,
        budget_s=10.0,
    ),
}


def run(plan: Plan, out: Path, *, append: bool = False, limit_s: float = float("inf")) -> list[Row]:
    """Measure all cases, or those that are expected to end within ``limit_s``; rows are written as they come.

    The ceilings are measured first, a dtype's before its first case.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    end, longest = time.monotonic() + limit_s, 0.0
    with out.open("a" if append else "w") as file:
        cases = list(plan.cases())
        for number, (case, axes) in enumerate(cases):
            start = time.monotonic()
            if start + longest > end:
                print(f"\n{len(cases) - number} of {len(cases)} cases left out: less than {longest:.0f} s were left")
                break
            ceilings = matmul_ceiling(case.dtype), copy_ceiling(case.dtype)
            found = _measured(plan, case)
            for row in found:
                _finish(row, case, axes, ceilings)
                file.write(json.dumps(row) + "\n")
            file.flush()
            print_case(found)
            rows += found
            longest = max(longest, time.monotonic() - start)
    return rows


def _measured(plan: Plan, case: Case) -> list[Row]:
    candidates = [mixer(name, case) for name in plan.mixers]
    if plan.peers and case.mode != "decode":
        from throughput_peers import peers

        candidates += [peer for name in plan.mixers for peer in peers(name, case)]
    sizes = {"mode": case.mode, "B": case.batch, "T": case.length, "width": case.width, "dtype": case.dtype}
    try:
        inputs = make_inputs(case)
    except Exception as failure:  # nothing of this size fits
        return [{"name": c.name, **sizes, "error": f"out of memory: {failure}"} for c in candidates]
    return measure(
        sizes,
        candidates,
        inputs,
        reference=None,
        repeats=plan.repeats,
        budget_s=plan.budget_s,
    )


def _finish(row: Row, case: Case, axes: list[str], ceilings: tuple[float, float]) -> None:
    """Add the figures derived from the times: tokens/s, and the fraction of the ceiling that binds."""
    row |= {"axes": axes, "ceiling_flops_per_s": ceilings[0], "ceiling_bytes_per_s": ceilings[1]}
    if "median_s" not in row:
        return
    row["tokens_per_s"] = case.tokens / row["median_s"]
    if "flops" in row:
        calls = case.steps if case.mode == "decode" else 1
        least, row["bound"] = Cost(row["flops"], row["bytes"]).floor_s(*ceilings)
        row["fraction"] = calls * least / row["median_s"]


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSON lines file.

    Raises:
      ValueError: a line is no such row; file and line are named.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            rows.append(row | {"axes": row["axes"], "mode": row["mode"], "T": row["T"], "B": row["B"]})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}:{number} is no row of this benchmark: {error}") from error
    return rows


def draw(rows: Sequence[Row], folder: Path) -> None:
    """The figures, where matplotlib is there."""
    try:
        from throughput_plots import draw_figures

        files = draw_figures(rows, folder)
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("\nno figures: matplotlib is not installed (extra: plots); draw them later by --redraw")
        return
    print("\ndrawn: " + "\n       ".join(str(file) for file in files))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print, write, draw; or draw again what a file holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--preset", choices=PRESETS, default="quick", help="gives what is not given below (default: %(default)s)"
    )
    for name, kind in (("mixers", str), ("lengths", int), ("widths", int)):
        parser.add_argument(f"--{name}", nargs="+", type=kind, help="default: those of the preset")
    for name, known in (("dtypes", DTYPES), ("modes", MODES), ("axis", tuple(AXES))):
        parser.add_argument(f"--{name}", nargs="+", help=", ".join(known))
    parser.add_argument("--tokens", type=int, help="B times T along the axis of constant tokens")
    parser.add_argument("--batch", type=int, help="B along the axis of constant batch, and for decoding")
    parser.add_argument("--repeats", type=int, help="timings of each candidate at most")
    parser.add_argument("--check-length", type=int, help="positions whose outputs and gradients are checked")
    parser.add_argument("--peers", action="store_true", default=None, help="other libraries too, where installed")
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), help="seconds for all cases (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="the JSON lines")
    parser.add_argument("--append", action="store_true", help="keep the rows that are there")
    parser.add_argument("--figures", type=Path, help="folder for the figures")
    parser.add_argument("--redraw", type=Path, metavar="FILE", help="draw the figures of these rows, run nothing")
    given: dict[str, Any] = vars(parse_arguments(parser, arguments))
    preset, out, redraw = given.pop("preset"), given.pop("out"), given.pop("redraw")
    append, figures, limit_s = given.pop("append"), given.pop("figures"), given.pop("limit_s")
    try:
        if redraw:
            rows = read_rows(redraw)
            print_crossovers(rows)
            draw(rows, figures or redraw.with_suffix(""))
            return
        changed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items() if v is not None}
        plan = dataclasses.replace(PRESETS[preset], **changed)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if out is None:
        out = (Path("runs") if preset == "quick" else RESULTS) / f"throughput-{device_name()}.jsonl"
    if "float64" in plan.dtypes:
        jax.config.update("jax_enable_x64", True)
    run(plan, out, append=append, limit_s=limit_s)
    print(f"\nwritten: {out}")
    rows = read_rows(out)
    print_crossovers(rows)
    draw(rows, figures or out.with_suffix(""))


if __name__ == "__main__":
    main()
