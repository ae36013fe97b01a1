"""What the captioners of ``experiments/captioning.py`` reach: the table of docs/captioning.md, from three seeds.

    python benchmarks/captioning_quality.py                             # all decoders, more than an hour on 2 CPU cores
    python benchmarks/captioning_quality.py --decoders attention lstm   # some of them
    python benchmarks/captioning_quality.py --decoders attention --designs wordings photographs three --seeds 1
    python benchmarks/captioning_quality.py --table                     # what was measured, in Markdown

Every run is ``python experiments/captioning.py`` with options that stand below, in a folder of its own under
runs/captioning_quality; the same command again makes those that are not finished. Rows go to
benchmarks/results/captioning-DEVICE.jsonl, one a run. A seed draws scenes, parameters and batches.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from harness import RESULTS, device_name, environment
from quality_runs import ROOT, read_rows, results_of, write_row

from jaxseq import training

RUNS = ROOT / "runs" / "captioning_quality"

Name: TypeAlias = Literal["rnn", "lstm", "attention", "transformer"]
DECODERS: tuple[Name, ...] = get_args(Name)
Design: TypeAlias = Literal["default", "wordings", "photographs", "three"]
DESIGNS: dict[Design, list[str]] = {
    "default": [],
    "wordings": ["--references", "4"],
    "photographs": ["--contrast", "1.0"],
    "three": ["--objects", "1", "3", "--size", "40"],
}
"""Options of the scenes; all but the first are harder than the default."""

COLUMNS: dict[str, tuple[str, str, float]] = {
    "exact match, %": ("exact_match", ".1f", 100),
    "beam 4, %": ("beam_exact_match", ".1f", 100),
    "BLEU-4": ("bleu4", ".3f", 1),
    "CIDEr-D": ("cider", ".2f", 1),
    "objects, %": ("objects_accuracy", ".1f", 100),
    "attributes, %": ("attributes_accuracy", ".1f", 100),
    "relations, %": ("relations_accuracy", ".1f", 100),
    "attention / area": ("attention_over_area", ".1f", 1),
    "loss, teacher forced": ("teacher_forced_loss", ".3f", 1),
    "loss, free running": ("free_running_loss", ".3f", 1),
    "training, s": ("train_seconds", ".0f", 1),
    "training, images/s": ("train_images_per_second", ".0f", 1),
    "captioning, images/s": ("images_per_second", ".0f", 1),
}
"""Heads of the table: the name in results.json, the format and the scale."""


@dataclass(frozen=True)
class Options:
    """The decoders to run, the scenes, and the seeds."""

    decoders: tuple[Name, ...] = DECODERS
    """Decoders to train."""
    designs: tuple[Design, ...] = ("default",)
    """Designs of the scenes."""
    seeds: int = 3
    """Number of seeds, from 0."""
    table: bool = False
    """Only print what was measured."""


def main(options: Options) -> None:
    """Run, note, print."""
    file = RESULTS / f"captioning-{device_name()}.jsonl"
    cases = [] if options.table else itertools.product(range(options.seeds), options.designs, options.decoders)
    for seed, design, decoder in cases:
        write_row(file, run(decoder, design, seed), place)
    print(table(read_rows(file)))


def place(row: dict[str, Any]) -> tuple[int, int, int]:
    """The place of a row among all."""
    return list(DESIGNS).index(row["design"]), DECODERS.index(row["decoder"]), row["seed"]


def run(decoder: Name, design: Design, seed: int) -> dict[str, Any]:
    """The results of one run, which is made if it is not finished."""
    folder = RUNS / design / decoder / f"seed{seed}"
    chosen = ["--decoder", decoder, "--seed", str(seed), "--split-seed", str(seed), *DESIGNS[design]]
    results = results_of("captioning.py", chosen, folder)
    return {"design": design, "decoder": decoder, "seed": seed, **results, **environment()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Every design and decoder in Markdown: the values of the seeds, and the signatures of the scores."""
    heads = ["scenes", "decoder", "parameters", *COLUMNS]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for design, decoder in dict.fromkeys((row["design"], row["decoder"]) for row in rows):
        own = [row for row in rows if (row["design"], row["decoder"]) == (design, decoder)]
        cells = [design, decoder, f"{own[0]['parameters']:,}"]
        for name, form, scale in COLUMNS.values():
            cells.append(", ".join(format(scale * row[name], form) for row in own if name in row) or "-")
        lines.append(f"| {' | '.join(cells)} |")
    names = [f"{score}_signature" for score in ("exact_match", "bleu", "cider")]
    return "\n".join([*lines, "", *dict.fromkeys(row[name] for row in rows for name in names)])


if __name__ == "__main__":
    training.run_cli(main, Options, __doc__, resumable=False)
