"""Checkpoints: Orbax behind one module, with what Orbax does not do itself.

A step is a folder ``checkpoints/<step>`` that appears by one rename, complete: Orbax's arrays and the
manifest (SHA-256, shape and dtype of every leaf). What does not verify against its manifest is never
loaded; the checkpoint before it is. Nothing is deleted before a newer checkpoint is complete.
"""

import contextlib
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxseq.training.errors import CheckpointError, CheckpointMismatchError, CheckpointWarning
from jaxseq.training.files import sync_folder, write_json
from jaxseq.training.manifest import (
    DamagedError,
    HostLeaf,
    describe_files,
    differences,
    host_copy,
    make_manifest,
    one_line,
    read_manifest,
    verify,
    verify_files,
)
from jaxseq.training.state import averaged, initial_average

MANIFEST = "manifest.json"
ARRAYS = "arrays"
WRITING = ".writing"
_NAME = re.compile(r"(\d{8,})(?:\.(\d+))?")


class Restored(NamedTuple):
    """What was loaded: the step, the state, and what was saved beside it."""

    step: int
    state: Any
    meta: dict[str, Any]


class _Entry(NamedTuple):
    step: int
    generation: int  # the same step saved again gets the next number; the older folder goes afterwards
    name: str


class _Parameters(NamedTuple):
    """The part of a train state that a model is made of; the names are the state's."""

    params: Any
    ema: Any


class Checkpoints:
    """The checkpoints in a folder; the newest ``keep`` are kept. One process may write at a time."""

    def __init__(self, folder: str | os.PathLike, *, keep: int = 3):
        if keep < 1:
            raise ValueError(f"keep must be at least 1, not {keep}")
        self.folder = Path(folder).absolute()
        self.keep = keep
        self._worker: ThreadPoolExecutor | None = None
        self._pending: tuple[int, Future] | None = None
        self._damaged: set[str] = set()

    def steps(self) -> list[int]:
        """The steps that are complete on disk, oldest first; whether they verify is seen on loading."""
        return sorted({entry.step for entry in self._entries()})

    def save(self, step: int, state: Any, meta: dict[str, Any] | None = None) -> None:
        """Copy the state to the host, then write it in the background.

        Waits for the save before, and warns (CheckpointWarning) if that one failed. ``meta`` is any JSON
        object.
        """
        self.wait()
        leaves = host_copy(state)
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = (step, self._worker.submit(self._write, step, leaves, dict(meta or {})))

    def wait(self) -> bool:
        """Wait until the latest save is over. False, and a warning, if it failed."""
        if self._pending is None:
            return True
        (step, future), self._pending = self._pending, None
        error = future.exception()
        if error is None:
            return True
        if not isinstance(error, Exception):
            raise error
        kept = f"the newest on disk is step {steps[-1]}" if (steps := self.steps()) else "there is none on disk yet"
        warnings.warn(
            f"the checkpoint of step {step} was not written ({one_line(error)}); {kept}",
            CheckpointWarning,
            stacklevel=3,
        )
        return False

    def close(self) -> None:
        """Wait, and end the background thread. The object can be used again."""
        self.wait()
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None

    def restore_latest(self, like: Any) -> Restored | None:
        """The newest checkpoint that verifies, or None where there is none.

        ``like`` is a state of the same structure, shapes, dtypes and placement. A checkpoint that does not
        verify is passed over with a CheckpointWarning that says why. Raises CheckpointError if none of
        several verifies, and CheckpointMismatchError if a sound one belongs to another state.
        """
        self.wait()
        return self._newest(lambda entry: self._load(entry, like))

    def restore_parameters(self, like: Any) -> Restored | None:
        """Of the newest checkpoint that verifies, what a finished model is: its ``TrainState.averaged``.

        ``like`` are parameters of the same structure, shapes and dtypes; ``jax.ShapeDtypeStruct`` will do. Neither
        an optimizer nor a carry need be made, and none of theirs is read, though every file is verified. Nothing is
        written, so that a run can be looked at while it trains. Raises as ``restore_latest``.
        """
        self.wait()
        return self._newest(lambda entry: self._load_parameters(entry, like))

    def _newest(self, load: Callable[[_Entry], Restored]) -> Restored | None:
        """The newest entry that loads; a warning for each that was passed over."""
        passed: list[str] = []
        for entry in reversed(self._entries()):
            try:
                restored = load(entry)
            except DamagedError as reason:
                if not (self.folder / entry.name).exists():  # another process has replaced it by a newer one
                    return self._newest(load)
                passed.append(f"step {entry.step} ({self.folder / entry.name}): {reason}")
                self._damaged.add(entry.name)
                continue
            for text in passed:
                warnings.warn(
                    f"passed over the checkpoint of {text}; going on from step {restored.step}",
                    CheckpointWarning,
                    stacklevel=3,
                )
            return restored
        if passed:
            raise CheckpointError(
                "no checkpoint verifies, and none was deleted:\n  "
                + "\n  ".join(passed)
                + f"\nTo begin anew, move {self.folder} away."
            )
        return None

    def _entries(self) -> list[_Entry]:
        """Complete steps, oldest first."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        matches = [match for name in names if (match := _NAME.fullmatch(name))]
        return sorted(_Entry(int(m.group(1)), int(m.group(2) or 0), m.group(0)) for m in matches)

    def _write(self, step: int, leaves: list[HostLeaf], meta: dict[str, Any]) -> None:
        """In the background thread: write beside, then rename, then delete what is no longer needed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for left in self.folder.glob(f"*{WRITING}"):
            shutil.rmtree(left, ignore_errors=True)
        entries = self._entries()
        generation = 1 + max((e.generation for e in entries if e.step == step), default=-1)
        name = f"{step:08d}" + (f".{generation}" if generation else "")
        writing = self.folder / (name + WRITING)
        try:
            writing.mkdir()
            with _quiet():
                write_arrays(writing / ARRAYS, leaves)
            files = describe_files(writing / ARRAYS)
            write_json(writing / MANIFEST, make_manifest(step, leaves, files, meta))
            sync_folder(writing)
            os.rename(writing, self.folder / name)
            sync_folder(self.folder)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise
        self._prune(_Entry(step, generation, name))

    def _prune(self, newest: _Entry) -> None:
        """Delete what is older than the newest ``keep`` sound steps, and what the newest replaces."""
        older = [entry for entry in self._entries() if entry <= newest]
        sound = [entry for entry in older if entry.name not in self._damaged]
        latest = {entry.step: entry for entry in sound}
        kept = set(sorted(latest.values())[-self.keep :])
        for entry in older:
            if entry not in kept:
                # Renamed first: a folder half deleted must not look like a step.
                doomed = self.folder / (entry.name + WRITING)
                with contextlib.suppress(OSError):
                    os.rename(self.folder / entry.name, doomed)
                    shutil.rmtree(doomed, ignore_errors=True)

    def _load(self, entry: _Entry, like: Any) -> Restored:
        return self._load_leaves(entry, read_manifest(self.folder / entry.name / MANIFEST, entry.step), like)

    def _load_parameters(self, entry: _Entry, like: Any) -> Restored:
        """The parameters, and their average where there is one; a state's other leaves are left where they are."""
        body = read_manifest(self.folder / entry.name / MANIFEST, entry.step)
        rows = {name: row for name, row in body["leaves"].items() if name.startswith((".params", ".ema"))}
        average = jax.eval_shape(initial_average, like) if any(name.startswith(".ema") for name in rows) else None
        restored = self._load_leaves(entry, body | {"leaves": rows}, _Parameters(like, average))
        return restored._replace(state=averaged(*restored.state))

    def _load_leaves(self, entry: _Entry, body: dict[str, Any], like: Any) -> Restored:
        """The leaves that the manifest's body has rows of, each of them verified, and every file."""
        folder = self.folder / entry.name
        unlike = differences(body, like)
        if unlike:
            raise CheckpointMismatchError(
                f"the checkpoint of step {entry.step} in {self.folder} belongs to another state:\n  "
                + "\n  ".join(unlike[:20] + ([f"and {len(unlike) - 20} more"] if len(unlike) > 20 else []))
            )
        verify_files(folder / ARRAYS, body["files"])
        try:
            with _quiet():
                arrays = read_arrays(folder / ARRAYS, body["leaves"])
        except Exception as error:
            raise DamagedError(f"its arrays cannot be read ({one_line(error)})") from None
        for name, row in body["leaves"].items():
            verify(name, arrays[name], row)
        paths, treedef = jax.tree_util.tree_flatten_with_path(like)
        leaves = [_place(arrays[jax.tree_util.keystr(path)], leaf) for path, leaf in paths]
        return Restored(entry.step, jax.tree.unflatten(treedef, leaves), body["meta"])


