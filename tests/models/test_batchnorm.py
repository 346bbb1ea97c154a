"""Batch norm: modes, and the statistics of what enters each layer."""

import pytest
import torch
from torch import nn
from torch.func import functional_call

from gradinv.errors import ModelError
from gradinv.models.batchnorm import (
    batch_norm_layers,
    record_batch_statistics,
    require_mode,
    running_statistics,
)
from gradinv.models.convnet import ConvNet


@pytest.fixture
def model() -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(5, 2, 8, widths=(3, 4)).eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))


def test_layers_have_their_full_names(model):
    assert list(batch_norm_layers(model)) == ["blocks.block1.bn", "blocks.block2.bn"]


def test_every_kind_of_batch_norm_is_found():
    model = nn.Sequential(
        nn.BatchNorm1d(1), nn.BatchNorm3d(1), nn.SyncBatchNorm(1), nn.GroupNorm(1, 1)
    )
    assert list(batch_norm_layers(model)) == ["0", "1", "2"]


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_right_mode_passes(model, mode):
    require_mode(model.train(mode == "train"), mode)


def test_wrong_mode_lists_modules(model):
    with pytest.raises(
        ModelError,
        match=r"expected the model in eval mode, got train mode in the model itself, "
        r"blocks\.block1\.bn, blocks\.block2\.bn; call model\.eval\(\)",
    ):
        require_mode(model.train(), "eval")
    with pytest.raises(ModelError, match=r"in train mode, got eval mode .*model\.train\(\)"):
        require_mode(model.eval(), "train")


def test_long_lists_are_cut():
    model = ConvNet(5, widths=(2,) * 6).train()
    with pytest.raises(ModelError, match=r"blocks\.block2\.bn \(\+4 more\); call"):
        require_mode(model, "eval")


def test_one_layer_in_the_wrong_mode_is_named(model):
    model.blocks.block2.bn.train()
    with pytest.raises(ModelError, match=r"got train mode in blocks\.block2\.bn; call"):
        require_mode(model, "eval")


def test_dropout_acts_on_the_mode_too_and_conv_does_not():
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Dropout(0.5)).eval()
    model[0].train()
    require_mode(model, "eval")
    model[1].train()
    with pytest.raises(ModelError, match="got train mode in 1; call"):
        require_mode(model, "eval")


def test_recorded_statistics_are_those_of_the_input(model, images):
    with record_batch_statistics(model) as recorded:
        model(images)
    entering = model.blocks.block1.conv(model.normalize(images)).transpose(0, 1).flatten(1)
    statistics = recorded.statistics["blocks.block1.bn"]
    torch.testing.assert_close(statistics.mean, entering.mean(dim=1))
    torch.testing.assert_close(statistics.var, entering.var(dim=1, correction=0))
    assert list(recorded.statistics) == list(batch_norm_layers(model))


def test_recorded_statistics_are_those_that_batch_norm_uses_in_train_mode(images):
    model = nn.Sequential(nn.BatchNorm2d(2, affine=False, eps=1e-9)).train()
    with record_batch_statistics(model) as recorded:
        normalized = model(images)
    mean, var = recorded.statistics["0"].mean, recorded.statistics["0"].var
    expected = (images - mean[:, None, None]) / var[:, None, None].sqrt()
    torch.testing.assert_close(normalized, expected)


def test_vectors_are_recorded_over_the_batch():
    inputs = torch.tensor([[0.0, 1.0], [2.0, 5.0]])
    model = nn.Sequential(nn.BatchNorm1d(2)).eval()
    with record_batch_statistics(model) as recorded:
        model(inputs)
    assert recorded.statistics["0"].mean.tolist() == [1.0, 3.0]
    assert recorded.statistics["0"].var.tolist() == [1.0, 4.0]


def test_hooks_are_gone_afterwards_even_after_an_error(model, images):
    with pytest.raises(ZeroDivisionError), record_batch_statistics(model) as recorded:
        raise ZeroDivisionError
    model(images)
    assert recorded.statistics == {}


def test_statistics_are_differentiable_through_functional_call(images):
    torch.manual_seed(0)
    model = ConvNet(5, 2, 4, widths=(3, 4)).double().eval()
    parameters = {name: value.detach() for name, value in model.named_parameters()}

    def cost(images: torch.Tensor) -> torch.Tensor:
        with record_batch_statistics(model) as recorded:
            functional_call(model, parameters, (images,))
        values = recorded.statistics.values()
        return torch.stack([value.mean.sum() + value.var.sum() for value in values]).sum()

    assert torch.autograd.gradcheck(
        cost, images[:1, :, :4, :4].double().requires_grad_(), eps=1e-7, atol=1e-5
    )


def test_running_statistics_are_copies(model, images):
    model.train()
    model(images)
    statistics = running_statistics(model.eval())
    layer = model.blocks.block1.bn
    assert torch.equal(statistics["blocks.block1.bn"].mean, layer.running_mean)
    assert torch.equal(statistics["blocks.block1.bn"].var, layer.running_var)
    layer.running_mean.add_(1)
    assert not torch.equal(statistics["blocks.block1.bn"].mean, layer.running_mean)


def test_layers_without_running_statistics_are_named():
    model = nn.Sequential(
        nn.BatchNorm2d(1, track_running_stats=False),
        nn.BatchNorm2d(1),
        nn.BatchNorm2d(1, track_running_stats=False),
    )
    with pytest.raises(
        ModelError, match=r"expected running statistics .*got none in 0, 2; reveal the exact"
    ):
        running_statistics(model)
