"""The run folder: ``config.json``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/`` and results."""

import contextlib
import os
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path

from jaxseq.files import JSON
from jaxseq.training.checkpoint_folder import entries
from jaxseq.training.environment import describe_environment, enable_compilation_cache
from jaxseq.training.errors import CheckpointWarning, ConfigMismatchError, RunFolderError, RunLockedError
from jaxseq.training.extension import compare_steps
from jaxseq.training.loggers import check_loggers
from jaxseq.training.metrics import METRICS, read_json_lines
from jaxseq.training.processes import from_primary, is_primary
from jaxseq.training.provenance import Provenance, changes
from jaxseq.training.run_files import CHECKSUMS, RunFiles
from jaxseq.training.settings import to_json

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
CHECKPOINTS = "checkpoints"
RESULTS = "results.json"
LOCK = ".lock"


class Run:
    """A run folder that is locked by this process; created by :meth:`Run.open`, and a context manager.

    The kernel releases the lock on :meth:`close`, when the object is deleted, or when the process ends in any way.
    Process 0 of several holds the lock and writes the files; the others take part in checkpoints only.
    """

    def __init__(self, files: RunFiles, provenance: Provenance, environment: dict[str, JSON], lock: int | None):
        self.path = files.folder
        self.files = files
        self.provenance = provenance
        """What its checkpoints belong to; stored in each."""
        self.config: dict[str, JSON] = to_json(provenance.config)
        self.environment = environment
        self._release = weakref.finalize(self, _release, lock)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        config: object,
        *,
        fingerprint: str,
        allow_config_change: bool = False,
    ) -> "Run":
        """Start a run in a new or empty folder, or resume the one there. Enables the compilation cache.

        All processes of a run call it; an error of the primary one is raised by all.

        Args:
            path: the run folder.
            config: a dataclass; it must equal the folder's ``config.json`` except in its resumable fields. The
                number of training steps may change where the run goes on as one of that number does
                (``training.extension``).
            fingerprint: identifies the data, for example by a hash.
            allow_config_change: accept another config or model, other data and changed files, and print the
                differences.

        Raises:
            RunFolderError: the folder contains other files.
            RunLockedError: another process uses the folder.
            ConfigMismatchError: the folder was made with another config or other data, or its environment.json is
                missing beside checkpoints, or the run has made more steps than the new number. Nothing is overwritten.
            ImportError: a logger of the config is not installed. Nothing is created.
        """
        check_loggers(config)
        enable_compilation_cache()
        folder = Path(path).expanduser().absolute()
        files = RunFiles(folder, accept_changes=allow_config_change)
        lock: int | None = None

        def open_folder() -> JSON:
            nonlocal lock
            _check_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
            try:
                return _enter(files, config, fingerprint)
            except BaseException:
                _release(lock)
                raise

        environment = from_primary(open_folder)
        return cls(files, Provenance(config, {}, fingerprint), environment, lock)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        """The file of the metrics."""
        return self.path / METRICS

    def define_model(self, parts: Mapping[str, object]) -> None:
        """Name what the parameters mean besides the config: a vocabulary, the SHA-256 of a file of code.

        The checkpoints of ``fit`` store the parts, and resuming or reading them with others is refused.

        Args:
            parts: dataclasses, which are compared by field, and JSON values, compared as a whole; by name.
        """
        self.provenance = self.provenance._replace(model=dict(parts))

    def write(self, name: str, value: object) -> None:
        """Write a JSON file of the run atomically, and its SHA-256 to ``checksums.json``."""
        content = to_json(value, name)
        if is_primary():
            self.files.write(name, content)

    def read(self, name: str) -> JSON:
        """The value of a JSON file of the run, or None if there is no such file.

        Raises:
            RunFolderError: it differs from what the run wrote, or holds no JSON.
        """
        return self.files.read(name)

    def write_results(self, results: Mapping[str, object]) -> None:
        """Write ``results.json``, a flat mapping of the final values; raises TypeError for nested values."""
        rows = to_json(results, "results")
        nested = [name for name, value in rows.items() if isinstance(value, dict | list)]
        if nested:
            raise TypeError(f"results must be single values, but these are nested: {', '.join(nested)}")
        self.write(RESULTS, rows)

    def delete_results(self) -> None:
        """Delete ``results.json``, which belongs to parameters that training is about to replace."""
        if is_primary():
            (self.path / RESULTS).unlink(missing_ok=True)

    @property
    def train_seconds(self) -> float | None:
        """Seconds of training over all resumptions, or None before the first log line."""
        rows = [row for row in read_json_lines(self.metrics) if "train_seconds" in row]
        return rows[-1]["train_seconds"] if rows else None

    def close(self) -> None:
        """Release the lock."""
        self._release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _enter(files: RunFiles, config: object, fingerprint: str) -> dict[str, JSON]:
    """Check a locked folder against the config, write its first files, and return the environment."""
    folder = files.folder
    earlier = files.read(CONFIG, verify=False)
    saved = entries(folder / CHECKPOINTS)
    extension = compare_steps(earlier, config, saved[-1].step if saved else 0)
    differences = changes(earlier, config) + extension.unknown + extension.jumps
    known = files.read(ENVIRONMENT)
    if known is None and any((folder / CHECKPOINTS).glob("*")):
        differences.append(f"{ENVIRONMENT}, which tells the data of the checkpoints: present -> missing")
    if known is not None and not isinstance(known, dict):
        raise RunFolderError(f"{folder / ENVIRONMENT} must hold an object, not a {type(known).__name__}")
    old_data = str((known or {"data_fingerprint": fingerprint}).get("data_fingerprint"))
    if old_data != fingerprint:
        differences.append(f"data fingerprint: {old_data[:16]} -> {fingerprint[:16]}")
    if differences and not files.accept_changes:
        raise ConfigMismatchError(
            f"{folder} was made with another config:\n  " + "\n  ".join(differences) + "\n"
            "Choose another folder, or allow the change (allow_config_change)."
        )
    files.write(CONFIG, to_json(config))
    environment = describe_environment(fingerprint)
    environment["earlier"] = _history(known or {}, environment)
    files.write(ENVIRONMENT, environment)
    for told in extension.jumps:
        warnings.warn(told, CheckpointWarning, stacklevel=6)
    if extension.continuous:
        print("\n".join(extension.continuous), flush=True)
    if differences:
        print("resuming with a changed config:\n  " + "\n  ".join(differences), flush=True)
    return environment


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file, not a run folder")
    links = [path for path in (folder.iterdir() if folder.is_dir() else ()) if path.is_symlink() and path.is_dir()]
    if links:
        told = f"{links[0]} is a link to a folder, in which the run would write and delete files"
        raise RunFolderError(f"{told}. Use a link to the whole run folder instead")
    if not folder.is_dir() or (folder / CONFIG).exists():
        return
    # A run that was killed before its first file was complete leaves the lock, a checksum and a temporary file.
    temporary = (f".{CONFIG}.", f".{CHECKSUMS}.")
    ours = {LOCK, CHECKSUMS}
    others = [p.name for p in folder.iterdir() if p.name not in ours and not p.name.startswith(temporary)]
    if others:
        shown = ", ".join(sorted(others)[:5])
        raise RunFolderError(f"{folder} is not a run folder: it has no {CONFIG}, and contains {shown}")


def _history(known: dict[str, JSON], now: dict[str, JSON]) -> list[dict[str, JSON]]:
    """The earlier environments of this run that differ in more than the start time, oldest first."""
    history = known.pop("earlier", None)
    entries = [entry for entry in (history if isinstance(history, list) else []) if isinstance(entry, dict)]
    entries += [known] if known else []
    kept: list[dict[str, JSON]] = []
    for entry in entries:
        if all(_without_times(entry) != _without_times(other) for other in [*kept, now]):
            kept.append(entry)
    return kept


def _without_times(environment: dict[str, JSON]) -> dict[str, JSON]:
    return {name: value for name, value in environment.items() if name not in ("started", "earlier")}


def _lock(folder: Path) -> int | None:
    try:
        import fcntl
    except ImportError:  # not available on this system
        return None
    # A link is not followed: the file that it names would be overwritten.
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 64).decode(errors="replace").strip()
        os.close(handle)
        raise RunLockedError(f"{folder} is in use by another process" + (f" ({holder})" if holder else "")) from None
    except OSError:  # a file system without locks
        os.close(handle)
        return None
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()}".encode(), 0)
    return handle


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
