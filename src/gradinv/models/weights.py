"""A network's weights on disk, and the fingerprint that ties an update to them."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from gradinv.errors import GradinvError, ModelError
from gradinv.files import load_tensors, save_tensors

WRAPPERS = ("module.", "_module.", "_orig_mod.")
"""What DataParallel, Opacus and torch.compile put in front of a network's names."""

_SCHEMA = 1
_NAMED = 3  # parameters of each kind of misfit that an error names
_COUNTER = "num_batches_tracked"  # in batch norm, beside running_mean


def save_weights(model: nn.Module, path: Path) -> None:
    """Saves the model's state as safetensors, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    save_tensors(path, model.state_dict(), {"kind": "weights", "schema": _SCHEMA})


def load_weights(model: nn.Module, path: Path) -> list[str]:
    """Loads weights into ``model``, which is untouched on an error.

    Takes what :func:`save_weights` wrote, and the ``state_dict`` that any other program saved as
    safetensors under the model's own names, or with what wrappers put in front of them. A
    batch-norm counter that is missing or empty stays as the model has it.

    Returns:
        What was done to make them fit, a phrase each; empty where the names are the model's own.

    Raises:
        StorageError: the file is missing, a pickle or truncated.
        ModelError: the file is no set of weights, or it does not fit: the first names that are
            missing, unexpected, of another shape or not finite are listed, and how many more; or
            two names differ by a wrapper's prefix alone.
    """
    stored, header = load_tensors(path, what="model weights", foreign=True)
    if header.get("kind", "weights") != "weights":
        raise ModelError(
            f"expected model weights at {path}, got {header['kind']!r} in its header; "
            "give a file that save_weights wrote, or a state_dict saved as safetensors"
        )
    named, notes = unwrapped(stored, model, error=ModelError)
    fill_weights(model, named, f"the weights of this model at {path}")
    return notes


def unwrapped(
    tensors: Mapping[str, Tensor], model: nn.Module, *, error: type[GradinvError]
) -> tuple[dict[str, Tensor], list[str]]:
    """Returns tensors without what wrappers put in front of their names, and a note of it.

    A prefix that is a part of the model's own names stays.

    Args:
        tensors: name -> tensor.
        model: whose names they are to have.
        error: class of the error.

    Raises:
        GradinvError: of that class; two names become one.
    """
    own = {*dict(model.named_parameters()), *dict(model.named_buffers()), *model.state_dict()}
    named: dict[str, Tensor] = {}
    stripped: set[str] = set()
    for name, value in tensors.items():
        short = name
        while short not in own:
            prefix = next((word for word in WRAPPERS if short.startswith(word)), None)
            if prefix is None:
                break
            short = short.removeprefix(prefix)
            stripped.add(prefix)
        if short in named:
            raise error(
                f"expected one tensor for {short}, got two that differ by a prefix; leave one out"
            )
        named[short] = value
    prefixes = ", ".join(sorted(stripped))
    return named, [f"took {prefixes} off the names"] if stripped else []


def fill_weights(model: nn.Module, stored: Mapping[str, Tensor], what: str) -> None:
    """Puts tensors by name into ``model``, which is untouched on an error.

    Args:
        model: the network.
        stored: name -> tensor.
        what: they are, for the error.

    Raises:
        ModelError: they do not fit; the first names that are missing, unexpected, of another shape
            or not finite are listed, and how many more.
    """
    own = model.state_dict()
    stored = _with_counters(own, stored)
    both = [(name, value, stored[name]) for name, value in own.items() if name in stored]
    problems = [
        *_first([f"{name} is missing" for name in own if name not in stored]),
        *_first([f"{name} is unexpected" for name in stored if name not in own]),
        *_first([
            f"{name} has shape {tuple(theirs.shape)} instead of {tuple(value.shape)}"
            for name, value, theirs in both
            if theirs.shape != value.shape
        ]),
        *_first([
            f"{name} holds NaN or infinity"
            for name, value, theirs in both
            if theirs.shape == value.shape and not torch.isfinite(theirs).all()
        ]),
    ]  # fmt: skip
    if problems:
        raise ModelError(
            f"expected {what}, got {'; '.join(problems)}; "
            "build the model that the weights were saved from"
        )
    model.load_state_dict(stored)


def _with_counters(own: dict[str, Tensor], stored: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the stored weights with the model's own counters of batches where they hold none.

    Only of layers that they hold: of others the counter is missing with everything else.
    Older programs saved none, and some formats turn a number into a vector; only a momentum of None
    ever reads a counter.
    """
    counters = {
        name: _counter(value, stored.get(name))
        for name, value in own.items()
        if name.endswith(_COUNTER) and f"{name.removesuffix(_COUNTER)}running_mean" in stored
    }
    return {**stored, **counters}


def _counter(own: Tensor, stored: Tensor | None) -> Tensor:
    """Returns a stored counter, or the model's own where none is stored."""
    if stored is None or stored.shape == (0,):
        return own
    return stored.reshape(()) if stored.shape == (1,) else stored


def _first(problems: list[str]) -> list[str]:
    """Returns a few problems of one kind, and how many more there are."""
    more = len(problems) - _NAMED
    return [*problems[:_NAMED], *([f"and {more} more like that"] if more > 0 else [])]


def fingerprint(model: nn.Module) -> str:
    """Returns 16 hex characters that tell one set of weights from another.

    SHA-256 over names, shapes and values of all parameters and buffers. Values are hashed as
    float64 on the CPU, so the same weights in float32 and float64, or on another device, have the
    same fingerprint.
    """
    digest = hashlib.sha256()
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(f"{name} {tuple(value.shape)}\n".encode())
        digest.update(_bytes(value))
    return digest.hexdigest()[:16]


def _bytes(value: Tensor) -> bytes:
    value = value.detach().cpu()
    wide = torch.float64 if value.is_floating_point() else value.dtype
    return value.to(wide).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
