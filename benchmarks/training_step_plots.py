"""The figure of ``training_step.py``: tokens per second and model FLOPs utilisation of each candidate in each case.

python benchmarks/training_step_plots.py benchmarks/results/training_step-cpu2.jsonl steps.png
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxseq.plotting import CYCLE, INK, make_figure, prepare_axes, save_figure

QUANTITIES = {"tokens_per_s": "tokens/s", "fraction_of_products": "fraction of the product rate"}


def draw(rows: Sequence[dict[str, Any]], file: Path) -> Path:
    """A point for each case and candidate, of whole steps.

    Raises:
        ValueError: no row of a whole step.
        ImportError: matplotlib is not installed.
    """
    timed = [row for row in rows if "fraction_of_products" in row]
    if not timed:
        raise ValueError("no row holds a timed training step")
    cases = list(dict.fromkeys(row["case"] for row in timed))
    names = list(dict.fromkeys(row["name"] for row in timed))
    figure = make_figure(10, 1.4 + 0.2 * len(cases) * len(names))
    figure.suptitle(f"Training steps, {timed[0]['precision']}, {timed[0]['device']}", x=0.01, ha="left", color=INK)
    for axes, (quantity, unit) in zip(figure.subplots(1, 2, sharey=True), QUANTITIES.items(), strict=True):
        prepare_axes(axes, "", x_label=unit, grid="x")
        axes.set_xscale("log" if quantity == "tokens_per_s" else "linear")
        for index, name in enumerate(names):
            mine = [row for row in timed if row["name"] == name]
            heights = [cases.index(row["case"]) + 0.6 * ((index + 0.5) / len(names) - 0.5) for row in mine]
            color = CYCLE[index % len(CYCLE)]
            axes.plot([row[quantity] for row in mine], heights, "o", color=color, markersize=6, label=name)
        axes.set_yticks(range(len(cases)), cases)
        axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.set_xlim(left=0)
    figure.legend(*axes.get_legend_handles_labels(), loc="upper right", ncols=len(names), frameon=False, fontsize=9)
    return save_figure(figure, file)


def main(arguments: Sequence[str] | None = None) -> None:
    """Read the rows, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="the JSON lines of training_step.py")
    parser.add_argument("figure", type=Path, help="a PNG, SVG or PDF")
    options = parser.parse_args(arguments)
    rows = [json.loads(line) for line in options.rows.read_text().splitlines()]
    print(f"drawn: {draw(rows, options.figure)}")


if __name__ == "__main__":
    main()
