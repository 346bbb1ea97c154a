"""A network's weights on disk, and the fingerprint that ties an update to them."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from gradinv.errors import ModelError
from gradinv.files import load_tensors, save_tensors

_SCHEMA = 1


def save_weights(model: nn.Module, path: Path) -> None:
    """Saves the model's state as safetensors, whole or not at all.

    Raises:
        StorageError: the file cannot be written.
    """
    save_tensors(path, model.state_dict(), {"kind": "weights", "schema": _SCHEMA})


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads weights into ``model``, which is untouched on an error.

    Takes what :func:`save_weights` wrote, and the ``state_dict`` that any other program saved as
    safetensors under the model's own names.

    Raises:
        StorageError: the file is missing, a pickle or truncated.
        ModelError: the file is no set of weights, or it does not fit: all names that are missing,
            unexpected, of another shape or not finite are listed.
    """
    stored, header = load_tensors(path, what="model weights", foreign=True)
    if header.get("kind", "weights") != "weights":
        raise ModelError(
            f"expected model weights at {path}, got {header['kind']!r} in its header; "
            "give a file that save_weights wrote, or a state_dict saved as safetensors"
        )
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in stored]
    problems += [f"{name} is unexpected" for name in stored if name not in own]
    for name, value in own.items():
        if name not in stored:
            continue
        if stored[name].shape != value.shape:
            problems.append(
                f"{name} has shape {tuple(stored[name].shape)} instead of {tuple(value.shape)}"
            )
        elif not torch.isfinite(stored[name]).all():
            problems.append(f"{name} holds NaN or infinity")
    if problems:
        raise ModelError(
            f"expected the weights of this model at {path}, got {'; '.join(problems)}; "
            "build the model that the weights were saved from"
        )
    model.load_state_dict(stored)


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
