"""jaxseq: recurrence and attention under one functional contract, in JAX.

``jaxseq.load`` loads the trained model of a run folder. The subpackages are imported when they are first used:
``import jaxseq; jaxseq.cores.LSTM``. The import appends a
flag to ``XLA_FLAGS``, without which XLA computes wrong numbers on CPUs (``jaxseq.xla_flags``), and sets options of
glibc's malloc, without which a step on a CPU spends up to a third of its time on new pages (``jaxseq.malloc``).
"""

import importlib
import typing

from jaxseq.malloc import set_malloc_options
from jaxseq.xla_flags import set_xla_flags

set_xla_flags()
set_malloc_options()

__version__ = "0.1.0"

__all__ = [
    "analysis",
    "cores",
    "data",
    "decoders",
    "decoding",
    "distribution",
    "doctor",
    "encoders",
    "files",
    "launch",
    "layers",
    "load",
    "malloc",
    "models",
    "ops",
    "pipelines",
    "plotting",
    "precision",
    "terminal",
    "testing",
    "training",
    "typing",
    "weights",
    "xla_flags",
]


def __getattr__(name: str) -> typing.Any:
    """Import a subpackage, or the function ``load``, on first use (PEP 562)."""
    if name == "load":
        return importlib.import_module(f"{__name__}.pipelines.loading").load
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
