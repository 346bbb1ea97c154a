import pytest
import torch
from torch import nn

from gradinv.models import build_model
from gradinv.models.lenet import LeNet


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [27, 28, 32, 33, 64])
def test_logits_at_every_size(channels, size):
    assert LeNet(7, channels, size)(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_it_is_the_network_that_dlg_was_shown_on():
    model = build_model("lenet", num_classes=10, channels=1, image_size=32, seed=0)
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.stride for layer in convolutions] == [(2, 2), (2, 2), (1, 1)]
    assert sum(isinstance(layer, nn.Sigmoid) for layer in model.modules()) == 3
    weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    assert weights.abs().max() <= 0.5
    assert weights.std().item() == pytest.approx(1 / 12**0.5, rel=0.03)
