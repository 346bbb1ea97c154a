"""What a network, which may be anybody's, does to the client that trains it."""

import pytest
import torch
from torch import nn

from gradinv.data import ClientBatch
from gradinv.errors import ModelError
from gradinv.federated import FedAvg, FedSGD, observe


def pooled() -> nn.Module:
    """Batch norm behind global pooling: one value per channel and image."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Flatten(),
        nn.Linear(4, 4),
    ).train()  # fmt: skip


def batch(count: int) -> ClientBatch:
    source = torch.Generator().manual_seed(0)
    return ClientBatch(torch.rand(count, 1, 8, 8, generator=source), torch.arange(count) % 4)


def test_a_network_that_refuses_the_batch_is_named_in_one_line():
    with pytest.raises(
        ModelError,
        match=r"trains on 1 images of shape \(1, 8, 8\) in train mode, got ValueError: "
        r"Expected more.*change the batch size or the mode",
    ):
        observe(pooled(), batch(1), protocol=FedSGD(mode="train"))


def test_so_is_one_that_refuses_a_local_step():
    protocol = FedAvg(local_epochs=1, batch_size=3, lr=0.1, mode="train")
    with pytest.raises(ModelError, match=r"trains on 4 images .*, 3 at a time in train mode"):
        observe(pooled(), batch(4), protocol=protocol, generator=torch.Generator())


def test_a_network_that_fails_on_the_way_back_is_named_too():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, *_):
            raise ZeroDivisionError("no way back")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 4)

        def forward(self, x):
            return Broken.apply(self.head(x.flatten(1)))

    with pytest.raises(ModelError, match="got ZeroDivisionError: no way back"):
        observe(Net().eval(), batch(2))
