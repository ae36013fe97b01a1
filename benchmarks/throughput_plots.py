"""The figures of the throughput benchmark, from its rows alone (matplotlib, extra ``plots``, when they are drawn).

One panel a family of mixers; full attention is in every panel, the other families' curves are pale behind it, and the
fastest scan at the longest length is the thick one. A circle is where a mixer passes attention. A legend is below
the panels; a mixer's name stands at the end of its curve.
"""

import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from throughput_report import Crossing, Curve, Panel, Row, crossings, curves, panels, rounded

from jaxseq.plotting import CYCLE, EDGE, INK, RED, SOFT, make_figure, prepare_axes

COLOURS = tuple(colour for colour in CYCLE if colour != RED)
"""Red is full attention's."""

FAMILIES = ("nonlinear recurrence", "elementwise recurrence", "matrix state", "attention", "convolution")


def draw_figures(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Tokens/s and memory against T, and the roofline, for every mode, axis, width and dtype in the rows."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for panel, members in panels(rows).items():
        if sum("error" not in row for row in members) == 0:
            continue
        rest: dict[str, Callable] = {"memory": _memory, "roofline": _roofline}
        drawings = {"throughput": _throughput} | ({"carry": _carry} if panel.mode == "decode" else rest)
        for kind, draw in drawings.items():
            families = _families(members)
            columns = 2 if len(families) > 1 else 1
            lines = math.ceil(len(families) / columns)
            figure = make_figure(5.4 * columns, 3.5 * lines + 0.9, dpi=100)
            figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
            grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
            draw(figure, list(grid.flat), panel, members, families)
            mode = panel.mode.replace("+", "-")
            name = f"{kind}-{mode}-{panel.axis}{panel.size}-width{panel.width}-{panel.dtype}.png"
            files.append(folder / name)
            _save(figure, files[-1])
    return files


def _save(figure: Any, file: Path) -> None:
    """A PNG of few colours: a third of the size, and no difference to the eye."""
    from PIL import Image

    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", metadata={"Software": None})
    Image.open(drawn).convert("RGB").quantize(255, dither=Image.Dither.NONE).save(file, optimize=True)


def _families(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Names by family, in the order of the families; the last two, of few members, share a panel."""
    known: dict[str, dict[str, None]] = {}
    for row in rows:
        if "family" in row:
            known.setdefault(row["family"], {})[row["name"]] = None
    ordered = {family: list(known[family]) for family in FAMILIES if family in known}
    if "convolution" in ordered and "attention" in ordered:
        ordered["attention, convolution"] = ordered.pop("attention") + ordered.pop("convolution")
    return ordered


def _attention(rows: Sequence[Row]) -> str | None:
    names = [row["name"] for row in rows if row.get("family") == "attention" and "peer" not in row]
    return names[0] if names else None


def _throughput(figure: Any, grid: list[Any], panel: Panel, rows: Sequence[Row], families: dict) -> None:
    what = "tokens/s" if panel.mode != "decode" else "tokens/s, all sequences together"
    figure.suptitle(f"Tokens/s against length: {panel.title}", x=0.01, ha="left", fontsize=12, color=INK)
    _curves(grid, rows, families, "tokens_per_s", what, crossed=True)


def _memory(figure: Any, grid: list[Any], panel: Panel, rows: Sequence[Row], families: dict) -> None:
    figure.suptitle(f"Temporary memory against length: {panel.title}", x=0.01, ha="left", fontsize=12, color=INK)
    _curves(grid, rows, families, "temp_bytes", "temporary bytes")


def _carry(figure: Any, grid: list[Any], panel: Panel, rows: Sequence[Row], families: dict) -> None:
    figure.suptitle(f"What decoding carries along: {panel.title}", x=0.01, ha="left", fontsize=12, color=INK)
    _curves(grid, rows, families, "carry_bytes", "bytes of carry")


def _curves(
    grid: list[Any], rows: Sequence[Row], families: dict, quantity: str, unit: str, crossed: bool = False
) -> None:
    """A quantity against T, a panel a family."""
    from matplotlib.ticker import LogLocator

    lines = curves(rows, quantity)
    if not lines:
        return
    base = _attention(rows)
    best = _best_scan(rows, lines, base) if crossed else None
    lengths = sorted({row["T"] for row in rows})
    values = [value for curve in lines.values() for _, value in curve]
    span = min(values) * 0.6, max(values) * 1.7
    for axes, (family, names) in zip(grid, families.items(), strict=False):
        _prepare(axes, family, lengths, unit)
        axes.set_ylim(*span)
        if span[1] / span[0] < 100:
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for name, curve in lines.items():
            if name not in names and ": " not in name:
                axes.plot(*zip(*curve, strict=True), color=EDGE, linewidth=1, zorder=1)
        labels: list[tuple] = []
        marks: list[tuple[Crossing, str]] = []
        shown = dict.fromkeys([*([base] if base in lines else []), *(n for n in names if n in lines)])
        colours = _colours(names, base)
        for name in shown:
            colour = colours.get(name, RED)
            style = {"linestyle": (0, (1, 1.2))} if ": " in name else {"linestyle": (0, (4, 2))} if name == base else {}
            width = 2.6 if name in (base, best) else 1.6
            axes.plot(*zip(*lines[name], strict=True), color=colour, linewidth=width, zorder=3, marker="o",
                      markersize=2.6, **style)  # fmt: skip
            labels.append((lines[name][-1], name, colour, name in (base, best)))
            if crossed:
                _band(axes, rows, name, colour)
                if base in lines and name != base and ": " not in name:
                    marks += [(crossing, colour) for crossing in crossings(lines[name], lines[base])]
        _mark(axes, marks, lines.get(base or "", []))
        _label(axes, labels, span, lengths)
        _mark_failures(axes, rows, names, colours, span[0])
    for axes in grid[len(families) :]:
        axes.set_visible(False)
    kept = [name for names in families.values() for name in names]
    peers = any(": " in name for name in kept if name in lines)
    failed = any("error" in row and row["name"] in kept for row in rows)
    passed = crossed and any(crossings(lines[n], lines[base]) for n in lines if base in lines and n != base)
    parts = {"base": base in lines, "best": best is not None, "others": len(families) > 1, "peers": peers}
    _legend(grid[0].figure, parts | {"band": crossed, "passed": passed, "failed": failed})


def _legend(figure: Any, parts: dict[str, bool]) -> None:
    """What the lines, the band and the marks are, for those that the figure has; below the panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ring: dict[str, Any] = {
        "linestyle": "",
        "marker": "o",
        "markersize": 8,
        "markerfacecolor": "white",
        "markeredgewidth": 1.8,
    }
    entries = {
        "base": Line2D([], [], color=RED, linewidth=2.6, linestyle=(0, (4, 2)), label="full attention, in every panel"),
        "best": Line2D([], [], color=SOFT, linewidth=2.6, label="the fastest scan at the longest length"),
        "others": Line2D([], [], color=EDGE, linewidth=1, label="mixers of the other panels"),
        "peers": Line2D([], [], color=SOFT, linewidth=1.6, linestyle=(0, (1, 1.2)), label="another library"),
        "band": Patch(color=SOFT, alpha=0.25, linewidth=0, label="interquartile range of the timings"),
        "passed": Line2D([], [], color=SOFT, **ring, label="passes attention at this length"),
        "failed": Line2D([], [], color=SOFT, linestyle="", marker="x", markersize=6, label="no figure, and why"),
    }
    shown = [entry for name, entry in entries.items() if parts[name]]
    figure.legend(handles=shown, loc="outside lower left", ncols=4, frameon=False, fontsize=8, labelcolor=SOFT,
                  columnspacing=1.4, handlelength=3.2)  # fmt: skip


def _best_scan(rows: Sequence[Row], lines: dict[str, Curve], base: str | None) -> str | None:
    """The fastest at the longest length of what has a recurrent state."""
    scans = {row["name"] for row in rows if row.get("family", "") in FAMILIES[:3] and "peer" not in row}
    ends = {name: curve[-1] for name, curve in lines.items() if name in scans}
    return max(ends, key=lambda name: ends[name], default=None)


def _colours(names: Sequence[str], base: str | None) -> dict[str, str]:
    """A colour for each mixer of a panel; a peer has its mixer's."""
    own = [name for name in names if name != base and ": " not in name]
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(own)}
    if base is not None:
        colours[base] = RED
    return colours | {name: colours.get(name.split(": ")[1], SOFT) for name in names if ": " in name}


def _prepare(axes: Any, title: str, lengths: Sequence[int], unit: str) -> None:
    from matplotlib.ticker import EngFormatter, FixedLocator, NullLocator

    prepare_axes(axes, title, x_label="length T, tokens", y_label=unit, title_size=10, title_pad=6, tick_size=8.5)
    axes.tick_params(labelbottom=True, labelleft=True)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(lengths)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_minor_locator(NullLocator())


def _band(axes: Any, rows: Sequence[Row], name: str, colour: str) -> None:
    """The spread of the timings: half the interquartile range to either side."""
    mine = sorted((r for r in rows if r["name"] == name and "tokens_per_s" in r), key=lambda r: r["T"])
    low, high = ([r["tokens_per_s"] / (1 + sign * r["iqr_s"] / 2 / r["median_s"]) for r in mine] for sign in (1, -0.99))
    axes.fill_between([r["T"] for r in mine], low, high, color=colour, alpha=0.13, linewidth=0, zorder=2)


def _mark(axes: Any, marks: Sequence[tuple[Crossing, str]], base: Curve) -> None:
    """A circle on attention's curve where it is passed, and the length below it; near ones one under the other."""
    row, last = 0, 0.0
    for crossing, colour in sorted(marks):
        y = _value_at(base, crossing.length)
        row, last = (row + 1 if crossing.length < 1.3 * last else 0), crossing.length
        axes.plot([crossing.length], [y], marker="o", markersize=8, markerfacecolor="white", markeredgecolor=colour,
                  markeredgewidth=1.8, zorder=5)  # fmt: skip
        axes.annotate(f"{rounded(crossing.length)}", (crossing.length, y), xytext=(0, -14 - 10 * row),
                      textcoords="offset points", ha="center", fontsize=8, color=colour, zorder=6)  # fmt: skip


def _value_at(curve: Curve, length: float) -> float:
    """A curve between its points, straight in both logarithms."""
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 <= length <= x1:
            share = math.log(length / x0) / math.log(x1 / x0)
            return math.exp(math.log(y0) * (1 - share) + math.log(y1) * share)
    return curve[-1][1]


def _label(axes: Any, labels: list[tuple], span: tuple[float, float], lengths: Sequence[int]) -> None:
    """Names at the right ends, pushed apart where they would overlap."""
    room = (lengths[-1] / lengths[0]) if len(lengths) > 1 else 4
    axes.set_xlim(lengths[0] / room**0.05, lengths[-1] * room**0.5)
    height = math.log(span[1] / span[0])
    places = spread([math.log(y / span[0]) / height for (_, y), *_ in labels], 0.062)
    for place, ((x, y), name, colour, bold) in zip(places, labels, strict=True):
        there = lengths[-1] * room**0.05, span[0] * math.exp(place * height)
        axes.annotate(name, (x, y), xytext=there, fontsize=8.5, color=colour, va="center",
                      fontweight="bold" if bold else "normal", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "shrinkA": 1, "shrinkB": 2},
                      )  # fmt: skip


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places (0 to 1) moved as little as may be until neighbours are ``gap`` apart."""
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[tuple[list[int], float]] = []  # indices in order, their common centre
    for i in order:
        members, centre = [i], places[i]
        while (
            groups and centre - gap * (len(members) - 1) / 2 - gap < groups[-1][1] + gap * (len(groups[-1][0]) - 1) / 2
        ):
            before, _ = groups.pop()
            members = before + members
            centre = sum(places[m] for m in members) / len(members)
        half = gap * (len(members) - 1) / 2
        groups.append((members, min(max(centre, half + gap / 2), max(1 - half - gap / 2, half + gap / 2))))
    moved = [0.0] * len(places)
    for members, centre in groups:
        for rank, i in enumerate(members):
            moved[i] = centre + gap * (rank - (len(members) - 1) / 2)
    return moved


def _mark_failures(axes: Any, rows: Sequence[Row], names: Sequence[str], colours: dict, bottom: float) -> None:
    """A cross at the bottom for what gave no figure, and why."""
    seen: dict[int, int] = {}
    for row in rows:
        if "error" not in row or row["name"] not in names:
            continue
        height = bottom * 1.35 ** (1 + seen.get(row["T"], 0))
        seen[row["T"]] = seen.get(row["T"], 0) + 1
        why = "out of memory" if row["error"].startswith("out of memory") else "error"
        axes.plot([row["T"]], [height], marker="x", color=colours.get(row["name"], SOFT), markersize=6, zorder=4)
        axes.annotate(f"{row['name']}: {why} ", (row["T"], height), ha="right", va="center", fontsize=7.5,
                      color=colours.get(row["name"], SOFT), xytext=(-5, 0), textcoords="offset points")  # fmt: skip


def _roofline(figure: Any, grid: list[Any], panel: Panel, rows: Sequence[Row], families: dict) -> None:
    """Attained FLOP/s against FLOPs a byte, under the two ceilings of the same run; larger points are longer."""
    figure.suptitle(f"Roofline: {panel.title}", x=0.01, ha="left", fontsize=12, color=INK)
    calls = [(r, _calls(r) * r["flops"] / r["median_s"]) for r in rows if "flops" in r and "median_s" in r]
    if not calls:
        return
    matmul = max(r["ceiling_flops_per_s"] for r, _ in calls)
    copy = max(r["ceiling_bytes_per_s"] for r, _ in calls)
    intensities = [r["flops"] / r["bytes"] for r, _ in calls]
    low, high = min(*intensities, matmul / copy) / 3, max(*intensities, matmul / copy) * 3
    lengths = sorted({row["T"] for row in rows})
    base = _attention(rows)
    for axes, (family, names) in zip(grid, families.items(), strict=False):
        _prepare(axes, family, lengths, "FLOP/s (counted)")
        _intensity_axis(axes, low, high)
        axes.set_ylim(min(rate for _, rate in calls) / 12, matmul * 3)
        axes.plot([low, matmul / copy, high], [low * copy, matmul, matmul], color=SOFT, linewidth=1.4, zorder=1)
        axes.annotate(f"matmul {matmul / 1e9:,.0f} GFLOP/s, copy {copy / 1e9:,.0f} GB/s", (0.02, 0.97),
                      xycoords="axes fraction", va="top", fontsize=8, color=SOFT)  # fmt: skip
        colours = _colours(names, base)
        for name in dict.fromkeys([*([base] if base else []), *names]):
            mine = [(r["flops"] / r["bytes"], rate, r["T"]) for r, rate in calls if r["name"] == name]
            if not mine or ": " in name:
                continue
            x, y, T = zip(*sorted(mine, key=lambda point: point[2]), strict=True)
            sizes = [12 + 14 * lengths.index(t) for t in T]
            axes.plot(x, y, color=colours.get(name, RED), linewidth=0.8, zorder=2)
            axes.scatter(x, y, s=sizes, color=colours.get(name, RED), label=name, zorder=3, linewidths=0)
        axes.legend(frameon=False, fontsize=8, labelcolor=SOFT, loc="lower right", ncols=2, handletextpad=0.2,
                    columnspacing=0.8, markerscale=0.6)  # fmt: skip
    for axes in grid[len(families) :]:
        axes.set_visible(False)
    _roofline_legend(figure, lengths)


def _roofline_legend(figure: Any, lengths: Sequence[int]) -> None:
    """The ceilings, and the areas of the points of the shortest and of the longest length."""
    from matplotlib.lines import Line2D

    ceiling = "ceiling: the lesser of the matmul rate, and the copy rate times FLOP a byte (both measured)"
    entries = [Line2D([], [], color=SOFT, linewidth=1.4, label=ceiling)]
    for index in sorted({0, len(lengths) - 1}):
        size = math.sqrt(12 + 14 * index)
        entries.append(Line2D([], [], color=SOFT, linestyle="", marker="o", markersize=size, markeredgewidth=0,
                              label=f"T = {lengths[index]:,}"))  # fmt: skip
    entries.append(Line2D([], [], color=SOFT, linewidth=0.8, label="one mixer, by length"))
    figure.legend(handles=entries, loc="outside lower left", ncols=4, frameon=False, fontsize=8, labelcolor=SOFT,
                  columnspacing=1.4)  # fmt: skip


def _calls(row: Row) -> float:
    """The number of counted calls in a timed call: a decoding call makes several tokens."""
    return row["tokens_per_s"] * row["median_s"] / row["B"] if row["mode"] == "decode" else 1


def _intensity_axis(axes: Any, low: float, high: float) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log", base=10)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(LogLocator())
    axes.set_xlim(low, high)
    axes.set_xlabel("FLOP a byte (counted)", fontsize=9, color=SOFT)
