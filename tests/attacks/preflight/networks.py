"""Networks that come between an image and its derivative, and clients in plain torch."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradinv.attacks.evidence.head import random_images
from gradinv.data import ClientBatch
from gradinv.federated import Observation


class Front(nn.Module):
    """Something in front of a network."""

    def __init__(self, front: Callable[[Tensor], Tensor], net: nn.Module) -> None:
        super().__init__()
        self.front = front
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(self.front(x))


def mlp(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(),
            nn.Linear(32, 10),
        ).eval()  # fmt: skip


def images(count: int, seed: int = 5) -> ClientBatch:
    """Smooth images of distinct classes."""
    source = torch.Generator().manual_seed(seed)
    pictures = random_images(2 * count, (1, 8, 8), source)[count:]
    return ClientBatch(pictures, torch.arange(count), tuple(range(count)))


def trained(
    model: nn.Module,
    batch: ClientBatch,
    optimizer: Callable[..., torch.optim.Optimizer],
    *,
    lr: float,
    steps: int = 1,
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
) -> dict[str, Tensor]:
    """Returns (theta_0 - theta_T) / lr of a client in plain PyTorch."""
    own = copy.deepcopy(model)
    stepper = optimizer(own.parameters(), lr=lr)
    for _ in range(steps):
        stepper.zero_grad()
        loss(own(batch.images), batch.labels).backward()
        stepper.step()
    after = dict(own.named_parameters())
    return {name: (p - after[name]).detach() / lr for name, p in model.named_parameters()}


def seen(gradient: dict[str, Tensor], batch: ClientBatch, *, hide: bool = False) -> Observation:
    """Returns the update as a server takes it that is told nothing else."""
    labels = None if hide else batch.labels
    return Observation(gradient, len(batch.images), (1, 8, 8), 10, labels=labels)
