"""Checkpoints written by Orbax, with verification and atomic replacement.

A checkpoint is a folder ``checkpoints/<step>`` with Orbax's arrays and a manifest (SHA-256, shape and dtype of every
leaf). It is written under a temporary name and renamed when it is complete. A checkpoint that does not match its
manifest is never loaded; the one before it is loaded instead. Nothing is deleted before a newer one is complete.

Several processes write one checkpoint together, on a file system that they share: Orbax writes each process's shards,
each process describes its own (``training.shards``), and process 0 completes the folder and renames it. It loads with
any number of devices and processes.
"""

import contextlib
import functools
import itertools
import logging
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxseq.files import JSON, sync_folder, utf8_path, write_json
from jaxseq.training.errors import CheckpointError, CheckpointMismatchError, CheckpointWarning, ProcessError
from jaxseq.training.manifest import (
    Body,
    CorruptedError,
    HostLeaf,
    LeafRow,
    describe_files,
    differences,
    host_copy,
    leaf_rows,
    make_manifest,
    one_line,
    read_manifest,
    verify_files,
    verify_leaf,
)
from jaxseq.training.processes import agreed, barrier, from_primary, is_primary
from jaxseq.training.shards import Snapshot, join_manifests, take_snapshot, verify_shards, write_process_manifest
from jaxseq.training.state import Ema, copy_buffers, eval_params, init_ema, replicated
from jaxseq.typing import Array, PyTree

MANIFEST = "manifest.json"
ARRAYS = "arrays"
WRITING = ".writing"
ORBAX_TIMEOUT_S = 300
"""How long a process waits for the parts of the others; after that the checkpoint has failed on all."""
_NAME = re.compile(r"(\d{8,})(?:\.(\d+))?")


class Restored(NamedTuple):
    """A loaded checkpoint: its step, its state, and the ``meta`` that was saved with it."""

    step: int
    state: PyTree
    meta: dict[str, JSON]


class _Entry(NamedTuple):
    step: int
    generation: int  # a step that is saved again gets the next number; the older folder is deleted afterwards
    name: str


class _Parameters(NamedTuple):
    """The fields of a train state from which the parameters for evaluation are computed."""

    params: PyTree
    ema: Ema | None


