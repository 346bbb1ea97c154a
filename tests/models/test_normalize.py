"""Normalisation is a layer."""

import pytest
import torch
from torch import nn

from gradinv.errors import ModelError
from gradinv.models.convnet import ConvNet
from gradinv.models.normalize import Normalize, normalization_of


def test_each_channel_has_its_own_values():
    normalize = Normalize([0.5, 0.0], [0.25, 2.0])
    images = torch.ones(3, 2, 4, 4)
    assert normalize(images)[:, 0].eq(2.0).all()
    assert normalize(images)[:, 1].eq(0.5).all()


def test_values_travel_with_the_weights():
    normalize = Normalize([0.5], [0.25])
    assert set(normalize.state_dict()) == {"mean", "std"}
    assert normalize.double().mean.dtype == torch.float64
    assert "mean=[0.5], std=[0.25]" in repr(normalize)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5], [0.2, 0.2], "got 1 means and 2 stds; give as many"),
        ([], [], "got 0 means and 0 stds; give as many"),
        ([0.5], [0.0], r"got mean \[0.5\] and std \[0.0\]; give those of the training images"),
        ([float("nan")], [1.0], "expected finite means and positive stds"),
    ],
)
def test_meaningless_values(mean, std, message):
    with pytest.raises(ModelError, match=message):
        Normalize(mean, std)


def test_first_one_in_the_tree_is_found():
    model = ConvNet(5, channels=1, mean=[0.3], std=[0.1])
    assert normalization_of(model) is model.normalize
    assert normalization_of(nn.Sequential(nn.Identity(), nn.Sequential(model))) is model.normalize
    assert normalization_of(nn.Linear(1, 1)) is None
