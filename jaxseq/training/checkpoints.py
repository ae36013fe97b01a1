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
import os
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import orbax.checkpoint as ocp

from jaxseq.files import JSON, sync_folder, write_json
from jaxseq.training.checkpoint_folder import (
    ARRAYS,
    MANIFEST,
    WRITING,
    Entry,
    StepChoice,
    entries,
    find_entry,
    listed,
    make_entry,
    newest_best_step,
    prune,
    read_entry,
)
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
    verify_files,
    verify_leaf,
)
from jaxseq.training.orbax_arrays import place, quiet, read_arrays, slot, write_arrays
from jaxseq.training.processes import agreed, barrier, from_primary, is_primary
from jaxseq.training.provenance import UNKNOWN, Provenance, provenance_differences, provenance_to_json
from jaxseq.training.shards import Snapshot, join_manifests, take_snapshot, verify_shards, write_process_manifest
from jaxseq.training.state import Ema, eval_params, init_ema
from jaxseq.typing import PyTree

ORBAX_TIMEOUT_S = 300
"""How long a process waits for the parts of the others; after that the checkpoint has failed on all."""


class Restored(NamedTuple):
    """A loaded checkpoint: its step, its state, and the ``meta`` that was saved with it."""

    step: int
    state: PyTree
    meta: dict[str, JSON]


class _Parameters(NamedTuple):
    """The fields of a train state from which the parameters for evaluation are computed."""

    params: PyTree
    ema: Ema | None


