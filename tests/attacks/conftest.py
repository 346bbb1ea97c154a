import pytest
from torch import nn

from gradinv.data import ClientBatch
from gradinv.federated import Observation
from gradinv.priors.generator import Generator
from tests.attacks.tiny import tiny_batch, tiny_observation, tiny_prior, tiny_victim


@pytest.fixture
def victim() -> nn.Module:
    return tiny_victim()


@pytest.fixture
def prior() -> Generator:
    return tiny_prior()


@pytest.fixture
def batch() -> ClientBatch:
    return tiny_batch()


@pytest.fixture
def observation(victim, batch) -> Observation:
    return tiny_observation(victim, batch)
