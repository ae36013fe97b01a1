"""The run folder: ``config.json``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/`` and results."""

import contextlib
import json
import os
import weakref
from collections.abc import Mapping
from pathlib import Path

from jaxseq.files import JSON, write_json
from jaxseq.training.environment import describe_environment, enable_compilation_cache
from jaxseq.training.errors import ConfigMismatchError, RunFolderError, RunLockedError
from jaxseq.training.metrics import read_json_lines
from jaxseq.training.processes import from_primary, is_primary
from jaxseq.training.settings import config_differences, from_json, resumable_fields, to_json

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


class Run:
    """A run folder that is locked by this process; created by :meth:`Run.open`, and a context manager.

    The kernel releases the lock on :meth:`close`, when the object is deleted, or when the process ends in any way.
    Process 0 of several holds the lock and writes the files; the others take part in checkpoints only.
    """

    def __init__(self, path: Path, config: dict[str, JSON], environment: dict[str, JSON], lock: int | None):
        self.path = path
        self.config = config
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
            config: a dataclass; it must equal the folder's ``config.json`` except in its resumable fields.
            fingerprint: identifies the data, for example by a hash.
            allow_config_change: accept another config or other data, and print the differences.

        Raises:
            RunFolderError: the folder contains other files.
            RunLockedError: another process uses the folder.
            ConfigMismatchError: the folder was made with another config or other data. Nothing is overwritten.
        """
        enable_compilation_cache()
        folder = Path(path).expanduser().absolute()
        lock: int | None = None

        def open_folder() -> JSON:
            nonlocal lock
            _check_folder(folder)
            folder.mkdir(parents=True, exist_ok=True)
            lock = _lock(folder)
            try:
                return _enter(folder, config, fingerprint, allow_config_change)
            except BaseException:
                _release(lock)
                raise

        environment = from_primary(open_folder)
        return cls(folder, to_json(config), environment, lock)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        """The file of the metrics."""
        return self.path / "metrics.jsonl"

    def write(self, name: str, value: object) -> None:
        """Write a JSON file of the run atomically."""
        content = to_json(value, name)
        if is_primary():
            write_json(self.path / name, content)

    def read(self, name: str) -> JSON:
        """The value of a JSON file of the run, or None if there is no such file."""
        return read_json(self.path / name)

    def write_results(self, results: Mapping[str, object]) -> None:
        """Write ``results.json``, a flat mapping of the final values; raises TypeError for nested values."""
        rows = to_json(results, "results")
        nested = [name for name, value in rows.items() if isinstance(value, dict | list)]
        if nested:
            raise TypeError(f"results must be single values, but these are nested: {', '.join(nested)}")
        if is_primary():
            write_json(self.path / "results.json", rows)

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


def _enter(folder: Path, config: object, fingerprint: str, allow_config_change: bool) -> dict[str, JSON]:
    """Check a locked folder against the config, write its first files, and return the environment."""
    known = read_json(folder / ENVIRONMENT) or {}
    changes = _changes(read_json(folder / CONFIG), config)
    old_data = known.get("data_fingerprint", fingerprint)
    if old_data != fingerprint:
        changes.append(f"data fingerprint: {old_data[:16]} -> {fingerprint[:16]}")
    if changes and not allow_config_change:
        raise ConfigMismatchError(
            f"{folder} was made with another config:\n  " + "\n  ".join(changes) + "\n"
            "Choose another folder, or allow the change (allow_config_change)."
        )
    write_json(folder / CONFIG, to_json(config))
    environment = describe_environment(fingerprint)
    environment["earlier"] = _history(known, environment)
    write_json(folder / ENVIRONMENT, environment)
    if changes:
        print("resuming with a changed config:\n  " + "\n  ".join(changes), flush=True)
    return environment


def _changes(earlier: JSON, config: object) -> list[str]:
    """The differences between the config of an existing run, None for a new one, and ``config``.

    Fields that the existing config lacks, because they were added later, have their defaults.
    """
    if earlier is None:
        return []
    with contextlib.suppress(ValueError, TypeError):  # another class of config: every difference is listed
        earlier = to_json(from_json(type(config), earlier))
    return config_differences(earlier, to_json(config), resumable_fields(config))


def read_json(file: Path) -> JSON:
    """The value of a JSON file, or None if it does not exist; raises RunFolderError if it is not valid JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunFolderError(f"{file} is not valid JSON: {error}") from None


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file, not a run folder")
    if not folder.is_dir() or (folder / CONFIG).exists():
        return
    # A run that was killed before its first file was complete leaves the lock and a temporary file.
    ours = {LOCK}
    others = [p.name for p in folder.iterdir() if p.name not in ours and not p.name.startswith(f".{CONFIG}.")]
    if others:
        shown = ", ".join(sorted(others)[:5])
        raise RunFolderError(f"{folder} is not a run folder: it has no {CONFIG}, and contains {shown}")


def _history(known: dict[str, JSON], now: dict[str, JSON]) -> list[dict[str, JSON]]:
    """The earlier environments of this run that differ in more than the start time, oldest first."""
    history = list(known.pop("earlier", []))
    entries = [*history, known] if known else history
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
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
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
