"""Metrics: JSON lines, and the summary between two log lines."""

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict

from jaxseq.files import JSON, parse_json, read_regular, write_atomic
from jaxseq.training.errors import CheckpointMismatchError

METRICS = "metrics.jsonl"
"""The file of a run's metrics."""


class JsonLinesWriter:
    """Appends one JSON object per line and flushes it; values that are not finite become null."""

    def __init__(self, file: str | os.PathLike):
        self.file = Path(file)
        self._failed = False

    def write(self, step: int, metrics: Mapping[str, object]) -> None:
        """Append ``{"step": step, ...}``. A full disk causes one warning and loses the lines that do not fit."""
        row = {"step": step} | {name: _to_plain(value) for name, value in metrics.items()}
        try:
            with open(self.file, "a", encoding="utf-8", opener=_open_no_link) as stream:
                # After a failure the last line may be incomplete: an empty line separates the next one from it.
                stream.write("\n" * self._failed + json.dumps(row) + "\n")
            self._failed = False
        except OSError as error:
            if not self._failed:
                warnings.warn(f"{self.file} was not written ({error}); training continues", stacklevel=2)
            self._failed = True

    def rewind(self, step: int) -> None:
        """Delete the lines after ``step``, and incomplete lines."""
        if not self.file.exists():
            return
        lines = _lines(self.file)
        kept = "".join(line for line in lines if (row := _parse(line)) is not None and row["step"] <= step)
        if kept != "".join(lines):
            write_atomic(self.file, kept)

    def sha256(self) -> str:
        """The SHA-256 of the file, in hexadecimal; of no bytes if there is no file."""
        return hashlib.sha256(read_regular(self.file) if self.file.exists() else b"").hexdigest()

    def close(self) -> None:
        """Do nothing: every line is already in the file."""


def _open_no_link(path: str, flags: int) -> int:
    """Open without following a link: the file that it names would be written."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def read_json_lines(file: str | os.PathLike) -> list[dict[str, JSON]]:
    """The rows of a file; none if it does not exist. Incomplete lines are ignored."""
    try:
        lines = _lines(Path(file))
    except FileNotFoundError:
        return []
    return [row for line in lines if (row := _parse(line)) is not None]


def _lines(file: Path) -> list[str]:
    """The lines of a file with their line feeds; other characters do not end a line."""
    return re.findall(r"[^\n]*\n|[^\n]+", read_regular(file).decode(errors="replace"))


def _parse(line: str) -> dict[str, JSON] | None:
    if not line.endswith("\n"):
        return None
    try:
        row = parse_json(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _to_plain(value: object) -> JSON:
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


class _Content(TypedDict):
    """The JSON state of a :class:`MetricAccumulator`, stored in checkpoints."""

    sums: dict[str, float]  # of weight * value
    weights: dict[str, float]
    latest: dict[str, int | float]
    counts: dict[str, int | float]
    tokens: int


class MetricAccumulator:
    """Averages the metrics of the steps since the last log line.

    The loss and its metrics are means over ``weight`` items of a step, and the row has ``sum(weight * value) /
    sum(weight)``: the mean over the items of all steps. The gradient norm is averaged over updates.

    Its state is plain JSON (:attr:`content`), saved with each checkpoint, so that a resumed run logs the same numbers.

    Raises:
        CheckpointMismatchError: the content was saved by an older version.
    """

    LATEST = ("learning_rate", "nonfinite")
    COUNTS = ("updates", "clipped")
    IGNORED = ("skipped", "nonfinite_in_row", "weight", "updated")

    def __init__(self, content: _Content | None = None):
        self.content = content or _empty({})
        if self.content.keys() != _Content.__annotations__.keys():
            raise CheckpointMismatchError(
                f"the metrics since the last log line were saved as {', '.join(self.content)} by an older version, "
                f"not as {', '.join(_Content.__annotations__)}"
            )

    def add(self, metrics: Mapping[str, object], tokens: int) -> None:
        """Add one step. Values that are not finite do not enter the means."""
        self.content["tokens"] += tokens
        weight, updated = (_to_plain(metrics.get(name, 1)) for name in ("weight", "updated"))
        for name, value in metrics.items():
            number = _to_plain(value)
            if number is None or name in self.IGNORED:
                continue
            if name in self.LATEST or name in self.COUNTS:
                self.content["latest"][name] = number
            elif share := float(updated if name == "gradient_norm" else max(weight or 0, 0)):
                self.content["sums"][name] = self.content["sums"].get(name, 0.0) + share * number
                self.content["weights"][name] = self.content["weights"].get(name, 0.0) + share

    @property
    def tokens(self) -> int:
        """Real positions since the last log line."""
        return self.content["tokens"]

    def flush(self) -> dict[str, int | float | None]:
        """Return the means, the latest learning rate and the fraction of clipped updates, and reset."""
        latest, before = self.content["latest"], self.content["counts"]
        weights = self.content["weights"]
        row: dict[str, int | float | None] = {
            name: total / weights[name] for name, total in self.content["sums"].items()
        }
        loss = row.setdefault("loss", None)
        row["bits_per_token"] = None if loss is None else loss / math.log(2)
        row |= {name: latest[name] for name in self.LATEST if name in latest}
        if "updates" in latest:
            updates = latest["updates"] - before.get("updates", 0)
            clipped = latest["clipped"] - before.get("clipped", 0)
            row["clipped_fraction"] = clipped / updates if updates else 0.0
        self.content = _empty({name: latest[name] for name in self.COUNTS if name in latest})
        return row


def _empty(counts: dict[str, int | float]) -> _Content:
    return {"sums": {}, "weights": {}, "latest": {}, "counts": counts, "tokens": 0}
