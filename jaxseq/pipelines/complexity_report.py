"""Fits, tables and figures of the complexity experiment, from its rows of one size each."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxseq.analysis import fitted_exponent
from jaxseq.pipelines.layer_kinds import LayerKind
from jaxseq.plotting import Curve, CurvePanel, draw_curves

Row = dict[str, Any]


class Measured(NamedTuple):
    """Rows of one size each, as dictionaries with ``kind``, ``n`` and ``d``."""

    costs: list[Row]
    """``mixing_flops`` and ``layer_flops`` at the smallest width and at the smallest length; at the smallest width
    the longest chains ``products`` and ``arithmetic``."""
    paths: list[Row]
    """``path`` at each length."""
    times: list[Row]
    """``seconds``, ``temporary_bytes`` and others at every size or along two lines."""
    line: tuple[int, int]
    """The length and the width of these lines."""


def fit_exponents(kind: str, measured: Measured) -> Row:
    """Exponents of a kind over the upper half of the sizes, None where a cost is 0; and chains at the largest n."""
    costs, times = ([row for row in rows if row["kind"] == kind] for rows in (measured.costs, measured.times))
    n0, d0 = (min(row[size] for row in costs) for size in "nd")
    fits: Row = {}
    for cost in ("mixing_flops", "layer_flops"):
        fits |= _fit(costs, cost, (n0, d0))
    fits |= {name: value for name, value in _fit(costs, "arithmetic", (n0, d0)).items() if name.endswith("_n")}
    for cost in ("seconds", "temporary_bytes"):
        fits |= _fit(times, cost, measured.line)
    last = max((row for row in costs if row["d"] == d0), key=lambda row: row["n"])
    return fits | {"products": last["products"], "arithmetic": last["arithmetic"]}


def _fit(rows: Sequence[Row], cost: str, line: tuple[int, int]) -> Row:
    """The exponents of a cost in n, at the line's d, and in d, at the line's n."""
    fits: Row = {}
    for size, fixed, at in (("n", "d", line[1]), ("d", "n", line[0])):
        points = sorted((row[size], row[cost]) for row in rows if row[fixed] == at and cost in row)
        sizes, values = zip(*points[(len(points) - 1) // 2 :], strict=True)
        fits[f"{cost}_{size}"] = fitted_exponent(sizes, values) if len(sizes) > 1 and min(values) > 0 else None
    return fits


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; floats have three digits."""
    cells = [list(header), ["---"] * len(header), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return (
        f"{value:,.0f}"
        if isinstance(value, float) and value >= 100
        else f"{value:.3g}"
        if isinstance(value, float)
        else f"{value}"
    )


def _power(n: float | None, d: float | None) -> str:
    """``n^a d^b`` with the fitted exponents."""
    parts = [f"{size}^{exponent:.2f}" for size, exponent in (("n", n), ("d", d)) if exponent is not None]
    return " ".join(parts).replace("-0.00", "0.00") or "none"


def theory_table(kinds: Sequence[LayerKind], measured: Measured, fits: dict[str, Row]) -> str:
    """Theory beside what was counted: FLOPs, sequential operations, path length."""
    longest = max(row["n"] for row in measured.costs)
    lengths = sorted({row["n"] for row in measured.paths})
    header = ["layer type", "FLOPs: theory", "of mixing", "of the layer", "sequential: theory"]
    header += [f"products in a chain, n = {longest}", "arithmetic in a chain", "grows as", "path: theory"]
    header += [f"path, n = {', '.join(map(str, lengths))}"]
    rows = []
    for kind in kinds:
        found = fits[kind.name]
        paths = [row["path"] for n in lengths for row in measured.paths if (row["kind"], row["n"]) == (kind.name, n)]
        mixing, layer = (_power(found[f"{part}_flops_n"], found[f"{part}_flops_d"]) for part in ("mixing", "layer"))
        chain = [found["products"], found["arithmetic"], _power(found["arithmetic_n"], None)]
        claims = kind.claims
        rows.append(
            [kind.name, claims.flops, mixing, layer, claims.depth, *chain, claims.path, ", ".join(map(str, paths))]
        )
    return markdown_table(header, rows)


def cost_table(kinds: Sequence[LayerKind], measured: Measured, fits: dict[str, Row]) -> str:
    """The measured cost of mixing: time, rate, memory."""
    n, d = measured.line
    longest = max(row["n"] for row in measured.times)
    header = [
        "layer type",
        f"ms, n = {n}, d = {d}",
        "GFLOP/s",
        "time grows as",
        f"temporary MB, n = {longest}, d = {d}",
        "memory grows as",
    ]
    rows = []
    for kind in kinds:
        found = fits[kind.name]
        at, last = (
            next(row for row in measured.times if (row["kind"], row["n"], row["d"]) == (kind.name, size, d))
            for size in (n, longest)
        )
        time, memory = (_power(found[f"{c}_n"], found[f"{c}_d"]) for c in ("seconds", "temporary_bytes"))
        rows.append([kind.name, 1e3 * at["seconds"], at["gflops_per_s"], time, last["temporary_bytes"] / 1e6, memory])
    return markdown_table(header, rows)


def crossing_table(crossings: Sequence[Row]) -> str:
    """The length from which attention is slower than a recurrence: theory, FLOPs, and the clock."""
    header = ["recurrence", "d", "theory: n = d", "by FLOPs", "measured n", "attention GFLOP/s", "recurrence GFLOP/s"]
    rows = []
    for row in crossings:
        found = f"above {row['longest']}" if row["measured"] is None else f"{row['measured']:.0f}"
        found = f"below {row['shortest']}" if row["measured"] == 0 else found
        rates = [row["attention_gflops_per_s"], row["recurrence_gflops_per_s"], row["step_microseconds"]]
        rows.append([row["kind"], row["d"], row["d"], row["by_flops"], found, *rates])
    return markdown_table([*header, "µs a step"], rows)


def draw_complexity(
    kinds: Sequence[LayerKind], measured: Measured, crossings: Sequence[Row], folder: Path
) -> dict[str, Path]:
    """Draw FLOPs, times with crossings, and paths; returns the files by their captions."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [kind.name for kind in kinds if not {"stored scores", "tree"} & set(kind.name.split(", "))]
    times = "Wall time against length; vertical lines: n = d, and where attention becomes slower than a recurrence"
    return {
        "FLOPs of what mixes positions": _draw_flops(names, measured, folder),
        times: _draw_times(measured, crossings, folder),
        "Layers, or steps, from the first position to the last": _draw_paths(names, measured, folder),
    }


def _curves(names: Sequence[str], rows: Sequence[Row], x: str, y: str, keep: Callable[[Row], bool]) -> dict[str, Curve]:
    curves = {}
    for name in names:
        points = sorted((row[x], row[y]) for row in rows if row["kind"] == name and keep(row))
        if points:
            curves[name] = Curve(*np.asarray(points).T)
    return curves


def _draw_flops(names: Sequence[str], measured: Measured, folder: Path) -> Path:
    n0, d0 = (min(row[size] for row in measured.costs) for size in "nd")
    panels = []
    for size, fixed, at, label in (("n", "d", d0, "length n"), ("d", "n", n0, "width d")):
        curves = _curves(names, measured.costs, size, "mixing_flops", lambda row: row[fixed] == at)  # noqa: B023
        panels.append(CurvePanel(f"{fixed} = {at}", curves, label, "FLOPs", log_x=True, log_y=True))
    return draw_curves(panels, folder / "complexity-flops.png")


def _draw_times(measured: Measured, crossings: Sequence[Row], folder: Path) -> Path:
    panels = []
    names = list(dict.fromkeys(["attention", *(row["kind"] for row in crossings)]))
    for d in dict.fromkeys((measured.line[1], max(row["d"] for row in measured.times))):
        curves = _curves(names, measured.times, "n", "seconds", lambda row: row["d"] == d)  # noqa: B023
        curves = {name: curve._replace(y=1e3 * curve.y) for name, curve in curves.items()}
        low, high = (bound([bound(curve.y) for curve in curves.values()]) for bound in (np.min, np.max))
        marks = {"n = d": d} | {f"{row['kind']} crossing": row["measured"] for row in crossings if row["d"] == d}
        curves |= {name: Curve([n, n], [low, high], dashed=True) for name, n in marks.items() if n}
        panels.append(CurvePanel(f"d = {d}", curves, "length n", "milliseconds", log_x=True, log_y=True))
    return draw_curves(panels, folder / "complexity-time.png")


def _draw_paths(names: Sequence[str], measured: Measured, folder: Path) -> Path:
    curves = _curves(names, measured.paths, "n", "path", lambda row: True)
    panel = CurvePanel("path from the first position to the last", curves, "length n", "layers or steps", True, True)
    return draw_curves([panel], folder / "complexity-path.png")
