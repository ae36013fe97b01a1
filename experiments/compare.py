"""Compare run folders of any experiments, finished or still training: curves overlaid, tables, the fields that differ.

    python experiments/compare.py runs/*
    python experiments/compare.py runs/gru runs/lstm --out runs/comparison

The folders are only read. A run is named by the settings in which the runs of its experiment differ. Folders that are
no runs are named and skipped. The tables are printed; --out FOLDER also writes comparison.md, comparison.json,
comparison.png and comparison.html (one self-contained file). For means and intervals over seeds, see ablation.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from jaxseq import plotting, training
from jaxseq.files import write_atomic, write_json
from jaxseq.pipelines import run_comparison as comparison
from jaxseq.terminal import printable


@dataclass(frozen=True)
class Config:
    """The runs, and where the comparison is written."""

    runs: tuple[Path, ...]
    """Run folders; others are named and skipped."""
    out: Path | None = None
    """Folder for comparison.md, .json, .png and .html; by default the tables are printed alone."""
    title: str = "Comparison of runs"
    """The title of the tables and the page."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("no run folders to compare: give at least one, such as runs/*")


def main(config: Config) -> dict[str, Any]:
    """Read the runs, print the tables, write the files; returns the contents of comparison.json.

    Raises:
        RunFolderError: no folder is a run, or the output folder is a run's own.
    """
    if config.out is not None and (config.out / "config.json").exists():
        raise training.RunFolderError(f"out={config.out} is a run's own folder; a comparison needs another")
    runs, skipped = comparison.read_compared_runs(config.runs)
    names = comparison.differing_settings(runs)
    labels = comparison.run_labels(runs, names)
    tables = comparison.tables(runs, names)
    notes = [f"skipped: {printable(text)}" for text in skipped.values()]
    text = "\n".join([f"# {printable(config.title)}\n", *map(comparison.markdown, tables), *map("- {}".format, notes)])
    print(text, flush=True)
    report = training.to_json(comparison.as_json(runs, names, labels) | {"skipped": skipped}, "comparison")
    if config.out is None:
        return report
    config.out.mkdir(parents=True, exist_ok=True)
    write_json(config.out / "comparison.json", report)
    write_atomic(config.out / "comparison.md", text + "\n")
    panels, figures = comparison.curve_panels(runs, labels), dict[str, Path]()
    try:
        if panels:
            figures["Curves"] = plotting.draw_run_curves(panels, config.out / "comparison.png")
    except ImportError as error:
        print(f"no figure: {error}")
    page = training.write_tables(config.out / "comparison.html", config.title, tables, figures=figures, notes=notes)
    print(f"\nwritten: {page}")
    return report


if __name__ == "__main__":
    training.run_cli(main, tyro.conf.PositionalRequiredArgs[Config], __doc__, resumable=False)
