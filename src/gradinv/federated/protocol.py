"""What the client does with its batch, and what the server gets to know."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Generator

from gradinv.errors import ConfigError
from gradinv.models.batchnorm import Mode

BnReveal = Literal["none", "running", "exact"]

Order = tuple[tuple[int, ...], ...]
"""Which images of the client's batch each local step uses, in the order of the steps."""


@dataclass(frozen=True)
class FedSGD:
    """The client sends the gradient of its mean loss over one batch.

    Attributes:
        mode: of batch norm and dropout while the gradient is computed. In "eval" batch norm uses
            its running statistics and is the easier victim (the paper's setting).

    Raises:
        ConfigError: the mode is neither of the two.
    """

    mode: Mode = "eval"

    def __post_init__(self) -> None:
        _require_mode(self.mode)


@dataclass(frozen=True)
class FedAvg:
    """The client trains on its batch by SGD and sends (theta_0 - theta_T) / lr.

    McMahan et al. 2017, Algorithm 1, ClientUpdate. A client sends theta_T there; the server knows
    theta_0 and lr, so the scaled difference holds the same. In these units the update of one step
    is the gradient that :class:`FedSGD` sends, and that of T steps is about T gradients long.

    Attributes:
        local_epochs: passes over the client's batch.
        batch_size: images in one local step; the whole batch when None. Where the batch is no
            multiple of it, the last step of an epoch has fewer.
        lr: step size of the local SGD.
        momentum: of the local SGD, undamped as in ``torch.optim.SGD``, from zero in every round.
        mode: of batch norm and dropout during local training. In "train" each mini-batch is
            normalised by its own statistics.

    Raises:
        ConfigError: a value that has no meaning.
    """

    local_epochs: int = 5
    batch_size: int | None = None
    lr: float = 0.01
    momentum: float = 0.0
    mode: Mode = "eval"

    def __post_init__(self) -> None:
        if self.local_epochs < 1:
            raise ConfigError(
                f"expected at least 1 local epoch, got {self.local_epochs}; one epoch over the "
                "whole batch is FedSGD"
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ConfigError(
                f"expected at least 1 image in a local step, got {self.batch_size}; "
                "leave it out for the whole batch"
            )
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ConfigError(
                f"expected a local learning rate above 0 and finite, got {self.lr}; try 0.01"
            )
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"expected a local momentum in [0, 1), got {self.momentum}; try 0.9")
        _require_mode(self.mode)

    def splits(self, count: int) -> bool:
        """Returns whether a batch of ``count`` images is split, so that their order matters."""
        return self.batch_size is not None and self.batch_size < count

    def steps(self, count: int) -> int:
        """Returns the number of local steps on a batch of ``count`` images."""
        return self.local_epochs * math.ceil(count / min(self.batch_size or count, count))

    def order(self, count: int, generator: Generator | None) -> Order:
        """Returns the mini-batches of all epochs, shuffled anew for each.

        Nothing is drawn where the whole batch makes one step.

        Raises:
            ConfigError: there is an order to draw and no generator to draw it from.
        """
        if not self.splits(count):
            return (tuple(range(count)),) * self.local_epochs
        if generator is None:
            raise ConfigError(
                "expected a torch.Generator for the order of the local mini-batches, got None; "
                "pass generator=torch.Generator().manual_seed(...)"
            )
        steps: list[tuple[int, ...]] = []
        for _ in range(self.local_epochs):
            shuffled = torch.randperm(count, generator=generator, device=generator.device)
            steps += [tuple(part.tolist()) for part in shuffled.split(self.batch_size or count)]
        return tuple(steps)

    def gradients(self, count: int) -> float:
        """Returns how many gradients the update is a sum of, if they were all taken at theta_0.

        The gradient of step s is in the velocity of every later step t as momentum^(t - s), so
        the sum over the T steps is sum_k (1 - momentum^k) / (1 - momentum), k = 1 ... T; T without
        momentum.
        """
        return sum(
            (1 - self.momentum**k) / (1 - self.momentum) for k in range(1, self.steps(count) + 1)
        )


Protocol = FedSGD | FedAvg
"""Every kind of local training."""

PROTOCOLS: dict[str, type[FedSGD] | type[FedAvg]] = {"fedsgd": FedSGD, "fedavg": FedAvg}
"""By the names that files and the command line have."""


@dataclass(frozen=True)
class Reveal:
    """The threat model: what the server knows beside the update.

    Attributes:
        labels: whether the labels of the batch are known (the paper's setting).
        bn_statistics: of the batch-norm layers: "none"; "running", the network's running
            statistics as a proxy; "exact", those of the client's batch.
        clients: number of clients whose updates are summed (secure aggregation); 1 is none.
        order: whether the server knows which images made which local step (FedAvg). A client
            draws that for itself, so it is known in the upper bound alone. Images go by their
            labels here, so these must be known too.

    Raises:
        ConfigError: an unknown kind of statistics, fewer than one client, or an order of images
            without labels.
    """

    labels: bool = True
    bn_statistics: BnReveal = "none"
    clients: int = 1
    order: bool = False

    def __post_init__(self) -> None:
        if self.bn_statistics not in get_args(BnReveal):
            raise ConfigError(
                f"expected bn_statistics among {', '.join(get_args(BnReveal))}, "
                f"got {self.bn_statistics!r}; choose one"
            )
        if self.clients < 1:
            raise ConfigError(
                f"expected at least 1 client, got {self.clients}; give the number of clients "
                "whose updates are summed"
            )
        if self.order and not self.labels:
            raise ConfigError(
                "expected revealed labels with a revealed order, got hidden ones; an order says "
                "nothing about images that nothing is known of: reveal both, or no order"
            )


def _require_mode(mode: str) -> None:
    if mode not in get_args(Mode):
        raise ConfigError(f"expected mode 'eval' or 'train', got {mode!r}; choose one")
