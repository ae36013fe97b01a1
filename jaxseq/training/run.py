"""The run folder: ``config.json``, ``environment.json``, ``metrics.jsonl``, ``checkpoints/``, ..."""

import contextlib
import json
import os
import weakref
from pathlib import Path
from typing import Any

from jaxseq.training.environment import describe_environment, enable_compilation_cache
from jaxseq.training.errors import ConfigMismatchError, RunFolderError, RunLockedError
from jaxseq.training.files import write_json
from jaxseq.training.metrics import read_json_lines
from jaxseq.training.settings import config_differences, resumable_fields, to_json

CONFIG = "config.json"
ENVIRONMENT = "environment.json"
CHECKPOINTS = "checkpoints"
LOCK = ".lock"


class Run:
    """A run folder held by this process; made by :meth:`Run.open`, and a context manager.

    The hold is a kernel lock: it ends with :meth:`close`, with the object, or with the process, however
    that ends.
    """

    def __init__(self, path: Path, config: Any, environment: dict[str, Any], lock: int | None):
        self.path = path
        self.config = config
        self.environment = environment
        self._release = weakref.finalize(self, _release, lock)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike,
        config: Any,
        *,
        fingerprint: str,
        allow_config_change: bool = False,
    ) -> "Run":
        """Begin a run in a new or empty folder, or go on with the one there. Turns the compilation cache on.

        ``config`` is a dataclass, ``fingerprint`` stands for the data. Raises RunFolderError for a folder
        with other things in it, RunLockedError while another process uses it, and ConfigMismatchError where
        the folder was made by another config or from other data, unless ``allow_config_change``. Nothing is
        overwritten then.
        """
        enable_compilation_cache()
        folder = Path(path).expanduser().absolute()
        settings = to_json(config)
        _check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock(folder)
        try:
            earlier = read_json(folder / CONFIG)
            known = read_json(folder / ENVIRONMENT) or {}
            changes = [] if earlier is None else config_differences(earlier, settings, resumable_fields(config))
            old_data = known.get("data_fingerprint", fingerprint)
            if old_data != fingerprint:
                changes.append(f"data fingerprint: {old_data[:16]} -> {fingerprint[:16]}")
            if changes and not allow_config_change:
                raise ConfigMismatchError(
                    f"{folder} was made by another config:\n  " + "\n  ".join(changes) + "\n"
                    "Choose another folder, or allow the change (allow_config_change)."
                )
            write_json(folder / CONFIG, settings)
            environment = describe_environment(fingerprint)
            environment["earlier"] = _history(known, environment)
            write_json(folder / ENVIRONMENT, environment)
        except BaseException:
            _release(lock)
            raise
        if changes:
            print("going on with a changed config:\n  " + "\n  ".join(changes), flush=True)
        return cls(folder, settings, environment, lock)

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        """The file of the metrics."""
        return self.path / "metrics.jsonl"

    def write(self, name: str, value: Any) -> None:
        """Write a JSON file of the run, whole or not at all."""
        write_json(self.path / name, to_json(value, name))

    def read(self, name: str) -> Any:
        """Read a JSON file of the run; None where there is none."""
        return read_json(self.path / name)

    def write_results(self, results: dict[str, Any]) -> None:
        """Write ``results.json``: a flat table of the final figures. Raises TypeError for a nested one."""
        rows = to_json(results, "results")
        nested = [name for name, value in rows.items() if isinstance(value, dict | list)]
        if nested:
            raise TypeError(f"results are flat, but these are not single values: {', '.join(nested)}")
        write_json(self.path / "results.json", rows)

    @property
    def train_seconds(self) -> float | None:
        """Seconds spent in training steps, over all resumptions; None before the first were noted."""
        rows = [row for row in read_json_lines(self.metrics) if "train_seconds" in row]
        return rows[-1]["train_seconds"] if rows else None

    def close(self) -> None:
        """Let other processes have the folder."""
        self._release()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *exception: Any) -> None:
        self.close()


def read_json(file: Path) -> Any:
    """A JSON file's value, or None where there is no file; raises RunFolderError where it is no JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RunFolderError(f"{file} is not readable JSON: {error}") from None


def _check_folder(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file, not a run folder")
    if not folder.is_dir() or (folder / CONFIG).exists():
        return
    # A run that was killed before its first file was complete leaves the lock and a temporary file, no more.
    ours = {LOCK}
    others = [p.name for p in folder.iterdir() if p.name not in ours and not p.name.startswith(f".{CONFIG}.")]
    if others:
        shown = ", ".join(sorted(others)[:5])
        raise RunFolderError(f"{folder} is not a run folder: it has no {CONFIG}, and holds {shown}")


def _history(known: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """The earlier environments of this run that differ in more than the time, oldest first."""
    history = list(known.pop("earlier", []))
    entries = [*history, known] if known else history
    kept: list[dict[str, Any]] = []
    for entry in entries:
        if all(_timeless(entry) != _timeless(other) for other in [*kept, now]):
            kept.append(entry)
    return kept


def _timeless(environment: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in environment.items() if name not in ("started", "earlier")}


def _lock(folder: Path) -> int | None:
    try:
        import fcntl
    except ImportError:  # No such lock on this system.
        return None
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 64).decode(errors="replace").strip()
        os.close(handle)
        raise RunLockedError(f"{folder} is in use by another process" + (f" ({holder})" if holder else "")) from None
    except OSError:  # A file system without locks.
        os.close(handle)
        return None
    with contextlib.suppress(OSError):
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()}".encode(), 0)
    return handle


def _release(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)
