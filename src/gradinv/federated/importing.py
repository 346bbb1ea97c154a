"""Updates that other programs made: tensors by name become an :class:`Observation`.

Nothing is guessed: names must be the network's own, but for what wrappers put in front of them, and
what is left out is said.
"""

import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from gradinv.errors import ConfigError, ObservationError, StorageError
from gradinv.federated.checks import check_floats, check_not_zero, differences
from gradinv.federated.client import trainable
from gradinv.federated.defenses import Defense
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedSGD, Protocol
from gradinv.files import load_tensors
from gradinv.models.weights import fingerprint, unwrapped

NOTES = "imported"
"""Where an observation's free text holds what was done to bring it in."""


def from_delta(
    delta: Mapping[str, Tensor],
    model: nn.Module,
    *,
    lr: float,
    image_shape: tuple[int, int, int],
    num_classes: int,
    batch_size: int,
    labels: Int[Tensor, " batch"] | None = None,
    protocol: Protocol = FedSGD(),  # noqa: B008 -- a frozen value
    defenses: Sequence[Defense] = (),
    model_info: Mapping[str, str] | None = None,
) -> Observation:
    """Returns the update of a client that sent what its training changed.

    >>> import gradinv, torch
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
    >>> sent = {name: 0.1 * torch.ones_like(value) for name, value in model.named_parameters()}
    >>> update = gradinv.from_delta(
    ...     sent, model, lr=0.1, image_shape=(1, 8, 8), num_classes=3, batch_size=1)
    >>> update.gradient["1.bias"]
    tensor([1., 1., 1.])

    Args:
        delta: name -> theta_0 - theta_T, the weights before less those after; or the gradient
            itself, with ``lr=1``.
        model: the network with theta_0, in the protocol's mode.
        lr: the client's learning rate, which the difference is divided by.
        image_shape: (channels, height, width) of one image.
        num_classes: number of logits of the network.
        batch_size: number of images behind the update.
        labels: their classes, where they are known.
        protocol: what the client computed.
        defenses: what it is known to have done to the update.
        model_info: free text about the network, kept in the observation.

    Raises:
        ObservationError: names or shapes are not the network's (all are listed), nothing but
            zeros, or numbers that are not finite.
        ConfigError: a learning rate that is not above 0 and finite.
    """
    _require_rate(lr)
    named, notes = unwrapped(delta, model, error=ObservationError)
    gradient, more = _fitting(named, model)
    check_floats(list(gradient.items()))
    check_not_zero(gradient)
    short = sorted({str(value.dtype)[6:] for value in gradient.values() if value.itemsize < 4})
    more += [f"computed in float32 with numbers of {', '.join(short)}"] if short else []
    return Observation(
        gradient={
            name: (value.float() if value.itemsize < 4 else value) / lr
            for name, value in gradient.items()
        },
        batch_size=batch_size,
        image_shape=image_shape,
        num_classes=num_classes,
        labels=labels,
        protocol=protocol,
        defenses=tuple(defenses),
        model={
            **(model_info or {}),
            "fingerprint": fingerprint(model),
            NOTES: "; ".join([*notes, *more]),
        },
    )


