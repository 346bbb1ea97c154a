"""The client's side: how an update comes about, and what of it the server sees."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from gradinv.data import ClientBatch
from gradinv.errors import ConfigError, GradinvError, ModelError, ObservationError
from gradinv.federated.checks import check_not_zero
from gradinv.federated.client import local_update, logits, loss_gradient
from gradinv.federated.defense import Defense, check_defenses
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg, FedSGD, Order, Protocol, Reveal
from gradinv.memory import own_network
from gradinv.models.batchnorm import (
    BatchStatistics,
    batch_norm_layers,
    record_batch_statistics,
    require_mode,
    running_statistics,
)
from gradinv.models.normalize import normalization_of
from gradinv.models.weights import fingerprint


def observe(
    model: nn.Module,
    batch: ClientBatch,
    *,
    protocol: Protocol = FedSGD(),  # noqa: B008 -- a frozen value
    defenses: Sequence[Defense] = (),
    reveal: Reveal = Reveal(),  # noqa: B008 -- a frozen value
    generator: Generator | None = None,
    model_info: Mapping[str, str] | None = None,
) -> Observation:
    """Makes the update of one client and keeps only what the server gets to see.

    Args:
        model: the network that the server sent, in the protocol's mode; it is not changed.
        batch: the client's data.
        protocol: what the client computes.
        defenses: applied to the update in this order; the server knows them.
        reveal: what the server knows beside the update.
        generator: source of randomness of the order of local mini-batches and of the defences
            that need one.
        model_info: free text about the network, kept in the observation ("spec", "seed").

    Raises:
        ModelError: the model is in the wrong mode, has no batch-norm layers whose statistics could
            be revealed, does not fit the batch's channels or labels, or fails on it.
        ConfigError: the order or a defence needs the generator, a defence does not say what it
            leaves, more than one client is asked for, or the order of a client that splits nothing.
        ObservationError: the gradient is not finite or zero everywhere, or local training diverged.
    """
    check_defenses(defenses)
    if reveal.clients != 1:
        raise ConfigError(
            f"expected one client, got clients={reveal.clients}; one batch is one client's"
        )
    if reveal.order and isinstance(protocol, FedSGD):
        raise ConfigError(
            "expected FedAvg for an order of local steps to reveal, got FedSGD; reveal no order"
        )
    require_mode(model, protocol.mode)
    model = own_network(model)
    if reveal.bn_statistics != "none" and not batch_norm_layers(model):
        raise ModelError(
            f"expected batch-norm layers whose {reveal.bn_statistics} statistics are revealed, "
            "got a network without any; reveal none"
        )
    num_classes = _num_classes(model, batch, protocol)
    order: Order | None = None
    if isinstance(protocol, FedAvg):
        order = protocol.order(len(batch.images), generator)
        gradient = _trained(model, batch, protocol, order)
        # After the training, so that dropout draws the same whatever is revealed.
        with record_batch_statistics(model) as recorded, torch.no_grad():
            if reveal.bn_statistics == "exact":
                logits(model, batch.images)
    else:
        with record_batch_statistics(model) as recorded, _foreign(batch, protocol):
            gradient = loss_gradient(model, batch.images, batch.labels, loss=protocol.loss)
    check_not_zero(gradient)
    for defense in defenses:
        gradient = defense.apply(gradient, generator)
    statistics: Mapping[str, BatchStatistics] | None = None
    if reveal.bn_statistics == "running":
        statistics = running_statistics(model)
    elif reveal.bn_statistics == "exact":
        statistics = {
            name: BatchStatistics(value.mean.detach(), value.var.detach())
            for name, value in recorded.statistics.items()
        }
    channels, height, width = batch.images.shape[1:]
    return Observation(
        gradient={name: value.detach() for name, value in gradient.items()},
        batch_size=len(batch.images),
        image_shape=(channels, height, width),
        num_classes=num_classes,
        labels=batch.labels.clone() if reveal.labels else None,
        bn_statistics=statistics,
        protocol=protocol,
        defenses=tuple(defenses),
        clients=reveal.clients,
        model={**(model_info or {}), "fingerprint": fingerprint(model)},
        order=order if reveal.order else None,
    )


@contextmanager
def _foreign(batch: ClientBatch, protocol: Protocol) -> Iterator[None]:
    """Says in one line what the network, which may be anybody's, could not do with the batch.

    Raises:
        ModelError: whatever it raised.
    """
    try:
        yield
    except GradinvError:
        raise
    except Exception as error:  # foreign code, which may raise anything
        count, *shape = batch.images.shape
        local = f", {protocol.batch_size} at a time" if isinstance(protocol, FedAvg) else ""
        raise ModelError(
            f"expected a network that trains on {count} images of shape {tuple(shape)}{local} in "
            f"{protocol.mode} mode, got {type(error).__name__}: {error}; mend the network, or "
            "change the batch size or the mode"
        ) from error


def _num_classes(model: nn.Module, batch: ClientBatch, protocol: Protocol) -> int:
    normalize = normalization_of(model)
    # Broadcasting would hide this one: three means over one channel give three channels.
    if normalize is not None and len(normalize.mean) != batch.images.shape[1]:
        raise ModelError(
            f"expected images of {len(normalize.mean)} channels (the network's), got "
            f"{batch.images.shape[1]}; load the images with channels={len(normalize.mean)}"
        )
    with torch.no_grad(), _foreign(batch, protocol):
        num_classes = protocol.loss.classes(logits(model, batch.images).shape[1])
    highest = int(batch.labels.max())
    if highest >= num_classes:
        raise ModelError(
            f"expected labels below {num_classes} (the network's classes), got {highest}; "
            f"build the network with at least {highest + 1} classes"
        )
    return num_classes


def _trained(
    model: nn.Module, batch: ClientBatch, protocol: FedAvg, order: Order
) -> dict[str, Tensor]:
    """Returns the update of local training, which must have stayed finite."""
    with _foreign(batch, protocol):
        update = local_update(model, batch.images, batch.labels, protocol, order)
    if not all(torch.isfinite(value).all() for value in update.values()):
        raise ObservationError(
            f"expected local training that stays finite, got NaN or infinity after "
            f"{len(order)} local steps of lr {protocol.lr:g} and "
            f"momentum {protocol.stepper.momentum:g}; lower the local learning rate"
        )
    return update
