"""The independent reference of every engine's gradient: central differences of its cost."""

import pytest
import torch
from torch import Generator


def check_against_differences(engine, images: int, generator: Generator, *, directions=5) -> None:
    """Checks dc/dx of a batch of ``images`` grey images of 8 x 8 in float64, along directions."""
    x = torch.rand((1, images, 1, 8, 8), generator=generator, dtype=torch.float64)
    gradient = engine.evaluate(x).gradient
    step = 1e-5
    # A cost of 1 - cosine is rounded as 1 is, and its difference is divided by twice the step.
    rounding = 10 * torch.finfo(x.dtype).eps / step
    for _ in range(directions):
        direction = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        ahead = engine.evaluate(x + step * direction).cost
        behind = engine.evaluate(x - step * direction).cost
        expected = ((ahead - behind) / (2 * step)).item()
        assert (gradient * direction).sum().item() == pytest.approx(
            expected, rel=1e-6, abs=rounding * max(1.0, abs(ahead.item()))
        )
