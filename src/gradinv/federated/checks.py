"""Checks of what an update says about itself."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gradinv.errors import ObservationError
from gradinv.federated.protocol import FedAvg, Order, Protocol


def check_counts(
    image_shape: tuple[int, int, int], batch_size: int, num_classes: int, clients: int
) -> None:
    """Checks the numbers that everything on the server's side is shaped by.

    They come from files, where they can be anything.

    Raises:
        ObservationError: one that is no whole number above 0.
    """
    counts = {"batch_size": batch_size, "num_classes": num_classes, "clients": clients}
    for name, count in counts.items():
        if not _is_count(count):
            raise ObservationError(
                f"expected {name} as a whole number above 0, got {count!r}; observe it again"
            )
    if len(image_shape) != 3 or not all(_is_count(size) for size in image_shape):
        raise ObservationError(
            f"expected three whole numbers above 0 in image_shape, got {image_shape}; "
            "observe it again"
        )


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def check_floats(tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Checks that all tensors of an update hold finite floating-point numbers.

    Raises:
        ObservationError: naming all that do not.
    """
    other = [(name, value) for name, value in tensors if not value.is_floating_point()]
    if other:
        kinds = sorted({str(value.dtype).split(".")[-1] for _, value in other})
        raise ObservationError(
            f"expected floating-point numbers in the update, got {', '.join(kinds)} in "
            f"{', '.join(name for name, _ in other)}; observe it again"
        )
    broken = [name for name, value in tensors if not torch.isfinite(value).all()]
    if broken:
        raise ObservationError(
            f"expected finite numbers in the update, got NaN or infinity in "
            f"{', '.join(broken)}; ask the client for it again"
        )


def check_labels(labels: Tensor, batch_size: int, num_classes: int) -> None:
    """Checks that there is a class of the network for each image.

    Raises:
        ObservationError: another number of labels, or one that is no class.
    """
    if labels.dtype != torch.int64:
        raise ObservationError(
            f"expected whole numbers (int64) as labels, got {str(labels.dtype).split('.')[-1]}; "
            "observe it again"
        )
    if labels.shape != (batch_size,):
        raise ObservationError(
            f"expected {batch_size} labels, one for each image, got shape {tuple(labels.shape)}; "
            "observe it again"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ObservationError(
            f"expected labels from 0 to {num_classes - 1}, got {low} to {high}; observe it again"
        )


def check_clients(clients: int) -> None:
    """Checks that an update is of one client, as everything that attacks takes it to be.

    Raises:
        ObservationError: it is the sum of several.
    """
    if clients != 1:
        raise ObservationError(
            f"expected the update of one client, got the sum of those of {clients}; attack an "
            "update as it was before they were summed"
        )


def check_order(order: Order, batch_size: int, protocol: Protocol) -> None:
    """Checks that every local step of the protocol has images, and only images of the batch.

    Raises:
        ObservationError: it does not, or the client made no local steps.
    """
    steps = protocol.steps(batch_size) if isinstance(protocol, FedAvg) else 0
    inside = all(0 <= image < batch_size for step in order for image in step)
    if len(order) != steps or not all(order) or not inside:
        raise ObservationError(
            f"expected an order of {steps} local steps over images 0 to {batch_size - 1}, got "
            f"{len(order)} steps over {sorted({image for step in order for image in step})}; "
            "observe it again"
        )


def check_not_zero(gradient: Mapping[str, Tensor]) -> None:
    """Checks that an update says something before a defence touches it.

    No attack rebuilds anything from zeros, so an audit of them would find every setting safe.

    Raises:
        ObservationError: every entry is zero.
    """
    if not any(bool(value.any()) for value in gradient.values()):
        raise ObservationError(
            "expected an update that is not zero everywhere, got zeros in all tensors before any "
            "defence, which would make every attack look harmless; give the network at least 2 "
            "classes and weights (and a local learning rate) under which its loss changes"
        )


def differences(
    own: Mapping[str, tuple[int, ...]], theirs: Mapping[str, tuple[int, ...]], what: str
) -> list[str]:
    """Returns one phrase for each name that is missing, unexpected or of another shape.

    Args:
        own: name -> shape of what there should be.
        theirs: name -> shape of what there is.
        what: the word for one of them, such as "parameter".
    """
    problems = [f"{what} {name} is missing" for name in own if name not in theirs]
    problems += [f"{what} {name} is unexpected" for name in theirs if name not in own]
    problems += [
        f"{what} {name} has shape {theirs[name]} instead of {shape}"
        for name, shape in own.items()
        if name in theirs and theirs[name] != shape
    ]
    return problems
