"""What the client does with its batch, and what the server gets to know."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Generator

from gradinv.errors import ConfigError
from gradinv.federated.loss import Loss, parse_loss
from gradinv.federated.optimizer import LocalOptimizer, parse_optimizer
from gradinv.models.batchnorm import Mode
from gradinv.room import require_room

BnReveal = Literal["none", "running", "exact"]

Order = tuple[tuple[int, ...], ...]
"""Which images of the client's batch each local step uses, in the order of the steps."""


@dataclass(frozen=True)
class FedSGD:
    """The client sends the gradient of its loss over one batch.

    Attributes:
        mode: of batch norm and dropout while the gradient is computed. In "eval" batch norm uses
            its running statistics and is the easier victim (the paper's setting).
        loss: what the client minimises.

    Raises:
        ConfigError: the mode is neither of the two.
    """

    mode: Mode = "eval"
    loss: Loss = Loss()  # noqa: RUF009 -- a frozen value

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
        loss: what the client minimises.
        optimizer: that moves the weights; plain SGD with ``momentum`` unless another is given.

    Raises:
        ConfigError: a value that has no meaning.
    """

    local_epochs: int = 5
    batch_size: int | None = None
    lr: float = 0.01
    momentum: float = 0.0
    mode: Mode = "eval"
    loss: Loss = Loss()  # noqa: RUF009 -- a frozen value
    optimizer: LocalOptimizer = LocalOptimizer()  # noqa: RUF009 -- a frozen value

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
        if self.momentum != 0 and self.optimizer != LocalOptimizer():
            raise ConfigError(
                f"expected the momentum in the optimiser's settings, got momentum "
                f"{self.momentum:g} beside {self.optimizer}; leave the one beside it out"
            )
        _require_mode(self.mode)

    @property
    def stepper(self) -> LocalOptimizer:
        """The optimiser with its momentum, wherever that was given."""
        return LocalOptimizer(momentum=self.momentum) if self.momentum else self.optimizer

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
            ConfigError: there is an order to draw and no generator to draw it from, or it cannot
                fit into memory.
        """
        needed = self.steps(count) * _STEP_BYTES
        if self.splits(count):
            needed += self.local_epochs * count * _INDEX_BYTES
        lower = "the local epochs (--local-epochs)"
        require_room(needed, "an order of local steps", lower, ConfigError)
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
        momentum. Weight decay is left out.

        Raises:
            ConfigError: the optimiser is Adam, whose update is no sum of gradients.
        """
        stepper = self.stepper
        if stepper.kind != "sgd":
            raise ConfigError(
                f"expected SGD for an update that is read as one gradient, got {stepper.kind}, "
                "whose steps have no gradient's length; simulate the steps, and reveal the labels"
            )
        momentum, total, velocity = stepper.momentum, 0.0, 0.0
        if not (stepper.dampening or stepper.nesterov):
            return sum((1 - momentum**k) / (1 - momentum) for k in range(1, self.steps(count) + 1))
        for step in range(self.steps(count)):
            velocity = momentum * velocity + (1 - stepper.dampening) if step else 1.0
            total += 1 + momentum * velocity if stepper.nesterov else velocity
        return total


Protocol = FedSGD | FedAvg
"""Every kind of local training."""

# Of a tuple of a local step's images in a longer one; the numbers in it are shared, or their own.
_STEP_BYTES, _INDEX_BYTES = 8, 8

PROTOCOLS: dict[str, type[FedSGD] | type[FedAvg]] = {"fedsgd": FedSGD, "fedavg": FedAvg}
"""By the names that files and the command line have."""


def written(protocol: Protocol) -> dict[str, Any]:
    """Returns a protocol's settings as JSON holds them, the loss and the optimiser as texts.

    These two are left out where they are the usual ones: so files from before there were others
    hold the same, and mean the same.
    """
    usual, settings = type(protocol)(), asdict(protocol)
    for name in ("loss", "optimizer"):
        if name in settings:
            del settings[name]
            if (value := getattr(protocol, name)) != getattr(usual, name):
                settings[name] = str(value)
    return settings


def read(name: str, settings: dict[str, Any]) -> Protocol:
    """Returns the protocol that :func:`written` wrote; what is left out is the usual.

    Raises:
        ConfigError: a value that has no meaning.
    """
    values = dict(settings)
    for key, parse in (("loss", parse_loss), ("optimizer", parse_optimizer)):
        if key in values:
            values[key] = parse(values[key])
    return PROTOCOLS[name](**values)


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
