"""Average precision of the detectors of ``experiments/detection.py``: a table of docs/detection.md, three seeds.

    python benchmarks/detection_quality.py                          # all detectors, most of an hour on 2 CPU cores
    python benchmarks/detection_quality.py --detectors rcnn --seeds 1
    python benchmarks/detection_quality.py --table                  # what was measured, in Markdown

Every run is ``python experiments/detection.py`` with options that stand below, in a folder of its own under
runs/detection_quality; the same command again makes those that are not finished. Rows go to
benchmarks/results/detection_quality-DEVICE.jsonl, one a run. A seed draws parameters, batches and regions; the scenes
and their proposals are the same.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from harness import RESULTS, device_name, environment
from quality_runs import ROOT, read_rows, results_of, write_row

from jaxseq import training

RUNS = ROOT / "runs" / "detection_quality"

Name: TypeAlias = Literal["rcnn", "fast_rcnn", "fast_rcnn_max_pool"]
DETECTORS: dict[Name, list[str]] = {
    "rcnn": ["--model", "rcnn"],
    "fast_rcnn": ["--model", "fast_rcnn"],
    "fast_rcnn_max_pool": ["--model", "fast_rcnn", "--pooling", "roi_max_pool"],
}

COLUMNS: dict[str, tuple[str, str]] = {
    "AP50": ("ap50", ".3f"),
    "AP": ("ap", ".3f"),
    "AP75": ("ap75", ".3f"),
    "VOC AP": ("voc_ap", ".3f"),
    "VOC AP, 11-point": ("voc_ap_11_point", ".3f"),
    "training, s": ("train_seconds", ".0f"),
    "linear stages, s": ("linear_seconds", ".0f"),
    "detection without proposals, images/s": ("images_per_second", ".1f"),
}
"""Heads of the table: the name in results.json and the format."""


@dataclass(frozen=True)
class Options:
    """The detectors to run, and the seeds."""

    detectors: tuple[Name, ...] = get_args(Name)
    """Detectors to train."""
    seeds: int = 3
    """Number of seeds, from 0."""
    table: bool = False
    """Only print what was measured."""


def main(options: Options) -> None:
    """Run, note, print."""
    file = RESULTS / f"detection_quality-{device_name()}.jsonl"
    for seed, name in [] if options.table else itertools.product(range(options.seeds), options.detectors):
        write_row(file, run(name, seed), place)
    print(table(read_rows(file)))


def place(row: dict[str, Any]) -> tuple[int, int]:
    """The place of a row among all."""
    return list(DETECTORS).index(row["detector"]), row["seed"]


def run(name: Name, seed: int) -> dict[str, Any]:
    """The results of one run, which is made if it is not finished."""
    folder = RUNS / name / f"seed{seed}"
    results = results_of("detection.py", [*DETECTORS[name], "--seed", str(seed)], folder)
    return {"detector": name, "seed": seed, **results, **environment()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Every detector in Markdown: the values of the seeds, the proposals, and the signatures of the scores."""
    heads = ["detector", "parameters", *COLUMNS]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name in dict.fromkeys(row["detector"] for row in rows):
        own = [row for row in rows if row["detector"] == name]
        cells = [name, f"{own[0]['parameters']:,}"]
        cells += [
            ", ".join(format(row[key], form) for row in own if key in row) or "-" for key, form in COLUMNS.values()
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for row in rows[:1]:
        recall = f"{row['proposal_recall50']:.1%} of the objects at IoU 0.5 and {row['proposal_recall70']:.1%} at 0.7"
        lines += ["", f"{row['train_images']:,} images for training, {row['test_images']:,} for the test"]
        lines += [f"{row['proposals_per_image']:.0f} proposals an image cover {recall}"]
    return "\n".join([*lines, "", *dict.fromkeys(row["coco_signature"] for row in rows)])


if __name__ == "__main__":
    training.run_cli(main, Options, __doc__, resumable=False)
