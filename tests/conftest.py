"""Every test runs with shapes checked, strict dtype promotion, rank promotion refused, and warnings as errors."""

import gc
import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAXSEQ_COMPILATION_CACHE", "")

import jaxtyping
from jaxtyping import install_import_hook

install_import_hook("jaxseq", "beartype.beartype")

import jax  # noqa: E402
import pytest  # noqa: E402

import jaxseq  # noqa: E402, F401  (sets XLA flags, before the first array)

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# A shell that starts the tests in the background ignores these; processes that the tests start would ignore them too.
for number, handler in ((signal.SIGINT, signal.default_int_handler), (getattr(signal, "SIGHUP", None), signal.SIG_DFL)):
    if number is not None and signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

MAX_MEMORY_MAPS = 20_000


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps():
    """After a file of tests, free compiled programs before the process reaches Linux's limit of 65,530 memory maps.

    Compiled programs take some each; at the limit XLA's compiler ends the process by a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MAX_MEMORY_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key() -> jax.Array:
    """A typed random key, the same in every test."""
    return jax.random.key(0)


@pytest.fixture
def x64():
    """Run the test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def untyped():
    """Without jaxtyping's checks, which come before our own."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)
