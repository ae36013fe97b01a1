"""Finished runs of an experiment as rows of a file of results, one JSON line each."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]


def read_rows(file: Path) -> list[Row]:
    """The rows measured so far."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def write_row(file: Path, row: Row, place: Callable[[Row], Any]) -> None:
    """Put a row at its place, instead of an earlier one of the same place."""
    rows = sorted([*(other for other in read_rows(file) if place(other) != place(row)), row], key=place)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def results_of(script: str, options: Sequence[str], folder: Path) -> Row:
    """The results of a run folder, which ``experiments/SCRIPT`` makes with these options if it is not finished."""
    if not (folder / "results.json").exists():
        command = [sys.executable, f"experiments/{script}", *options, "--run", str(folder)]
        subprocess.run(command, cwd=ROOT, check=True)
    return json.loads((folder / "results.json").read_text())
