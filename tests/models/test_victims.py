"""ConvNet and ResNet18: what every victim of our own has to be."""

import itertools
from typing import Any

import pytest
import torch
from torch import fx, nn

from gradinv.errors import ModelError
from gradinv.models.batchnorm import batch_norm_layers
from gradinv.models.convnet import ConvNet
from gradinv.models.normalize import Normalize
from gradinv.models.resnet import ResNet18

VICTIMS = {
    "convnet": lambda channels, size=32: ConvNet(7, channels, size),
    "resnet18-cifar": lambda channels, size=32: ResNet18(7, channels, "cifar"),
    "resnet18-imagenet": lambda channels, size=32: ResNet18(7, channels, "imagenet"),
}

every_victim = pytest.mark.parametrize("victim", VICTIMS)


@every_victim
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [28, 32, 64])
def test_logits_at_every_size(victim, channels, size):
    model = VICTIMS[victim](channels, size).eval()
    with torch.no_grad():
        assert model(torch.rand(2, channels, size, size)).shape == (2, 7)


@every_victim
def test_normalisation_comes_first(victim):
    normalize = next(VICTIMS[victim](3).children())
    assert isinstance(normalize, Normalize)
    assert normalize.mean.flatten().tolist() == [0.5] * 3
    assert normalize.std.flatten().tolist() == [0.25] * 3


@every_victim
def test_fx_traces_it_and_the_trace_computes_the_same(victim):
    torch.manual_seed(0)
    model = VICTIMS[victim](3).eval()
    images = torch.rand(2, 3, 32, 32)
    traced = fx.symbolic_trace(model)
    with torch.no_grad():
        assert torch.equal(traced(images), model(images))


@every_victim
def test_no_relu_in_place_and_no_idle_bias(victim):
    model = VICTIMS[victim](3)
    assert not any(module.inplace for module in model.modules() if isinstance(module, nn.ReLU))
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.bias is None for module in convolutions)
    assert len(convolutions) == len(batch_norm_layers(model))


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_activations_keep_their_scale_in_eval_mode(stem):
    torch.manual_seed(0)
    model = ResNet18(7, 3, stem).eval()
    colours = torch.rand(8, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(colours.expand(-1, -1, 32, 32))
    # How far the images, not the head's bias, move the logits; torch's own initialisation of the
    # convolutions gives about 0.01.
    assert 0.02 < logits.std(dim=0).mean() < 20


@every_victim
def test_own_structure(victim):
    model = VICTIMS[victim](3)
    count = sum(value.numel() for value in model.parameters())
    if victim == "convnet":
        widths = [3, 32, 32, 64, 64, 128, 128]
        expected = sum(9 * a * b + 2 * b for a, b in itertools.pairwise(widths))
        assert count == expected + 128 * 4 * 4 * 7 + 7
        assert [b.conv.stride[0] for b in model.blocks] == [1, 2, 1, 2, 1, 2]
    else:
        # torchvision's resnet18 has 11,689,512 with 1,000 classes; the CIFAR stem is 3x3, not 7x7.
        stem = 0 if victim == "resnet18-imagenet" else 64 * 3 * (49 - 9)
        assert count == 11_689_512 - 513 * (1000 - 7) - stem


@every_victim
def test_size_of_the_last_features(victim):
    model = VICTIMS[victim](3).eval()
    seen = []
    last = model.blocks if victim == "convnet" else model.layer4
    last.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[-1]))
    with torch.no_grad():
        model(torch.rand(1, 3, 32, 32))
    assert seen == [1 if victim == "resnet18-imagenet" else 4]


@pytest.mark.usefixtures("without_type_checks")
def test_unknown_stem():
    stem: Any = "tiny"
    with pytest.raises(ModelError, match="expected stem 'cifar' or 'imagenet', got 'tiny'"):
        ResNet18(7, stem=stem)
