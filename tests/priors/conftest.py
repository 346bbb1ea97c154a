"""Fixtures of the priors' tests."""

import jaxtyping
import pytest


@pytest.fixture
def no_type_checks():
    """Values of the wrong type reach our own checks, as they do outside the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
