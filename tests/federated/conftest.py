"""Fixtures of the client's side: a tiny network and a tiny batch."""

import jaxtyping
import pytest
import torch

from gradinv.data import ClientBatch
from gradinv.models.convnet import ConvNet


@pytest.fixture
def model() -> ConvNet:
    """Two blocks with running statistics that are not 0 and 1, in eval mode."""
    torch.manual_seed(0)
    model = ConvNet(5, 2, 8, widths=(3, 4)).train()
    with torch.no_grad():
        model(torch.rand(4, 2, 8, 8))
    return model.eval()


@pytest.fixture
def batch() -> ClientBatch:
    """Three random images of 8x8 with two channels, one label twice."""
    images = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return ClientBatch(images, torch.tensor([4, 0, 4]), (7, 1, 3))


@pytest.fixture
def without_type_checks():
    """Values of the wrong type reach our own checks, as they do outside the tests."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
