"""Rows of the throughput benchmark as curves: where one overtakes the other, and the tables in the terminal."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]

AXES = {"tokens": "constant tokens", "batch": "constant batch"}


class Panel(NamedTuple):
    """What the rows of one figure have in common; ``size`` is what the axis keeps constant."""

    mode: str
    axis: str
    size: int
    width: int
    dtype: str

    @property
    def title(self) -> str:
        """In words."""
        return f"{self.mode}, {AXES[self.axis]} ({self.size}), width {self.width}, {self.dtype}"


class Crossing(NamedTuple):
    """Where a curve passes another: at ``length``, from below (``overtakes``) or from above."""

    length: float
    overtakes: bool


Curve = list[tuple[int, float]]

NEAR = 0.05
"""Curves that are closer than this (in log quantity) cannot be told apart there: noise is no crossing."""


def panels(rows: Iterable[Row]) -> dict[Panel, list[Row]]:
    """Rows by figure; of two rows of one mixer at one size the later stands."""
    grouped: dict[Panel, dict[tuple, Row]] = {}
    for row in rows:
        for axis in row["axes"]:
            size = row["B"] if axis == "batch" else row["B"] * row["T"]
            panel = Panel(row["mode"], axis, size, row["width"], row["dtype"])
            grouped.setdefault(panel, {})[row["name"], row["T"]] = row
    return {panel: list(members.values()) for panel, members in grouped.items()}


def curves(rows: Iterable[Row], quantity: str) -> dict[str, Curve]:
    """(T, quantity) by mixer, in the order of T; rows without it (with an error) are left out."""
    found: dict[str, Curve] = {}
    for row in sorted(rows, key=lambda row: row["T"]):
        if row.get(quantity) is not None and "error" not in row:
            found.setdefault(row["name"], []).append((row["T"], row[quantity]))
    return found


def crossings(curve: Curve, other: Curve) -> list[Crossing]:
    """Where ``curve`` crosses ``other``: both are straight between lengths in log T and log quantity."""
    both = [(math.log(T), distance) for T, distance in _distances(curve, other) if abs(distance) >= NEAR]
    found = []
    for (x0, d0), (x1, d1) in itertools.pairwise(both):
        if (d0 > 0) != (d1 > 0):
            found.append(Crossing(math.exp(x0 + (x1 - x0) * d0 / (d0 - d1)), d1 > 0))
    return found


def _distances(curve: Curve, other: Curve) -> list[tuple[int, float]]:
    """How far a curve lies above another, in log quantity, at the lengths of both."""
    theirs = dict(other)
    return [(T, math.log(value / theirs[T])) for T, value in curve if T in theirs]


def against_attention(rows: Sequence[Row]) -> tuple[str | None, dict[str, str]]:
    """The attention that the mixers are held against (the first one), and for each of them where it passes it."""
    lines = curves(rows, "tokens_per_s")
    families = {row["name"]: row.get("family") for row in rows if "family" in row}
    base = next((name for name in lines if families.get(name) == "attention" and ": " not in name), None)
    if base is None:
        return None, {}
    said = {}
    for name, curve in lines.items():
        distances = _distances(curve, lines[base])
        if name == base or not distances or ": " in name:
            continue
        clear = [distance for _, distance in distances if abs(distance) >= NEAR]
        words = ", ".join(
            f"{'overtakes' if c.overtakes else 'falls behind'} at T ≈ {rounded(c.length)}"
            for c in crossings(curve, lines[base])
        )
        if not words:
            words = "about equal" if not clear else "ahead throughout" if clear[0] > 0 else "behind throughout"
        ends = [f"{math.exp(distance):.2g} x at T = {T}" for T, distance in (distances[0], distances[-1])]
        said[name] = f"{words} ({', '.join(dict.fromkeys(ends))})"
    return base, said


def rounded(length: float) -> int:
    """Two figures: what interpolation between powers of two can say."""
    scale = 10 ** max(0, math.floor(math.log10(length)) - 1)
    return int(round(length / scale) * scale)


def print_case(rows: Sequence[Row]) -> None:
    """One case, its mixers one a line."""
    first = rows[0]
    print(f"\n{first['mode']}  B={first['B']} T={first['T']} width={first['width']} {first['dtype']}")
    heads = ("ms", "IQR", "tokens/s", "compile s", "temp MB", "of ceiling", "error")
    print(f"  {'':26}{heads[0]:>10}{heads[1]:>9}{heads[2]:>12}{heads[3]:>11}{heads[4]:>9}{heads[5]:>18}{heads[6]:>10}")
    for row in rows:
        if "error" in row:
            print(f"  {_short(row['name']):26}{row['error']}")
            continue
        memory = f"{row['temp_bytes'] / 1e6:.1f}" if row.get("temp_bytes") is not None else "-"
        share = f"{row['fraction']:.1%} {row['bound']}" if "fraction" in row else "-"
        compile_s = f"{row['compile_s']:.2f}" if "compile_s" in row else "-"
        took = "".join(f"  {op}={'+'.join(names)}" for op, names in row.get("implementation", {}).items())
        print(
            f"  {_short(row['name']):26}{1e3 * row['median_s']:10.3f}{1e3 * row['iqr_s']:9.3f}"
            f"{row['tokens_per_s']:12,.0f}{compile_s:>11}{memory:>9}{share:>18}{row['error_vs_reference']:10.1e}{took}"
        )


def print_crossovers(rows: Iterable[Row]) -> None:
    """For every figure, where each mixer passes attention."""
    for panel, members in panels(rows).items():
        base, said = against_attention(members)
        if said:
            print(f"\n{panel.title}: tokens/s against {base}")
            for name, words in said.items():
                print(f"  {_short(name):26}{words}")


def _short(name: str) -> str:
    """What fits in a column: of a long name (a file's), the end."""
    return name if len(name) < 26 else f"…{name[-24:]}"
