"""Looking into a pickle without running it.

Published StyleGAN2 checkpoints of NVIDIA are pickled networks with their source code inside, which
unpickling would run. Here every class and function that such a file names becomes an inert record
of what it was called with; only tensors are built, by PyTorch's own functions, from bytes that are
read as PyTorch reads files of strangers.
"""

import io
import pickle  # noqa: TID251 -- nothing that a file names is ever found, so nothing of it is run
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, _utils

from gradinv.errors import StorageError


class Inert(dict):
    """What stands for an object of a pickle: its class's name, and all that it was given.

    Attributes:
        kind: name of the class or function.
        arguments: of the call that made it.
        state: that it was given afterwards.
    """

    kind = ""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any, **_settings: Any) -> "Inert":
        """Returns an empty record; some objects are made without ``__init__``."""
        made = super().__new__(cls)
        made.arguments, made.state = arguments, None
        return made

    def __init__(self, *_arguments: Any, **_settings: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, _value: Any) -> None:
        """Takes what a list would take, and forgets it."""

    def extend(self, _values: Any) -> None:
        """Takes what a list would take, and forgets it."""


def _storage(content: bytes) -> Any:
    """Returns the storage of a tensor, from bytes that are a file of PyTorch's own."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)  # noqa: TID251


def _parameter(data: Tensor, *_other: Any) -> Tensor:
    """Returns a parameter's values."""
    return data


_BUILT = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
}


class _Reader(pickle.Unpickler):
    """Finds what builds tensors, and inert records in place of all else."""

    def find_class(self, module: str, name: str) -> Any:
        """Returns what stands for a name in the file; no module is imported."""
        known = _BUILT.get((module, name))
        return type(name, (Inert,), {"kind": f"{module}.{name}"}) if known is None else known


def look_into(path: Path) -> Any:
    """Returns what a pickle holds, objects as :class:`Inert` records.

    Raises:
        StorageError: the file is broken, or no pickle.
    """
    try:
        with Path(path).open("rb") as file:
            return _Reader(file).load()
    except Exception as error:  # a broken pickle fails in any way
        raise StorageError(
            f"expected a pickled network at {path}, got {type(error).__name__}: "
            f"{' '.join(str(error).split())}; download it again"
        ) from error


def network_tensors(record: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields parameters and buffers of a network's record under the names of its state."""
    state = _state(record)
    for group in ("_parameters", "_buffers"):
        for name, value in _items(state.get(group)):
            if isinstance(value, Tensor):
                yield prefix + name, value
    for name, part in _items(state.get("_modules")):
        yield from network_tensors(part, f"{prefix}{name}.")


def _state(record: Any) -> Mapping[str, Any]:
    """Returns the attributes of an object: given afterwards, or inside the call that makes it."""
    if not isinstance(record, Inert):
        return {}
    places = [record.state, *(each.get("state") for each in record.arguments if _is_map(each))]
    return next((each for each in places if _is_map(each) and "_modules" in each), {})


def _is_map(value: Any) -> bool:
    return isinstance(value, Mapping)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if _is_map(value):
        yield from ((str(key), item) for key, item in value.items())
