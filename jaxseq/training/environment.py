"""What a run ran on, and the cache that makes its second start fast."""

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from jax.experimental.compilation_cache import compilation_cache

PACKAGES = ("jaxseq", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
OPTIONAL = ("tokenizers", "babel", "num2words", "sacrebleu")
CACHE_VARIABLE = "JAXSEQ_COMPILATION_CACHE"


def describe_environment(fingerprint: str) -> dict[str, Any]:
    """Python, versions, devices, XLA flags, the code's git commit, if any, and the data's fingerprint."""
    devices = jax.devices()
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": command(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES}
        | {name: version for name in OPTIONAL if (version := _version(name))},
        "backend": devices[0].platform,
        "devices": sorted({device.device_kind for device in devices}),
        "device_count": len(devices),
        "cpu_count": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "x64": bool(jax.config.jax_enable_x64),  # type: ignore[attr-defined]
        "git": _git_commit(),
        "data_fingerprint": fingerprint,
    }


def command() -> str:
    """The command line, as one would type it."""
    return shlex.join(["python", *sys.argv])


def _versions() -> dict[str, str | None]:
    """Of what there must be, and of what there may be."""
    found = {name: _version(name) for name in PACKAGES + OPTIONAL}
    return {name: version for name, version in found.items() if version or name in PACKAGES}


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
    """Keep compiled programs on disk; returns the folder, or None where the cache is off.

    The folder is ``path``, else ``$JAXSEQ_COMPILATION_CACHE``, else ``~/.cache/jaxseq/xla``; an empty
    string means off. A folder that JAX itself was already told of (``JAX_COMPILATION_CACHE_DIR``) stays.
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
        return None  # A read-only home is no reason not to train.
    if known == str(folder):
        return folder
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
    compilation_cache.reset_cache()  # JAX decides at its first compilation; that may be over.
    return folder