class Checkpoints:
    """The checkpoints in a folder; the newest ``max_to_keep`` are kept. One run may write at a time.

    All processes of a run make the same calls in the same order.
    """

    _saves = itertools.count()
    """Numbers the barriers, alike on all processes."""

    def __init__(self, folder: str | os.PathLike, *, max_to_keep: int = 3):
        if max_to_keep < 1:
            raise ValueError(f"max_to_keep must be at least 1, not {max_to_keep}")
        self.folder = Path(folder).absolute()
        self.max_to_keep = max_to_keep
        self._worker: ThreadPoolExecutor | None = None
        self._pending: tuple[int, Future] | None = None
        self._damaged: set[str] = set()

    def steps(self) -> list[int]:
        """The steps that are complete on disk, oldest first; they are verified only when loaded."""
        return sorted({entry.step for entry in self._entries()})

    def save(self, step: int, state: PyTree, meta: dict[str, JSON] | None = None) -> None:
        """Copy the state to the host, then write it in the background.

        Waits for the previous save, and warns (CheckpointWarning) if it failed. ``meta`` is any JSON object.
        """
        self.wait()
        if jax.process_count() > 1:
            write = self._begin_shared(step, state, dict(meta or {}))
        else:
            write = functools.partial(self._write, step, host_copy(state), dict(meta or {}))
        if self._worker is None:
            self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending = (step, self._worker.submit(write))

    def wait(self) -> bool:
        """Wait until the latest save is finished; returns False, with a warning, if it failed."""
        if self._pending is None:
            return True
        (step, future), self._pending = self._pending, None
        error = future.exception()
        if error is not None and not isinstance(error, Exception):
            raise error
        if agreed(error is None):
            return True
        error = error or ProcessError("another process failed")
        kept = f"the newest on disk is step {steps[-1]}" if (steps := self.steps()) else "there is none on disk yet"
        warnings.warn(
            f"the checkpoint of step {step} was not written ({one_line(error)}); {kept}",
            CheckpointWarning,
            stacklevel=3,
        )
        return False

    def close(self, *, alone: bool = False) -> None:
        """Wait for the latest save and end the background thread. The object can be used again.

        Args:
            alone: this process of several has failed, and the others train on: do not wait for their agreement.
        """
        if alone and jax.process_count() > 1:
            self._pending = None
        self.wait()
        if self._worker is not None:
            self._worker.shutdown()
            self._worker = None

    def restore_latest(self, template: PyTree) -> Restored | None:
        """The newest valid checkpoint, or None if there is none.

        A corrupted checkpoint is skipped with a CheckpointWarning that gives the reason.

        Args:
            template: a state of the same structure, shapes, dtypes and placement.

        Raises:
            CheckpointError: all checkpoints are corrupted.
            CheckpointMismatchError: a valid one belongs to another state.
        """
        self.wait()
        return self._newest(lambda entry: self._load(entry, template))

    def restore_parameters(self, template: PyTree) -> Restored | None:
        """``TrainState.eval_params`` of the newest valid checkpoint, or None if there is none.

        ``template`` has the structure, shapes and dtypes of the parameters (``jax.ShapeDtypeStruct`` leaves will do);
        an optimizer and a carry are not needed. Every file is verified, and nothing is written, so that a run can be
        read while it trains. Raises as ``restore_latest``.
        """
        self.wait()
        return self._newest(lambda entry: self._load_parameters(entry, template))

    def _newest(self, load: Callable[[_Entry], Restored]) -> Restored | None:
        """The newest entry that loads, with a warning for each that was skipped."""
        skipped: list[str] = []
        for entry in itertools.starmap(_Entry, from_primary(lambda: self._entries()[::-1])):
            restored, reason = None, None
            try:
                restored = load(entry)
            except CorruptedError as error:
                # Another run may have replaced it by a newer one.
                if jax.process_count() == 1 and not (self.folder / entry.name).exists():
                    return self._newest(load)
                reason = str(error)
            if not agreed(restored is not None) or restored is None:
                reason = reason or "another process cannot load it"
                skipped.append(f"step {entry.step} ({self.folder / entry.name}): {reason}")
                self._damaged.add(entry.name)
                continue
            for text in skipped:
                warnings.warn(
                    f"skipped the corrupted checkpoint of {text}; using step {restored.step}",
                    CheckpointWarning,
                    stacklevel=3,
                )
            return restored
        if skipped:
            raise CheckpointError(
                "every checkpoint is corrupted, and none was deleted:\n  "
                + "\n  ".join(skipped)
                + f"\nTo start again, move {self.folder} away."
            )
        return None

    def _entries(self) -> list[_Entry]:
        """Complete steps, oldest first."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        matches = [match for name in names if (match := _NAME.fullmatch(name))]
        return sorted(_Entry(int(m.group(1)), int(m.group(2) or 0), m.group(0)) for m in matches)

    def _write(self, step: int, leaves: list[HostLeaf], meta: dict[str, JSON]) -> None:
        """In the background thread: write under a temporary name, rename, then delete older checkpoints."""
        entry = self._make_folder(step)
        writing = self.folder / (entry.name + WRITING)
        try:
            with _quiet():
                write_arrays(writing / ARRAYS, leaves)
            self._complete(entry, leaf_rows(leaves), meta)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise
        self._prune(entry)

    def _make_folder(self, step: int) -> _Entry:
        """Make the folder in which a step is written; delete what earlier attempts have left."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob(f"*{WRITING}"):
            shutil.rmtree(leftover, ignore_errors=True)
        generation = 1 + max((e.generation for e in self._entries() if e.step == step), default=-1)
        name = f"{step:08d}" + (f".{generation}" if generation else "")
        (self.folder / (name + WRITING)).mkdir()
        return _Entry(step, generation, name)

    def _complete(self, entry: _Entry, rows: dict[str, LeafRow], meta: dict[str, JSON]) -> None:
        """Write the manifest and rename the folder."""
        writing = self.folder / (entry.name + WRITING)
        files = describe_files(writing / ARRAYS)
        write_json(writing / MANIFEST, make_manifest(entry.step, rows, files, meta))
        sync_folder(writing)
        os.rename(writing, self.folder / entry.name)
        sync_folder(self.folder)

    def _begin_shared(self, step: int, state: PyTree, meta: dict[str, JSON]) -> Callable[[], None]:
        """With several processes, in the main thread: copy the arrays; returns the rest, for the background thread."""
        entry = _Entry(*from_primary(lambda: self._make_folder(step)))
        snapshot = take_snapshot(state)
        tree = {_slot(name): array for name, array in snapshot.arrays.items() if array.size}
        handler = ocp.PyTreeCheckpointHandler()
        saver = ocp.AsyncCheckpointer(handler, async_options=ocp.options.AsyncOptions(timeout_secs=ORBAX_TIMEOUT_S))
        failed: Exception | None = None
        try:
            with _quiet():
                saver.save(self.folder / (entry.name + WRITING) / ARRAYS, args=ocp.args.PyTreeSave(tree))
        except Exception as error:
            failed = error
        return functools.partial(self._finish_shared, entry, snapshot, saver, failed, meta, next(self._saves))

    def _finish_shared(
        self,
        entry: _Entry,
        snapshot: Snapshot,
        saver: ocp.AsyncCheckpointer,
        failed: Exception | None,
        meta: dict[str, JSON],
        number: int,
    ) -> None:
        """In the background thread: all processes come to both barriers, whatever fails before."""
        writing = self.folder / (entry.name + WRITING)
        try:
            with _quiet():
                saver.wait_until_finished()
                saver.close()
            write_process_manifest(writing, snapshot)
        except Exception as error:
            failed = failed or error
        barrier(f"jaxseq: checkpoint {number} of step {entry.step} written")
        if is_primary():
            try:
                self._complete(entry, join_manifests(writing, snapshot, jax.process_count()), meta)
                self._prune(entry)
            except Exception as error:
                failed = failed or error
                shutil.rmtree(writing, ignore_errors=True)
        barrier(f"jaxseq: checkpoint {number} of step {entry.step} renamed")
        if failed is not None:
            raise failed

    def _prune(self, newest: _Entry) -> None:
        """Delete the steps before the newest ``max_to_keep`` valid ones, and those that the newest replaces."""
        older = [entry for entry in self._entries() if entry <= newest]
        valid = [entry for entry in older if entry.name not in self._damaged]
        latest = {entry.step: entry for entry in valid}
        kept = set(sorted(latest.values())[-self.max_to_keep :])
        for entry in older:
            if entry not in kept:
                # Rename first: a partly deleted folder must not look like a checkpoint.
                doomed = self.folder / (entry.name + WRITING)
                with contextlib.suppress(OSError):
                    os.rename(self.folder / entry.name, doomed)
                    shutil.rmtree(doomed, ignore_errors=True)

    def _load(self, entry: _Entry, template: PyTree) -> Restored:
        return self._load_leaves(entry, read_manifest(self.folder / entry.name / MANIFEST, entry.step), template)

    def _load_parameters(self, entry: _Entry, template: PyTree) -> Restored:
        """Load the parameters and their average, if there is one, and no other leaves of the state."""
        body = read_manifest(self.folder / entry.name / MANIFEST, entry.step)
        rows = {name: row for name, row in body["leaves"].items() if name.startswith((".params", ".ema"))}
        ema = jax.eval_shape(init_ema, template) if any(name.startswith(".ema") for name in rows) else None
        body["leaves"] = rows
        step, state, meta = self._load_leaves(entry, body, _Parameters(template, ema))
        return Restored(step, eval_params(*state), meta)

    def _load_leaves(self, entry: _Entry, body: Body, template: PyTree) -> Restored:
        """Load the leaves that the body has rows of; they and all files are verified."""
        folder = self.folder / entry.name
        different = differences(body, template)
        names = [name for name in body["leaves"] if name.startswith(".ema")]
        if names and not any(name.startswith(".ema.") for name in names):
            different.insert(0, ".ema: the average of an older version, which contains the initial parameters")
        if different:
            raise CheckpointMismatchError(
                f"the checkpoint of step {entry.step} in {self.folder} belongs to another state:\n  "
                + "\n  ".join(different[:20] + ([f"and {len(different) - 20} more"] if len(different) > 20 else []))
            )
        verify_files(folder / ARRAYS, body["files"])
        try:
            with _quiet():
                arrays = read_arrays(folder / ARRAYS, body["leaves"])
        except Exception as error:
            raise CorruptedError(f"its arrays cannot be read ({one_line(error)})") from None
        for name, row in body["leaves"].items():
            verify_leaf(name, arrays[name], row)
            verify_shards(name, arrays[name], row.get("shards", []))
        paths, treedef = jax.tree_util.tree_flatten_with_path(template)
        leaves = [_place(arrays[jax.tree_util.keystr(path)], leaf) for path, leaf in paths]
        return Restored(entry.step, jax.tree.unflatten(treedef, leaves), body["meta"])


