"""Pictures of what a prior knows."""

import io
from pathlib import Path

import torch
from PIL import Image

from gradinv.files import write_bytes
from gradinv.priors.generator import Generator

SAMPLES = "samples.png"
"""In a prior's folder."""

SAMPLES_A_ROW = 8
"""Columns of a grid, unless another number is asked for."""


@torch.no_grad()
def save_sample_grid(
    generator: Generator, path: Path, *, rows: int = 8, columns: int = SAMPLES_A_ROW, seed: int = 0
) -> None:
    """Writes a PNG of ``rows`` x ``columns`` samples; the same seed shows the same latents.

    Raises:
        StorageError: the file cannot be written.
    """
    z = generator.sample_latents(rows * columns, torch.Generator().manual_seed(seed))
    images = generator(z).mul(255).round().byte().cpu()
    channels, height, width = images.shape[1:]
    grid = images.view(rows, columns, channels, height, width).permute(0, 3, 1, 4, 2)
    grid = grid.reshape(rows * height, columns * width, channels).numpy()
    picture = Image.fromarray(grid[..., 0] if channels == 1 else grid)
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue())
