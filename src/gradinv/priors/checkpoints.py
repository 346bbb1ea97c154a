"""Weights that other programs saved, read without running what a file says.

A pickle is a program. PyTorch's own files are read by the interpreter that PyTorch has for files
of strangers (``weights_only=True``): it builds tensors, containers and numbers, and refuses a file
that asks for anything else before anything of it is called.
"""

import argparse
import pickle  # noqa: TID251 -- for the class of its errors
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradinv.errors import StorageError
from gradinv.files import load_tensors

_NESTED = 4  # levels of a checkpoint that are looked into
_NAMED = 12  # sets of weights that an error names
_PYTORCH = (b"PK\x03\x04", b"\x80\x02")  # a zip archive, and what PyTorch wrote before 1.6


def read_weights(path: Path, part: str | None = None) -> dict[str, Tensor]:
    """Returns the weights in a file: safetensors, or a ``state_dict`` that PyTorch saved.

    Args:
        path: the file.
        part: which set of weights, where a checkpoint holds several: ``g_ema``, or ``model.ema``
            for one inside another.

    Raises:
        StorageError: missing, broken, a pickle of more than tensors, no weights or several sets of
            them and ``part`` names none.
    """
    return _chosen(weight_sets(path), Path(path), part)


def weight_sets(path: Path) -> dict[str, dict[str, Tensor]]:
    """Returns every set of named tensors in a file, by where it lies; "" for the file itself.

    Raises:
        StorageError: missing, broken, or a pickle of more than tensors.
    """
    path = Path(path)
    start = b""
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(16)
    # The header of a safetensors file begins with its length, which may be any bytes.
    if not start.startswith(_PYTORCH) or start[8:9] == b"{":
        tensors, _ = load_tensors(path, what="a generator's weights", foreign=True)
        return {"": tensors}
    return dict(_sets(_unpickled(path)))


def _unpickled(path: Path) -> Any:
    expected = f"expected a generator's weights at {path}"
    try:
        # Training scripts keep their options beside the weights; a namespace is a plain container.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)  # noqa: TID251
    except pickle.UnpicklingError as error:
        raise StorageError(
            f"{expected}, got a pickle that asks for more than tensors ({_asked(error)}); nothing "
            "of it was run: load it where you trust it and save the state_dict with safetensors"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError) as error:
        raise StorageError(
            f"{expected}, got a truncated or foreign file ({' '.join(str(error).split())}); save "
            "the state_dict with safetensors"
        ) from error


def _asked(error: Exception) -> str:
    """Returns the part of PyTorch's long message that says what was asked for."""
    words = " ".join(str(error).split())
    _, found, rest = words.partition("WeightsUnpickler error: ")
    return (rest if found else words).split(". ", maxsplit=1)[0]


def _sets(content: Any, name: str = "", depth: int = _NESTED) -> Iterator[tuple[str, dict]]:
    """Yields every set of named tensors in a checkpoint, by where it lies."""
    if not isinstance(content, Mapping) or not depth:
        return
    tensors = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if tensors:
        yield name, tensors
    for key, value in content.items():
        yield from _sets(value, f"{name}.{key}" if name else str(key), depth - 1)


def _chosen(found: dict[str, dict[str, Tensor]], path: Path, part: str | None) -> dict[str, Tensor]:
    names = [f"{name or 'the file itself'} ({len(own)})" for name, own in found.items()]
    listed = ", ".join(names[:_NAMED]) + (" and others" if len(names) > _NAMED else "")
    if part is not None and part in found:
        return found[part]
    if part is None and len(found) == 1:
        return next(iter(found.values()))
    expected = "expected one set of weights" if part is None else f"expected weights in {part!r}"
    raise StorageError(
        f"{expected} at {path}, got {listed or 'no tensors'}; "
        + ("name one of them: --part" if found else "save the generator's state_dict")
    )
