"""Metrics: lines of JSON always, TensorBoard on request, anything else behind a protocol of three methods."""

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxseq.training.files import write_atomic


@runtime_checkable
class Writer(Protocol):
    """Where metrics go. A step is written once, in order, unless the run is taken back by :meth:`rewind`."""

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the metrics of a step."""

    def rewind(self, step: int) -> None:
        """Forget what comes after a step: the run goes on from there."""

    def close(self) -> None:
        """Nothing more will come."""


class JsonLines:
    """One JSON object a line, flushed at once. What is not finite is written as null."""

    def __init__(self, file: str | os.PathLike):
        self.file = Path(file)
        self._failed = False

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Append ``{"step": step, ...}``. A full disk is warned of once and costs the lines that do not fit."""
        row = {"step": step} | {name: _plain(value) for name, value in metrics.items()}
        try:
            with open(self.file, "a", encoding="utf-8") as stream:
                # After a failure the last line may be torn: an empty line keeps the next one whole.
                stream.write("\n" * self._failed + json.dumps(row) + "\n")
            self._failed = False
        except OSError as error:
            if not self._failed:
                warnings.warn(f"{self.file} was not written ({error}); training goes on", stacklevel=2)
            self._failed = True

    def rewind(self, step: int) -> None:
        """Drop the lines past ``step``, and a line torn by a crash."""
        if not self.file.exists():
            return
        lines = self.file.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        kept = "".join(line for line in lines if (row := _parse(line)) is not None and row["step"] <= step)
        if kept != "".join(lines):
            write_atomic(self.file, kept)

    def close(self) -> None:
        """Every line is already in the file."""


def read_json_lines(file: str | os.PathLike) -> list[dict[str, Any]]:
    """The rows of a file; an absent file has none, and a torn last line is left out."""
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [row for line in lines if (row := _parse(line)) is not None]


def _parse(line: str) -> dict[str, Any] | None:
    if not line.endswith("\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _plain(value: Any) -> Any:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


class TensorBoard:
    """Scalars for TensorBoard; raises ImportError with the cure where tensorboardX is not installed."""

    def __init__(self, folder: str | os.PathLike):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            raise ImportError("TensorBoard needs tensorboardX: pip install 'jaxseq[tensorboard]'") from None
        self._open = lambda purge: SummaryWriter(str(folder), purge_step=purge)
        self._writer: Any = None

    def write(self, step: int, metrics: dict[str, Any]) -> None:
        """Record the scalars; text and missing values are left out."""
        self._writer = self._writer or self._open(None)
        for name, value in metrics.items():
            number = _plain(value)
            if isinstance(number, int | float):
                self._writer.add_scalar(name, number, step)
        self._writer.flush()

    def rewind(self, step: int) -> None:
        """Begin a new event file that hides what the earlier ones hold past ``step``."""
        self.close()
        self._writer = self._open(step + 1)

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class Window:
    """What happened since the last log line: means over the steps, and running counts.

    It is plain JSON (:attr:`content`), saved with each checkpoint, so that a resumed run logs the same
    numbers.
    """

    LATEST = ("learning_rate", "nonfinite")
    COUNTS = ("updates", "clipped")
    SILENT = ("skipped", "nonfinite_in_row")

    def __init__(self, content: dict[str, Any] | None = None):
        self.content = content or {"sums": {}, "numbers": {}, "latest": {}, "counts": {}, "tokens": 0}

    def add(self, metrics: dict[str, Any], tokens: int) -> None:
        """Take in one step. Values that are not finite do not enter the means."""
        self.content["tokens"] += tokens
        for name, value in metrics.items():
            value = _plain(value)
            if value is None or name in self.SILENT:
                continue
            if name in self.LATEST or name in self.COUNTS:
                self.content["latest"][name] = value
            else:
                self.content["sums"][name] = self.content["sums"].get(name, 0.0) + value
                self.content["numbers"][name] = self.content["numbers"].get(name, 0) + 1

    @property
    def tokens(self) -> int:
        """Real positions trained on since the last line."""
        return self.content["tokens"]

    def finish(self) -> dict[str, Any]:
        """The summary; the next window begins."""
        latest, before = self.content["latest"], self.content["counts"]
        numbers = self.content["numbers"]
        row: dict[str, Any] = {name: total / numbers[name] for name, total in self.content["sums"].items()}
        row.setdefault("loss", None)
        row["bits_per_token"] = None if row["loss"] is None else row["loss"] / math.log(2)
        row |= {name: latest[name] for name in self.LATEST if name in latest}
        if "updates" in latest:
            updates = latest["updates"] - before.get("updates", 0)
            clipped = latest["clipped"] - before.get("clipped", 0)
            row["clipped_fraction"] = clipped / updates if updates else 0.0
        counts = {name: latest[name] for name in self.COUNTS if name in latest}
        self.content = {"sums": {}, "numbers": {}, "latest": {}, "counts": counts, "tokens": 0}
        return row
