"""Terminal output: a summary of devices and parameters at the start, then one line of progress."""

import sys
from collections.abc import Mapping
from typing import Any, TextIO, cast

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from jaxseq.terminal import Output, escape_controls
from jaxseq.training.processes import is_primary
from jaxseq.training.state import ParameterInfo
from jaxseq.typing import PyTree

MAX_TABLE_ROWS = 24


def format_devices(state: PyTree) -> str:
    """The devices that hold a state, those that are left, and the version of jax, in one line."""
    arrays = [leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array)]
    used: set[Any] = {device for leaf in arrays for device in leaf.sharding.device_set} or set(jax.devices()[:1])
    kinds = ", ".join(sorted({device.device_kind for device in used}))
    count = f"{len(used)} x " if len(used) > 1 else ""
    rest = len(jax.devices()) - len(used)
    unused = f"; {rest} more not used" if rest else ""
    return f"device: {count}{next(iter(used)).platform} ({kinds}){unused}, jax {jax.__version__}"


def format_parameters(table: list[ParameterInfo]) -> list[str]:
    """The total and the parameter table; a long table is cut to its largest rows."""
    shown = table
    if len(table) > MAX_TABLE_ROWS:
        largest = sorted(table, key=lambda row: -row.size)[:MAX_TABLE_ROWS]
        shown = [row for row in table if row in largest]
    width = max((len(row.name) for row in shown), default=0)
    lines = [
        f"  {row.name:<{width}}  {row.size:>12,}  {'x'.join(map(str, row.shape)) or 'scalar'}  {row.dtype}"
        for row in shown
    ]
    if len(shown) < len(table):
        lines.append(f"  and {len(table) - len(shown)} smaller ones")
    return [f"parameters: {sum(row.size for row in table):,} in {len(table)} arrays", *lines]


def format_duration(seconds: float) -> str:
    """``1:02:03`` or ``2:03``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def format_progress(row: Mapping[str, Any], steps_left: int) -> str:
    """Loss, speed and remaining time of a metrics row, in one line."""
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
        parts.append(f"ETA {format_duration(steps_left / row['steps_per_second'])}")
    return "  ".join(parts)


class ProgressDisplay:
    """A live progress bar on a terminal; elsewhere one printed line for each log row. Process 0 alone prints."""

    def __init__(self, total_steps: int):
        self.total_steps = total_steps
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._streams = sys.stdout, sys.stderr

    def start(self, step: int) -> None:
        """Show the bar, if stdout is a terminal."""
        if is_primary() and sys.stdout.isatty():
            columns = (
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(24),
                TextColumn("{task.description}"),
            )
            self._streams = sys.stdout, sys.stderr
            own = cast(TextIO, sys.stdout.unescaped) if isinstance(sys.stdout, Output) else None
            self._bar = Progress(*columns, console=Console(file=own))
            self._task = self._bar.add_task("compiling", total=self.total_steps, completed=step)
            self._bar.start()  # from here on rich prints what is written to the streams
            if isinstance(self._streams[0], Output):
                sys.stdout = cast(TextIO, Output(sys.stdout, "standard output", escape=True))
                sys.stderr = cast(TextIO, Output(sys.stderr, "standard error", escape=True))

    def update(self, step: int) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        """Show a metrics row."""
        text = format_progress(row, self.total_steps - step)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif is_primary():
            width = len(str(self.total_steps))
            print(f"step {step:>{width}}/{self.total_steps}  {text}", flush=True)

    def print(self, text: str) -> None:
        """Print a separate line."""
        if self._bar is not None:
            self._bar.console.print(escape_controls(text), markup=False, highlight=False)
        elif is_primary():
            print(text, flush=True)

    def close(self) -> None:
        """Stop updating; the last line stays visible."""
        if self._bar is not None:
            self._bar.stop()
            sys.stdout, sys.stderr = self._streams
