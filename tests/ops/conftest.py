"""What the tests of ops share."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Run the test without the type checker, as users do: for errors that the checker would raise first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
