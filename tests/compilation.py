"""Options that shorten compilation, for tests of what a function computes (``jaxseq.testing.compilation``).

The tests of models, training and experiments compile as a user does, but for runs made in ``unoptimized()``.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxseq.testing.compilation import fast_compilation, jitted

QUICK = fast_compilation()

__all__ = ["QUICK", "jitted", "unoptimized"]


@contextmanager
def unoptimized() -> Iterator[None]:
    """Compile fast whatever is compiled in the block, by code that calls ``jax.jit`` itself."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
