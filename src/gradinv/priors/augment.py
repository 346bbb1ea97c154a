"""Differentiable augmentation for GANs on little data (Zhao et al. 2020).

Real and generated images see the same kinds of random change, so that the discriminator cannot
learn the data by heart.
"""

import torch
from jaxtyping import Float
from torch import Tensor

Images = Float[Tensor, "batch channel height width"]


def translate(images: Images, generator: torch.Generator, *, ratio: float = 1 / 8) -> Images:
    """Shifts every image by up to ``ratio`` of its side, filling with its border pixels."""
    batch, _, height, width = images.shape
    reach = max(1, round(height * ratio))
    shift = torch.randint(-reach, reach + 1, (batch, 2), generator=generator).to(images.device)
    rows = (torch.arange(height, device=images.device) + shift[:, :1]).clamp(0, height - 1)
    columns = (torch.arange(width, device=images.device) + shift[:, 1:]).clamp(0, width - 1)
    index = torch.arange(batch, device=images.device)[:, None, None]
    moved = images.permute(0, 2, 3, 1)[index, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2)


def cutout(images: Images, generator: torch.Generator, *, ratio: float = 0.4) -> Images:
    """Greys out one square of ``ratio`` of the side in every image."""
    batch, _, height, width = images.shape
    side = round(height * ratio)
    corner = torch.randint(0, height - side // 2, (batch, 2, 1), generator=generator)
    corner = corner.to(images.device) - side // 4
    position = torch.arange(height, device=images.device)
    row = (position >= corner[:, 0]) & (position < corner[:, 0] + side)
    position = torch.arange(width, device=images.device)
    column = (position >= corner[:, 1]) & (position < corner[:, 1] + side)
    inside = (row[:, :, None] & column[:, None, :])[:, None]
    return torch.where(inside, torch.full_like(images, 0.5), images)


def color(images: Images, generator: torch.Generator) -> Images:
    """Changes brightness by up to 0.25 and contrast by a factor of 0.75 to 1.25."""
    batch = images.shape[0]
    draws = torch.rand((batch, 2, 1, 1, 1), generator=generator).to(images) - 0.5
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (1 + 0.5 * draws[:, 1]) + mean + 0.5 * draws[:, 0]


def augment(images: Images, generator: torch.Generator) -> Images:
    """Applies colour, translation and cutout, as ``policy="color,translation,cutout"`` does."""
    return cutout(translate(color(images, generator), generator), generator)


def flip(images: Images, generator: torch.Generator) -> Images:
    """Mirrors half of the images left to right (only for data where that makes sense)."""
    chosen = torch.rand((images.shape[0], 1, 1, 1), generator=generator).to(images.device) < 0.5
    return torch.where(chosen, images.flip(3), images)


__all__ = ["augment", "color", "cutout", "flip", "translate"]
