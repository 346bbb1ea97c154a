"""Calls as they are outside the tests, for what the enforced annotations would refuse first."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Turns the enforcement of shapes off for one test."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
