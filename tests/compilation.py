"""Options that shorten compilation, for tests of what a function computes (``jaxseq.testing.compilation``).

The tests of models, training and experiments compile as a user does.
"""

from jaxseq.testing.compilation import fast_compilation, jitted

QUICK = fast_compilation()

__all__ = ["QUICK", "jitted"]