class Checkpoints:
    """The checkpoints in a folder; the newest ``max_to_keep`` and the best are kept. One run may write at a time.

    All processes of a run make the same calls in the same order.

    Args:
        folder: of the checkpoints.
        max_to_keep: the number of newest checkpoints kept.
        provenance: what the parameters belong to. It is stored with each checkpoint, and a checkpoint with another one
            is refused.
        accept_changes: load a checkpoint with another provenance, with a warning.
    """

    _saves = itertools.count()
    """Numbers the barriers, alike on all processes."""

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        max_to_keep: int = 3,
        provenance: Provenance = UNKNOWN,
        accept_changes: bool = False,
    ):
        if max_to_keep < 1:
            raise ValueError(f"max_to_keep must be at least 1, not {max_to_keep}")
        self.provenance, self.accept_changes = provenance, accept_changes
        self.folder = Path(folder).absolute()
        self.max_to_keep = max_to_keep
        self._worker: ThreadPoolExecutor | None = None
        self._pending: tuple[int, Future] | None = None
        self._damaged: set[str] = set()

    def steps(self) -> list[int]:
        """The steps that are complete on disk, oldest first; they are verified only when loaded."""
        return sorted({entry.step for entry in entries(self.folder)})

    def save(self, step: int, state: PyTree, meta: dict[str, JSON] | None = None) -> None:
        """Copy the state to the host, then write it in the background.

        Waits for the previous save, and warns (CheckpointWarning) if it failed. ``meta`` is any JSON object; the step
        that its ``best`` names (``training.checkpoint_folder``) is kept.
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

    def restore(self, template: PyTree, step: StepChoice) -> Restored | None:
        """The state of a step, ``"latest"`` or ``"best"``; None if there is no checkpoint.

        A step that is named, or the best one, is never replaced by another.

        Raises:
            CheckpointError: there is no such step, or it is corrupted; the message lists the steps there are.
            CheckpointMismatchError: it belongs to another state.
        """
        self.wait()
        return self._choose(step, lambda entry: self._load(entry, template))

    def restore_parameters(
        self, template: PyTree, *, step: StepChoice = "latest", averaged: bool = True
    ) -> Restored | None:
        """The parameters of a checkpoint, or None if there is none.

        ``template`` has the structure, shapes and dtypes of the parameters (``jax.ShapeDtypeStruct`` leaves will do);
        an optimizer and a carry are not needed. Every file is verified, and nothing is written, so that a run can be
        read while it trains. Raises as ``restore_latest`` and ``restore``.

        Args:
            template: the parameters.
            step: a step, ``"latest"`` or ``"best"``.
            averaged: their moving average where the run keeps one, as ``TrainState.eval_params``; if False, the
                parameters of the step itself.
        """
        self.wait()
        return self._choose(step, lambda entry: self._load_parameters(entry, template, averaged))

    def best_step(self) -> int | None:
        """The step of the best checkpoint that the newest one names (``meta["best"]["step"]``), or None."""
        return newest_best_step(self.folder)

    def newest_provenance(self) -> dict[str, JSON]:
        """The stored provenance of the newest checkpoint whose manifest is valid; empty if there is none."""
        for entry in entries(self.folder)[::-1]:
            with contextlib.suppress(CorruptedError):
                stored = read_entry(self.folder, entry).get("provenance")
                return stored if isinstance(stored, dict) else {}
        return {}

    def _choose(self, step: StepChoice, load: Callable[[Entry], Restored]) -> Restored | None:
        if step == "latest":
            return self._newest(load)
        found = from_primary(lambda: find_entry(self.folder, step))
        if found is None:
            return None
        entry, restored, reason = Entry(*found), None, "another process cannot load it"
        try:
            restored = load(entry)
        except CorruptedError as error:
            if jax.process_count() == 1 and not (self.folder / entry.name).exists():  # the run has replaced it
                return self._choose(step, load)
            reason = str(error)
        if agreed(restored is not None):
            return restored
        kind = "best checkpoint" if step == "best" else "checkpoint"
        raise CheckpointError(
            f"the {kind} (step {entry.step}) is corrupted: {reason} ({self.folder}){listed(self.folder)}"
        )

    def _newest(self, load: Callable[[Entry], Restored]) -> Restored | None:
        """The newest entry that loads, with a warning for each that was skipped."""
        skipped: list[str] = []
        for entry in itertools.starmap(Entry, from_primary(lambda: entries(self.folder)[::-1])):
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

    def _write(self, step: int, leaves: list[HostLeaf], meta: dict[str, JSON]) -> None:
        """In the background thread: write under a temporary name, rename, then delete older checkpoints."""
        entry = make_entry(self.folder, step)
        writing = self.folder / (entry.name + WRITING)
        try:
            with quiet():
                write_arrays(writing / ARRAYS, leaves)
            self._complete(entry, leaf_rows(leaves), meta)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            raise
        prune(self.folder, entry, self.max_to_keep, self._damaged)

    def _complete(self, entry: Entry, rows: dict[str, LeafRow], meta: dict[str, JSON]) -> None:
        """Write the manifest and rename the folder."""
        writing = self.folder / (entry.name + WRITING)
        files = describe_files(writing / ARRAYS)
        stored = provenance_to_json(self.provenance)
        write_json(writing / MANIFEST, make_manifest(entry.step, rows, files, meta, stored))
        sync_folder(writing)
        os.rename(writing, self.folder / entry.name)
        sync_folder(self.folder)

    def _begin_shared(self, step: int, state: PyTree, meta: dict[str, JSON]) -> Callable[[], None]:
        """With several processes, in the main thread: copy the arrays; returns the rest, for the background thread."""
        entry = Entry(*from_primary(lambda: make_entry(self.folder, step)))
        snapshot = take_snapshot(state)
        tree = {slot(name): array for name, array in snapshot.arrays.items() if array.size}
        handler = ocp.PyTreeCheckpointHandler()
        saver = ocp.AsyncCheckpointer(handler, async_options=ocp.options.AsyncOptions(timeout_secs=ORBAX_TIMEOUT_S))
        failed: Exception | None = None
        try:
            with quiet():
                saver.save(self.folder / (entry.name + WRITING) / ARRAYS, args=ocp.args.PyTreeSave(tree))
        except Exception as error:
            failed = error
        return functools.partial(self._finish_shared, entry, snapshot, saver, failed, meta, next(self._saves))

    def _finish_shared(
        self,
        entry: Entry,
        snapshot: Snapshot,
        saver: ocp.AsyncCheckpointer,
        failed: Exception | None,
        meta: dict[str, JSON],
        number: int,
    ) -> None:
        """In the background thread: all processes come to both barriers, whatever fails before."""
        writing = self.folder / (entry.name + WRITING)
        try:
            with quiet():
                saver.wait_until_finished()
                saver.close()
            write_process_manifest(writing, snapshot)
        except Exception as error:
            failed = failed or error
        barrier(f"jaxseq: checkpoint {number} of step {entry.step} written")
        if is_primary():
            try:
                self._complete(entry, join_manifests(writing, snapshot, jax.process_count()), meta)
                prune(self.folder, entry, self.max_to_keep, self._damaged)
            except Exception as error:
                failed = failed or error
                shutil.rmtree(writing, ignore_errors=True)
        barrier(f"jaxseq: checkpoint {number} of step {entry.step} renamed")
        if failed is not None:
            raise failed

    def _load(self, entry: Entry, template: PyTree) -> Restored:
        return self._load_leaves(entry, read_entry(self.folder, entry), template)

    def _load_parameters(self, entry: Entry, template: PyTree, averaged: bool) -> Restored:
        """Load the parameters and their average, if there is one, and no other leaves of the state."""
        body = read_entry(self.folder, entry)
        rows = {name: row for name, row in body["leaves"].items() if name.startswith((".params", ".ema"))}
        ema = jax.eval_shape(init_ema, template) if any(name.startswith(".ema") for name in rows) else None
        body["leaves"] = rows
        step, state, meta = self._load_leaves(entry, body, _Parameters(template, ema))
        return Restored(step, eval_params(*state) if averaged else state.params, meta)

    def _load_leaves(self, entry: Entry, body: Body, template: PyTree) -> Restored:
        """Load the leaves that the body has rows of; they and all files are verified."""
        folder = self.folder / entry.name
        self._check_provenance(entry, body)
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
            with quiet():
                arrays = read_arrays(folder / ARRAYS, body["leaves"])
        except Exception as error:
            raise CorruptedError(f"its arrays cannot be read ({one_line(error)})") from None
        for name, row in body["leaves"].items():
            verify_leaf(name, arrays[name], row)
            verify_shards(name, arrays[name], row.get("shards", []))
        paths, treedef = jax.tree_util.tree_flatten_with_path(template)
        leaves = [place(arrays[jax.tree_util.keystr(path)], leaf) for path, leaf in paths]
        return Restored(entry.step, jax.tree.unflatten(treedef, leaves), body["meta"])

    def _check_provenance(self, entry: Entry, body: Body) -> None:
        """Refuse, or accept with a warning, a checkpoint that belongs to another config, model or data."""
        name = f"the checkpoint of step {entry.step} in {self.folder}"
        if not body.get("provenance"):
            if any(self.provenance):
                told = f"{name} does not tell which config, model and data it belongs to (of an older version?)"
                warnings.warn(told, CheckpointWarning, stacklevel=6)
            return
        different = provenance_differences(body["provenance"], self.provenance)
        if not different:
            return
        told = f"{name} belongs to another config, model or data:\n  " + "\n  ".join(different)
        if not self.accept_changes:
            flags = "--allow-config-change when training, --accept-changes when reading"
            raise CheckpointMismatchError(f"{told}\nRestore them, or accept the change ({flags}).")
        warnings.warn(told, CheckpointWarning, stacklevel=6)
