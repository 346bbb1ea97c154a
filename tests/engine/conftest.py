"""The engine is tried on the same tiny victims as the attacks."""

from tests.attacks.conftest import batch, observation, prior, victim

__all__ = ["batch", "observation", "prior", "victim"]
