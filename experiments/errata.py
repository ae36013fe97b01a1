"""Compute the number behind each entry of docs/errata.md, and draw its figures.

    python -m jaxseq analyze errata --run runs/errata

Prints the numbers of each entry by name, and writes them to errata.json (grouped by entry) and results.json. Everything
is computed in float64 from fixed seeds, through the cores, layers and ops of jaxseq, in 40 seconds on one CPU core.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxseq import training
from jaxseq.pipelines.errata import ERRATA, compute_errata, draw_errata
from jaxseq.training import resumable_field


@dataclass(frozen=True)
class Config:
    """The run folder; the numbers have no options."""

    run: Path = resumable_field(Path("runs/errata"))
    """The run folder."""
    figures: bool = resumable_field(True)
    """Draw the figures."""


def main(config: Config) -> dict[str, Any]:
    """Compute, draw, report; returns the numbers by name."""
    with training.Run.open(config.run, config, fingerprint="fixed seeds") as run:
        start = time.perf_counter()

        def report_progress(name: str) -> None:
            print(f"{name}: {time.perf_counter() - start:.1f} s", flush=True)

        numbers = compute_errata(report_progress)
        groups = {
            name: {key: value for key, value in numbers.items() if key.startswith(f"{name.lower()}_")}
            for name in ERRATA
        }
        run.write("errata.json", groups)
        run.write_results(numbers)
        figures = {}
        if config.figures:
            (run.path / "figures").mkdir(exist_ok=True)
            figures = draw_errata(run.path / "figures")
            report_progress("figures")
        table = as_table(groups)
        report = training.write_report(run, title="Errata of course notes", samples=[table], figures=figures)
    print(f"{table}\nreport: {report}")
    return numbers


def as_table(groups: dict[str, dict[str, float]]) -> str:
    """One line for each number: the entry, the name, the value."""
    lines = [f"{name:4} {key:52} {value:.6g}" for name, numbers in groups.items() for key, value in numbers.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    training.run_cli(main, Config, __doc__)