def from_state_dicts(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    model: nn.Module,
    *,
    lr: float,
    image_shape: tuple[int, int, int],
    num_classes: int,
    batch_size: int,
    labels: Int[Tensor, " batch"] | None = None,
    protocol: Protocol = FedSGD(),  # noqa: B008 -- a frozen value
    defenses: Sequence[Defense] = (),
    model_info: Mapping[str, str] | None = None,
) -> Observation:
    """Returns the update of a client whose weights are known before and after its training.

    >>> import copy, gradinv, torch
    >>> before = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
    >>> after = copy.deepcopy(before)
    >>> loss = torch.nn.functional.cross_entropy(after(torch.rand(1, 1, 8, 8)), torch.tensor([2]))
    >>> loss.backward()
    >>> torch.optim.SGD(after.parameters(), lr=0.1).step()
    >>> update = gradinv.from_state_dicts(
    ...     before.state_dict(), after.state_dict(), before,
    ...     lr=0.1, image_shape=(1, 8, 8), num_classes=3, batch_size=1)
    >>> update.gradient["1.bias"].argmin().item()
    2

    The difference is taken in float64, and given in the type of the weights. The arguments are
    those of :func:`from_delta`; ``model`` must hold the weights ``before``.

    Raises:
        ObservationError: as :func:`from_delta` raises it; or the two differ in their names or
            shapes, or the weights before are not those of the model.
        ConfigError: a learning rate that is not above 0 and finite.
    """
    _require_rate(lr)
    first, _ = unwrapped(before, model, error=ObservationError)
    second, notes = unwrapped(after, model, error=ObservationError)
    problems = differences(_shapes(first), _shapes(second), "tensor")
    if problems:
        raise ObservationError(
            f"expected the same tensors before and after, got some where after {_few(problems)}; "
            "give two states of one network"
        )
    own = trainable(model)
    moved = [
        name
        for name, value in own.items()
        if name in first and not _same(first[name], value.detach())
    ]
    if moved:
        raise ObservationError(
            f"expected the network's own weights before, got others in {_few(moved)}; give the "
            "file of before as the network's weights (--weights)"
        )
    delta = {
        name: (value.double() - second[name].double()).to(value.dtype)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }
    found = from_delta(
        delta,
        model,
        lr=lr,
        image_shape=image_shape,
        num_classes=num_classes,
        batch_size=batch_size,
        labels=labels,
        protocol=protocol,
        defenses=defenses,
        model_info=model_info,
    )
    said = [*notes, *([found.model[NOTES]] if found.model[NOTES] else [])]
    return Observation(**{**vars(found), "model": {**found.model, NOTES: "; ".join(said)}})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads tensors by name from safetensors of any program, or from numpy's ``.npz``.

    An ``.npz`` of plain arrays runs no code when it is read; one with objects is a pickle, and is
    refused.

    Raises:
        StorageError: the file is missing, broken, a pickle, or an update of gradinv's own.
    """
    path = Path(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    tensors, header = load_tensors(path, what="tensors", foreign=True)
    if header.get("kind", "weights") != "weights":
        raise StorageError(
            f"expected tensors of another program at {path}, got gradinv's own "
            f"{header['kind']}; give it to gradinv as it is"
        )
    return tensors


def _read_npz(path: Path) -> dict[str, Tensor]:
    expected = f"expected an .npz of plain arrays at {path}"
    if not path.is_file():
        got = "a folder" if path.is_dir() else "nothing there"
        raise StorageError(f"{expected}, got {got}; check the path")
    tensors = {}
    try:
        # numpy leaves a file open that it could not read.
        with path.open("rb") as stream:
            file = np.load(stream, allow_pickle=False)
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise StorageError(f"{expected}, got a single array; save it with numpy.savez")
            for name in file.files:
                # A copy: the file's own bytes may lie at any offset.
                tensors[name] = torch.from_numpy(np.array(file[name], order="C"))
    except ValueError as error:
        raise StorageError(
            f"{expected}, got '{error}'; gradinv never unpickles, because that runs the file's "
            "code: save arrays of numbers"
        ) from error
    except TypeError as error:
        raise StorageError(f"{expected}, got '{error}'; save arrays of numbers") from error
    except (OSError, EOFError, RuntimeError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise StorageError(
            f"{expected}, got '{error}'; the file is broken or not what its name says: save it "
            "again with numpy.savez"
        ) from error
    return tensors


def _fitting(
    tensors: Mapping[str, Tensor], model: nn.Module
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns the tensors of the trained parameters in the network's order, and what was left out.

    Raises:
        ObservationError: names or shapes are not the network's.
    """
    own = trainable(model)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    buffers = set(dict(model.named_buffers())) | {
        name for name in tensors if name.endswith("num_batches_tracked")
    }
    still = {name for name in frozen if name in tensors}
    given = {
        name: value
        for name, value in tensors.items()
        if name not in still and (name in own or name not in buffers)
    }
    problems = differences(_shapes(own), _shapes(given), "parameter")
    if problems:
        raise ObservationError(
            f"expected an update of this network, got one where {_few(problems)}; give the "
            "network that the update was made with, or rename its tensors"
        )
    notes = []
    left = sorted(name for name in tensors if name not in given and name not in still)
    if left:
        notes.append(f"left out {len(left)} buffers, which are not trained: {_few(left)}")
    if still:
        notes.append(f"left out {len(still)} frozen parameters: {_few(sorted(still))}")
    return {name: given[name].detach() for name in own}, notes


def _require_rate(lr: float) -> None:
    if not 0 < lr < float("inf"):
        raise ConfigError(
            f"expected a learning rate above 0 and finite, got {lr}; give the client's, or 1 for "
            "a gradient"
        )


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in tensors.items()}


def _same(one: Tensor, other: Tensor) -> bool:
    # As the network holds them: the file may have another type.
    return one.shape != other.shape or bool(torch.equal(one.to(other), other))


def _few(words: Sequence[str], most: int = 8) -> str:
    """Returns the first of them, and how many more there are."""
    more = len(words) - most
    return "; ".join([*words[:most], *([f"and {more} more"] if more > 0 else [])])
