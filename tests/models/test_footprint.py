"""Sizes of networks, and those that no machine can hold."""

import math
import time

import pytest
import torch
from torch import nn

from gradinv.errors import ConfigError, ModelError
from gradinv.models import build_model
from gradinv.models import footprint as module
from gradinv.models.footprint import (
    memory_of,
    on_meta,
    outputs_bytes,
    require_fits,
    weights_bytes,
)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(32, 3))


def test_what_a_network_takes():
    for model in (small(), on_meta(small)):
        assert weights_bytes(model) == 4 * (18 + 2 + 96 + 3)
        # Images of 16 pixels, 2 channels of them, again flat, and 3 logits.
        assert outputs_bytes(model, (5, 1, 4, 4)) == 4 * 5 * (16 + 32 + 32 + 3)


def test_of_a_network_that_looks_at_values_only_the_images_count():
    class Looks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * x.max().item()

    assert outputs_bytes(Looks(), (5, 1, 4, 4)) == 4 * 5 * 16


def test_of_a_network_that_refuses_to_be_copied_only_the_images_count():
    class Unknown(nn.Sequential):
        def __reduce__(self):
            raise TypeError("not to be copied")

    assert outputs_bytes(Unknown(*small().children()), (5, 1, 4, 4)) == 4 * 5 * 16


def test_a_network_keeps_its_tensors_when_it_is_measured():
    model = small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outputs_bytes(model, (5, 1, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(layer._forward_hooks for layer in model.modules())
    assert all(value.requires_grad for value in model.parameters())


def test_a_batch_that_fits_and_one_that_does_not():
    require_fits(small(), (5, 1, 4, 4), lower="--batch-size")
    with pytest.raises(ConfigError, match=r"a batch that fits .* GiB; lower --batch-size$"):
        require_fits(small(), (10**12, 1, 4, 4), lower="--batch-size", error=ConfigError)


def test_on_a_graphics_card_its_memory_counts(monkeypatch):
    monkeypatch.setattr("gradinv.room.machine_bytes", lambda: 5)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, {"cuda:1": 2000}[device]))
    assert memory_of("cpu") == (5, "this machine")
    assert memory_of("cuda:1") == (2000, "this graphics card")
    assert memory_of("meta") == (math.inf, "this device")
    require_fits(small().to("meta"), (10**12, 1, 4, 4), lower="--batch-size")
    monkeypatch.setattr(module, "memory_of", lambda device: (2000, f"this {device} card"))
    with pytest.raises(
        ConfigError, match=r"GiB of this meta card, got one that needs about .* GiB;"
    ):
        require_fits(small().to("meta"), (5, 1, 4, 4), lower="--batch-size", error=ConfigError)


@pytest.mark.parametrize("spec", ["convnet", "lenet", "resnet18"])
@pytest.mark.parametrize(
    ("num_classes", "image_size"), [(2**62, 32), (2**40, 32), (10, 2**20), (10, 2**40)]
)
def test_absurd_networks_are_refused_at_once(spec, num_classes, image_size):
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"expected a network .*; lower the number of classes or"):
        build_model(spec, num_classes=num_classes, channels=3, image_size=image_size, seed=0)
    assert time.monotonic() - started < 2
