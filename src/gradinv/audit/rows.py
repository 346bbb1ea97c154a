"""What an attack returned, as results are stored: numbers for JSON, pictures as bytes."""

import math
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from gradinv.attacks import Reconstruction


def attack_row(reconstruction: Reconstruction) -> dict[str, Any]:
    """Returns what an attack says about itself, without ground truth."""
    return {
        "steps": reconstruction.steps,
        "seconds": finite(reconstruction.seconds),
        "objective": finite(reconstruction.matching),
        "objectives": [finite(value) for value in reconstruction.objective],
        "restart": reconstruction.best,
        "outcome": reconstruction.outcome.value,
        "cost_fell": reconstruction.cost_fell,
        "label_recovery": label_recovery_row(reconstruction),
        "stages": [
            {
                "name": stage.name,
                "steps": stage.steps,
                "seconds": finite(stage.seconds),
                "start": None if stage.start is None else finite(stage.start),
            }
            for stage in reconstruction.stages
        ],
    }


def label_recovery_row(reconstruction: Reconstruction) -> dict[str, Any] | None:
    """Returns the labels that an attack found and how; None where they were revealed."""
    recovered = reconstruction.recovered
    if recovered is None:
        return None
    return {
        "labels": recovered.labels.tolist(),
        "method": recovered.method.value,
        "exact": recovered.exact,
        "gap": finite(recovered.gap),
    }


def picture_tensors(
    reconstruction: Reconstruction, order: list[int] | None = None
) -> dict[str, Tensor]:
    """Returns the pictures and cost curves of an attack under the names of a cell's file.

    Args:
        reconstruction: what the attack returned.
        order: which reconstruction belongs to which original; as they are without it.
    """
    index = list(range(len(reconstruction.images))) if order is None else order
    tensors = {"reconstruction": to_uint8(reconstruction.images[index])}
    for number, stage in enumerate(reconstruction.stages):
        tensors[f"stage/{number}/images"] = to_uint8(stage.images[index])
        tensors[f"stage/{number}/cost"] = stage.cost.float().cpu()
    return tensors


def to_uint8(
    images: Float[Tensor, "batch channel height width"],
) -> UInt8[Tensor, "batch channel height width"]:
    """Returns images in [0, 1] as 0..255."""
    return images.detach().mul(255).round().clamp(0, 255).to(torch.uint8).cpu()


def finite(value: Tensor | float) -> float | None:
    """Returns the value as JSON can hold it: None where it is NaN or infinite."""
    number = float(value)
    return number if math.isfinite(number) else None