def write_arrays(folder: Path, leaves: list[HostLeaf]) -> None:
    """Write through Orbax. Empty arrays, which it refuses, stand in the manifest alone."""
    tree = {_slot(leaf.name): leaf.value for leaf in leaves if leaf.value.size}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        checkpointer.save(folder, args=ocp.args.PyTreeSave(tree))


def read_arrays(folder: Path, rows: dict[str, Any]) -> dict[str, np.ndarray]:
    """The leaves of a manifest's rows by name, as NumPy arrays; they may be fewer than were written."""
    tree = {_slot(name): ocp.RestoreArgs(restore_type=np.ndarray) for name, row in rows.items() if _filled(row)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        stored = checkpointer.restore(
            folder, args=ocp.args.PyTreeRestore(item=tree, restore_args=tree, partial_restore=True)
        )
    empty = {name: np.empty(row["shape"], jnp.dtype(row["dtype"])) for name, row in rows.items() if not _filled(row)}
    return empty | {name: stored[_slot(name)] for name, row in rows.items() if _filled(row)}


def _filled(row: dict[str, Any]) -> bool:
    return 0 not in row["shape"]


def _slot(name: str) -> str:
    """A leaf's name as a file system and a key-value store like it; distinct names stay distinct."""
    return "".join(c if c.isalnum() and c.isascii() else f"_{ord(c):x}_" for c in name) or "leaf"


def _place(array: np.ndarray, like: Any) -> Any:
    """A copy that JAX owns (it will be donated), placed as ``like`` is; a key as a key, NumPy as NumPy."""
    if isinstance(like, jax.ShapeDtypeStruct):
        return jnp.array(array, copy=True)
    if not isinstance(like, jax.Array):
        return array if isinstance(like, np.ndarray) else type(like)(array[()])
    key = jax.dtypes.issubdtype(like.dtype, jax.dtypes.prng_key)
    value = jnp.array(array, copy=True)
    value = jax.random.wrap_key_data(value, impl=jax.random.key_impl(like)) if key else value
    return value if len(like.sharding.device_set) == 1 else jax.device_put(value, like.sharding)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's and TensorStore's own log lines; what matters is raised."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
