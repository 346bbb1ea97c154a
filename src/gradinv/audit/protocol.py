"""The client's protocol and the threat model, from the settings of an audit."""

from typing import Any

from gradinv.audit.plan import AuditConfig
from gradinv.federated import (
    FedAvg,
    FedSGD,
    LocalOptimizer,
    Loss,
    Protocol,
    Reveal,
    parse_loss,
    parse_optimizer,
)


def protocol_of(config: AuditConfig) -> Protocol:
    """Returns what a client computes."""
    if config.protocol == "fedsgd":
        return FedSGD(mode=config.mode, loss=parse_loss(config.loss))
    assert config.local_epochs is not None  # the config has filled them in
    assert config.local_lr is not None
    assert config.local_momentum is not None
    return FedAvg(
        local_epochs=config.local_epochs,
        batch_size=config.local_batch_size,
        lr=config.local_lr,
        momentum=config.local_momentum,
        mode=config.mode,
        loss=parse_loss(config.loss),
        optimizer=parse_optimizer(config.optimizer),
    )


def reveal_of(config: AuditConfig) -> Reveal:
    """Returns what the server knows beside the update."""
    return Reveal(
        labels=not config.hide_labels,
        bn_statistics=config.reveal_bn,
        order=config.reveal_order,
    )


def settings_of(protocol: Protocol, reveal: Reveal) -> dict[str, Any]:
    """Returns the settings of an audit that :func:`protocol_of` and :func:`reveal_of` read.

    All but the mode, which belongs to the network.
    """
    settings: dict[str, Any] = {
        "protocol": "fedsgd",
        "loss": str(protocol.loss),
        "hide_labels": not reveal.labels,
        "reveal_bn": reveal.bn_statistics,
        "reveal_order": reveal.order,
    }
    if isinstance(protocol, FedAvg):
        settings |= {
            "protocol": "fedavg",
            "local_epochs": protocol.local_epochs,
            "local_batch_size": protocol.batch_size,
            "local_lr": protocol.lr,
            "local_momentum": protocol.momentum,
            "optimizer": str(protocol.optimizer),
        }
    return settings


def local_training_note(protocol: FedAvg, reveal: Reveal, count: int) -> str:
    """Returns what a client of ``count`` images did before it sent anything, and who knows it."""
    steps, epochs = protocol.steps(count), protocol.local_epochs
    usual = protocol.optimizer == LocalOptimizer()
    name = "SGD" if usual else str(protocol.optimizer)
    settings = f", momentum {protocol.momentum:g}" if usual else ""
    if protocol.loss != Loss():
        settings += f", loss {protocol.loss}"
    known = "these settings"
    if protocol.splits(count):
        known += (
            " and which images made which step"
            if reveal.order
            else ", not which images made which step"
        )
    return (
        f"Each client trained before it sent the change of its weights: {_count(steps, 'step')} of "
        f"{name} ({_count(epochs, 'epoch')} over {_count(count, 'image')} in mini-batches of "
        f"{protocol.batch_size or count}, learning rate {protocol.lr:g}{settings}). "
        f"The server knows {known}."
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
