"""A description of the software and hardware of a run, and the compilation cache."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

from jaxseq.files import JSON

PACKAGES = ("jaxseq", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
OPTIONAL = ("tokenizers", "babel", "num2words", "sacrebleu")
CACHE_VARIABLE = "JAXSEQ_COMPILATION_CACHE"


def describe_environment(fingerprint: str) -> dict[str, JSON]:
    """Python and package versions, devices, XLA flags, the git commit if any, and the fingerprint of the data."""
    devices = jax.devices()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.argv]),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES}
        | {name: version for name in OPTIONAL if (version := _version(name))},
        "backend": devices[0].platform,
        "devices": sorted({device.device_kind for device in devices}),
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
        "git": _git_commit(),
        "data_fingerprint": fingerprint,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """The commit of the running script's checkout, with ``+changes`` if files differ from it."""
    folder = Path(sys.argv[0]).resolve().parent if sys.argv and sys.argv[0] else Path.cwd()

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=5, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return None


def enable_compilation_cache(path: str | os.PathLike | None = None) -> Path | None:
    """Keep compiled programs on disk; returns the folder, or None if the cache is off.

    The folder is ``path``, else ``$JAXSEQ_COMPILATION_CACHE``, else the one that JAX is already configured with
    (``JAX_COMPILATION_CACHE_DIR``), else ``~/.cache/jaxseq/xla``. An empty string turns the cache off.
    """
    known = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    path = os.environ.get(CACHE_VARIABLE) if path is None else path
    if path is None and known:
        return Path(known)
    if path is None:
        path = Path.home() / ".cache" / "jaxseq" / "xla"
    if not str(path) or str(path) == ".":
        return None
    folder = Path(path).expanduser().absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None  # A read-only home must not prevent training.
    if known == str(folder):
        return folder
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    compilation_cache.reset_cache()  # JAX opens its cache at the first compilation, which may be past.
    return folder
