"""Tests of decoding compile fast: they compare tokens and scores."""

import pytest
from compilation import unoptimized


@pytest.fixture(autouse=True)
def fast():
    """Compile without optimizations."""
    with unoptimized():
        yield
