"""The XLA flag that ``import jaxseq`` sets, because XLA computes wrong numbers on CPUs without it.

jaxlib 0.10.2 to 0.12 hand reductions to the library YNNPACK by default. In some programs the result is wrong, without
an error: ``jax.jit(lambda E: ((E @ jnp.ones((30, 30))) * E).sum(-1))`` for E of shape ``[5, 30, 30]`` is off by many
orders of magnitude or NaN (``tests/test_xla_flags.py``; https://github.com/jax-ml/jax/issues/39103). The flag
``--xla_cpu_experimental_ynn_fusion_type=-reduce`` turns this off for reductions; matrix products keep the library.

XLA reads ``XLA_FLAGS`` when the first array is made, so import jaxseq before that. The flag is appended: other flags
stay, and a value of the same flag that is already there is kept. ``XLA_FLAGS`` may be the name of a file of flags; it
is then replaced by the contents of the file and the flag. ``JAXSEQ_XLA_FLAGS=off`` in the environment leaves
``XLA_FLAGS`` alone.
"""

import contextlib
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
VALUE = "-reduce"

KNOWN_JAXLIB = ((0, 10), (0, 11), (0, 12))
"""The lines of jaxlib that have the flag: XLA ends the process at a flag that it does not know."""


def set_xla_flags() -> None:
    """Append the flag to ``XLA_FLAGS``, unless it is there, the user opted out, or jaxlib may not know it.

    Warns:
        RuntimeWarning: JAX has already read ``XLA_FLAGS`` without it, and computes on the CPU.
    """
    flags = _read_flags()
    if os.environ.get("JAXSEQ_XLA_FLAGS") == "off" or _has_flag(flags) or not _jaxlib_has_flag():
        return
    # XLA stops reading at the first word that is no flag.
    words = [flags, f"{FLAG}={VALUE}"]
    plain = all(word.startswith("-") for word in flags.split())
    os.environ["XLA_FLAGS"] = " ".join(words if plain else reversed(words)).strip()
    if _computes_on_cpu():
        warnings.warn(
            "jaxseq is imported after JAX has started, too late for an XLA flag without which XLA computes some sums "
            f"wrongly on a CPU: import jaxseq before the first array is made, or set XLA_FLAGS={FLAG}={VALUE} "
            "(JAXSEQ_XLA_FLAGS=off silences this)",
            RuntimeWarning,
            stacklevel=3,
        )


def _read_flags() -> str:
    """The flags of ``XLA_FLAGS``, or of the file that it names: XLA takes a text that is no flag for a file."""
    flags = os.environ.get("XLA_FLAGS", "")
    if flags and not flags.lstrip().startswith("-"):
        with contextlib.suppress(OSError, ValueError):
            return Path(flags).read_text(encoding="utf-8")
    return flags


def _has_flag(flags: str) -> bool:
    return any(flag.split("=")[0] == FLAG for flag in flags.split())


def _jaxlib_has_flag() -> bool:
    try:
        major, minor = metadata.version("jaxlib").split(".")[:2]
    except metadata.PackageNotFoundError:  # a build of jaxlib without metadata
        return False
    return (int(major), int(minor)) in KNOWN_JAXLIB


def _computes_on_cpu() -> bool:
    """Whether JAX has started its backends, and the default one is the CPU's."""
    bridge = sys.modules.get("jax._src.xla_bridge")
    if bridge is None or not getattr(bridge, "backends_are_initialized", lambda: False)():
        return False
    return sys.modules["jax"].default_backend() == "cpu"
