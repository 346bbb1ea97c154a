import pytest
import torch
from torch import fx, nn

from gradinv.models import LeakyNet, Normalize, build_model


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [9, 28, 32])
def test_logits_at_every_size(channels, size):
    model = build_model(
        "leakynet", num_classes=7, channels=channels, image_size=size, seed=0
    )  # fmt: skip
    assert isinstance(next(model.children()), Normalize)
    with torch.no_grad():
        assert model(torch.rand(2, channels, size, size)).shape == (2, 7)


def test_it_neither_pools_nor_forgets():
    kinds = {type(layer) for layer in LeakyNet(7, 1).modules()}
    assert not any("Pool" in kind.__name__ for kind in kinds)
    assert nn.ReLU not in kinds
    assert nn.LeakyReLU in kinds


def test_the_first_layer_has_an_output_for_every_pixel():
    for channels in (1, 3):
        layer = LeakyNet(7, channels).get_submodule("blocks.conv1")
        first = layer(torch.zeros(1, channels, 32, 32))
        assert first.numel() == channels * 32 * 32


def test_fx_traces_it():
    model = LeakyNet(7, 3, widths=(2, 3, 4))
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(fx.symbolic_trace(model)(images), model(images))