def write_arrays(folder: Path, leaves: list[HostLeaf]) -> None:
    """Write with Orbax. Empty arrays, which Orbax rejects, are recorded in the manifest alone."""
    tree = {_slot(leaf.name): leaf.value for leaf in leaves if leaf.value.size}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer, utf8_path(folder) as named:
        checkpointer.save(named, args=ocp.args.PyTreeSave(tree))


def read_arrays(folder: Path, rows: dict[str, LeafRow]) -> dict[str, np.ndarray]:
    """The leaves of a manifest's rows by name, as NumPy arrays; the rows may be a subset of what was written."""
    tree = {_slot(name): ocp.RestoreArgs(restore_type=np.ndarray) for name, row in rows.items() if _filled(row)}
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer, utf8_path(folder) as named:
        stored = checkpointer.restore(
            named, args=ocp.args.PyTreeRestore(item=tree, restore_args=tree, partial_restore=True)
        )
    empty = {name: np.empty(row["shape"], jnp.dtype(row["dtype"])) for name, row in rows.items() if not _filled(row)}
    return empty | {name: stored[_slot(name)] for name, row in rows.items() if _filled(row)}


def _filled(row: LeafRow) -> bool:
    return 0 not in row["shape"]


def _slot(name: str) -> str:
    """A leaf's name with characters that file systems accept; distinct names stay distinct."""
    return "".join(c if c.isalnum() and c.isascii() else f"_{ord(c):x}_" for c in name) or "leaf"


def _place(array: np.ndarray, template: PyTree) -> Array | np.ndarray | int | float:
    """A copy that JAX owns, so that it can be donated, with the type and sharding of the template's leaf."""
    if isinstance(template, jax.ShapeDtypeStruct):
        return jnp.array(array, copy=True)
    if not isinstance(template, jax.Array):
        return array if isinstance(template, np.ndarray) else type(template)(array[()])
    key = jax.dtypes.issubdtype(template.dtype, jax.dtypes.prng_key)
    sharding = template.sharding
    if len(sharding.device_set) == 1:
        value = jnp.array(array, copy=True)
    else:
        sharding = replicated(sharding) if key else sharding
        value = copy_buffers(jax.make_array_from_callback(array.shape, sharding, lambda index: array[index]))
    return jax.random.wrap_key_data(value, impl=jax.random.key_impl(template)) if key else value


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the log lines of Orbax and TensorStore; errors are raised."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
