"""The folder of a run's checkpoints: which steps are complete in it, which step is the best, and which are deleted.

The ``meta`` of a checkpoint may hold an object ``best`` with the ``step`` of the best checkpoint up to its own. It is
verified as a part of the manifest. The best steps of all checkpoints that are kept are kept, too: whichever checkpoint
a run resumes from, the one that was the best until then is there.
"""

import contextlib
import os
import re
import shutil
from collections.abc import Set
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from jaxseq.files import JSON
from jaxseq.training.errors import CheckpointError
from jaxseq.training.manifest import Body, CorruptedError, read_manifest

MANIFEST = "manifest.json"
ARRAYS = "arrays"
WRITING = ".writing"
BEST = "best"
"""The key of ``meta`` under which the best step is stored."""
_NAME = re.compile(r"(\d{8,})(?:\.(\d+))?")


StepChoice: TypeAlias = int | Literal["latest", "best"]
"""A step, the newest valid checkpoint, or the best one that the run has recorded (``train.best_metric``)."""


class Entry(NamedTuple):
    """A complete checkpoint. A step that is saved again gets the next generation, and the older folder is deleted."""

    step: int
    generation: int
    name: str


def entries(folder: Path) -> list[Entry]:
    """The complete checkpoints in a folder, oldest first; they are not verified."""
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    matches = [match for name in names if (match := _NAME.fullmatch(name))]
    return sorted(Entry(int(m.group(1)), int(m.group(2) or 0), m.group(0)) for m in matches)


def make_entry(folder: Path, step: int) -> Entry:
    """Make the folder in which a step is written; delete what earlier attempts have left."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"*{WRITING}"):
        shutil.rmtree(leftover, ignore_errors=True)
    generation = 1 + max((e.generation for e in entries(folder) if e.step == step), default=-1)
    name = f"{step:08d}" + (f".{generation}" if generation else "")
    (folder / (name + WRITING)).mkdir()
    return Entry(step, generation, name)


def read_entry(folder: Path, entry: Entry) -> Body:
    """The manifest's body of a checkpoint; raises CorruptedError if it is missing or damaged."""
    return read_manifest(folder / entry.name / MANIFEST, entry.step)


def best_step(meta: dict[str, JSON]) -> int | None:
    """The best step that the ``meta`` of a checkpoint names, or None."""
    best = meta.get(BEST)
    step = best.get("step") if isinstance(best, dict) else None
    return step if type(step) is int else None


def newest_best_step(folder: Path) -> int | None:
    """The best step that the newest checkpoint with a valid manifest names, or None."""
    for entry in entries(folder)[::-1]:
        with contextlib.suppress(CorruptedError):
            return best_step(read_entry(folder, entry)["meta"])
    return None


def find_entry(folder: Path, step: int | Literal["best"]) -> Entry | None:
    """The checkpoint of a step or the best one; None if there is no checkpoint at all.

    Raises:
        CheckpointError: there is no such step; the message lists the steps there are.
        ValueError: ``step`` is neither.
    """
    present = entries(folder)
    if not present:
        return None
    number = newest_best_step(folder) if step == "best" else step
    if number is None:
        raise CheckpointError(f"{folder} has no best checkpoint: train.best_metric was not set{listed(folder)}")
    if isinstance(number, bool) or not isinstance(number, int):
        raise ValueError(f'step must be an integer, "latest" or "best", not {step!r}')
    found = [entry for entry in present if entry.step == number]
    if not found:
        raise CheckpointError(f"{folder} has no checkpoint of step {number}{listed(folder)}")
    return found[-1]


def listed(folder: Path) -> str:
    """The steps in a folder, for the end of an error message."""
    return f"; there are checkpoints of the steps {', '.join(map(str, sorted({e.step for e in entries(folder)})))}"


def prune(folder: Path, newest: Entry, max_to_keep: int, damaged: Set[str]) -> None:
    """Delete checkpoints up to the newest, except the newest ``max_to_keep`` valid steps and the best of each of them.

    Args:
        folder: of the checkpoints.
        newest: the checkpoint that was just written.
        max_to_keep: the number of steps that are kept.
        damaged: names of checkpoints that did not verify.
    """
    older = [entry for entry in entries(folder) if entry <= newest]
    latest = {entry.step: entry for entry in older if entry.name not in damaged}
    kept = set(sorted(latest.values())[-max_to_keep:])
    for entry in sorted(kept):
        with contextlib.suppress(CorruptedError):
            best = best_step(read_entry(folder, entry)["meta"])
            kept |= {latest[best]} if best in latest else set()
    for entry in older:
        if entry not in kept:
            # Rename first: a partly deleted folder must not look like a checkpoint.
            doomed = folder / (entry.name + WRITING)
            with contextlib.suppress(OSError):
                os.rename(folder / entry.name, doomed)
                shutil.rmtree(doomed, ignore_errors=True)
