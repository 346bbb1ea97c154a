"""Costs with known minima, as engines over images of one row of coordinates."""

from collections.abc import Callable

import torch
from torch import Tensor

from gradinv.attacks.search.cost import StageCost
from gradinv.attacks.search.spaces import PixelSpace, Scene
from gradinv.engine import Evaluated


class Landscape:
    """An engine whose cost is a function of the coordinates (..., n) alone."""

    way = "a formula"
    reason = None

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function = function
        self.evaluations = 0

    def evaluate(self, images: Tensor) -> Evaluated:
        self.evaluations += len(images)
        x = images.detach().requires_grad_()
        with torch.enable_grad():
            cost = self.function(x.flatten(1))
        (gradient,) = torch.autograd.grad(cost.sum(), x)
        return Evaluated(cost.detach(), cost.detach(), gradient)

    def matching(self, images: Tensor) -> Tensor:
        self.evaluations += len(images)
        return self.function(images.detach().flatten(1))


def rosenbrock(x: Tensor) -> Tensor:
    """Minimum 0 at (1, ..., 1), at the end of a bent valley."""
    return (100 * (x[:, 1:] - x[:, :-1] ** 2) ** 2 + (1 - x[:, :-1]) ** 2).sum(1)


def on(landscape: Landscape, starts: Tensor) -> StageCost:
    """Returns the cost over starts (restart, n), which its space moves."""
    one = torch.ones((1, 1, 1), dtype=starts.dtype)
    scene = Scene(1, (1, 1, starts.shape[1]), 0 * one, one)
    space = PixelSpace(starts[:, None, None, None].clone(), scene, box=False)
    return StageCost(space, landscape, (), scene)


def position(cost: StageCost) -> Tensor:
    """Returns where the space stands, (restart, n)."""
    return cost.space().detach().flatten(1)
