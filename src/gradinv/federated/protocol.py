"""What the client does with its batch, and what the server gets to know."""

from dataclasses import dataclass
from typing import Literal, get_args

from gradinv.errors import ConfigError
from gradinv.models.batchnorm import Mode

BnReveal = Literal["none", "running", "exact"]


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
        if self.mode not in get_args(Mode):
            raise ConfigError(f"expected mode 'eval' or 'train', got {self.mode!r}; choose one")


Protocol = FedSGD
"""Every kind of local training; a union as soon as there is more than one."""


@dataclass(frozen=True)
class Reveal:
    """The threat model: what the server knows beside the update.

    Attributes:
        labels: whether the labels of the batch are known (the paper's setting).
        bn_statistics: of the batch-norm layers: "none"; "running", the network's running
            statistics as a proxy; "exact", those of the client's batch.
        clients: number of clients whose updates are summed (secure aggregation); 1 is none.

    Raises:
        ConfigError: an unknown kind of statistics, or fewer than one client.
    """

    labels: bool = True
    bn_statistics: BnReveal = "none"
    clients: int = 1

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
