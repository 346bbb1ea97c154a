"""Tries an attack of your own beside one of the literature: an attack is a value.

    python examples/own_attack.py

This one steps with Adam, matches the cosine as most do, and pulls the image towards few grey
levels by a penalty that is written here. This audits data that you hold.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import gradinv
from gradinv.attacks import Adam
from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.attacks.search.spaces import Pixels
from gradinv.data import load_images
from gradinv.engine.terms import Sees
from gradinv.models import build_model


@dataclass(frozen=True)
class Contrast:
    """Prefers images whose pixels are far from their mean."""

    weight: float
    sees: ClassVar[Sees] = "images"  # normalised, (batch, channel, height, width)

    def __call__(self, images: Tensor) -> Tensor:
        """Returns the penalty on one batch."""
        spread = (images - images.mean(dim=(1, 2, 3), keepdim=True)).square().mean()
        return self.weight * torch.exp(-spread)


def make_attack(steps: int) -> gradinv.Attack:
    """Returns the attack: one stage over the pixels."""
    terms = (TotalVariation(0.01), Contrast(0.01))
    stage = gradinv.Stage(Pixels(), steps, Adam(0.1, signed=True), regularizers=terms)
    return gradinv.Attack("contrast", (stage,))


def main(steps: int = 300) -> gradinv.AuditResult:
    """Audits a network with both attacks, on the images that the package has."""
    images = load_images(None)
    channels, size, _ = images.image_shape
    result = gradinv.audit(
        build_model(
            "lenet", num_classes=images.num_classes, channels=channels, image_size=size, seed=0
        ),
        images.images(range(len(images))),
        images.labels,
        batch_size=1,
        attack=[f"gi-x:steps={steps}", make_attack(steps)],
    )
    print(result.table())
    return result


if __name__ == "__main__":
    main()
