"""The independent reference of every engine's gradient: central differences of its cost."""

import pytest
import torch
from torch import Generator


def check_against_differences(
    engine, images: int, generator: Generator, *, directions=5, step=1e-5
) -> None:
    """Checks dc/dx of a batch of ``images`` grey images of 8 x 8 in float64, along directions.

    A smooth network bears a longer step, at which the rounding of its cost weighs less.
    """
    x = torch.rand((1, images, 1, 8, 8), generator=generator, dtype=torch.float64)
    gradient = engine.evaluate(x).gradient
    for _ in range(directions):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        ahead = engine.evaluate(x + step * direction).cost
        behind = engine.evaluate(x - step * direction).cost
        expected = ((ahead - behind) / (2 * step)).item()
        assert (gradient * direction).sum().item() == pytest.approx(expected, rel=1e-6)
