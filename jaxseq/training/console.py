"""What the user sees: what runs on what, at once; then one line of progress."""

import sys
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from jaxseq.training.state import Parameter

LONGEST_TABLE = 24


def describe_devices() -> str:
    """The devices and the version of jax, in a line."""
    devices = jax.devices()
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    count = f"{len(devices)} x " if len(devices) > 1 else ""
    return f"device: {count}{devices[0].platform} ({kinds}), jax {jax.__version__}"


def describe_parameters(table: list[Parameter]) -> list[str]:
    """The parameter table, its largest rows if it is long, and the total."""
    shown = table
    if len(table) > LONGEST_TABLE:
        largest = sorted(table, key=lambda row: -row.size)[:LONGEST_TABLE]
        shown = [row for row in table if row in largest]
    width = max((len(row.name) for row in shown), default=0)
    lines = [
        f"  {row.name:<{width}}  {row.size:>12,}  {'x'.join(map(str, row.shape)) or 'scalar'}  {row.dtype}"
        for row in shown
    ]
    if len(shown) < len(table):
        lines.append(f"  and {len(table) - len(shown)} smaller ones")
    return [f"parameters: {sum(row.size for row in table):,} in {len(table)} arrays", *lines]


def describe_seconds(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def describe_progress(row: dict[str, Any], left: int) -> str:
    """Loss, speed and time left of a metrics row, in a line."""
    parts = []
    if row.get("loss") is not None:
        parts.append(f"loss {row['loss']:.4f} ({row['bits_per_token']:.3f} bits)")
    if row.get("gradient_norm") is not None:
        parts.append(f"gradient {row['gradient_norm']:.3g}")
    if row.get("nonfinite"):
        parts.append(f"{row['nonfinite']} not finite")
    if row.get("tokens_per_second"):
        parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
    if row.get("steps_per_second"):
        parts.append(f"ETA {describe_seconds(left / row['steps_per_second'])}")
    return "  ".join(parts)


class ProgressLine:
    """A live line on a terminal; elsewhere a plain line for each report."""

    def __init__(self, total: int, step: int):
        self.total = total
        self._progress: Progress | None = None
        self._task = TaskID(0)
        if sys.stdout.isatty():
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(24),
                TextColumn("{task.description}"),
            )
            self._progress = Progress(*columns, console=Console())
            self._task = self._progress.add_task("compiling", total=total, completed=step)
            self._progress.start()

    def step(self, step: int) -> None:
        """Move the bar."""
        if self._progress is not None:
            self._progress.update(self._task, completed=step)

    def report(self, step: int, row: dict[str, Any]) -> None:
        """Show a metrics row."""
        text = describe_progress(row, self.total - step)
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=text)
        else:
            width = len(str(self.total))
            print(f"step {step:>{width}}/{self.total}  {text}", flush=True)

    def note(self, text: str) -> None:
        """A line of its own."""
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            print(text, flush=True)

    def close(self) -> None:
        """Leave the line as it is."""
        if self._progress is not None:
            self._progress.stop()
