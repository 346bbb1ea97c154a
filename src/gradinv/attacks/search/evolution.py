"""CMA-ES (Hansen & Ostermeier 2001) through the ``cma`` package: a search without gradients.

The package's state is a web of objects that only a pickle would hold. But it is a function of the
start, the random numbers and the costs that it was told; so a checkpoint holds those costs alone,
and resuming asks and tells all over again, without evaluating anything.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.attacks.search.cost import StageCost
from gradinv.attacks.search.spaces import SearchSpace
from gradinv.memory import owned

# A cost that is not finite ranks last; the package computes with what it is told.
_WORST = 1e30


@dataclass(frozen=True)
class CMA:
    """CMA-ES over everything that the space searches, as one vector for each restart.

    One step is one population, evaluated as one batch. The package's own criteria for stopping are
    not asked; the stage's steps decide.

    Attributes:
        sigma: initial standard deviation.
        population: points in one step; 4 + 3 ln n of n coordinates when None.
        from_mean: start at zero, the mean of the latents, instead of at the space's own start. With
            sigma 1 the first population is then a draw from the prior.
    """

    sigma: float = 1.0
    population: int | None = None
    from_mean: bool = True
    has_rate: ClassVar[bool] = False
    has_gradient: ClassVar[bool] = False

    def open(self, space: SearchSpace, source: torch.Generator) -> "CMAStepper":
        """Returns CMA-ES over what the space searches, with random numbers from ``source``."""
        return CMAStepper(self, space, source)


class CMAStepper:
    """CMA-ES at work; the space always stands at the best point of each restart so far.

    Args:
        settings: its numbers.
        space: what it moves.
        source: one seed for each restart is drawn from here.
    """

    def __init__(self, settings: CMA, space: SearchSpace, source: torch.Generator) -> None:
        self.parameters = dict(space.named_parameters())
        self.searched = [name for name, value in self.parameters.items() if value.requires_grad]
        starts = torch.cat([self.parameters[n].detach().flatten(1) for n in self.searched], dim=1)
        starts = starts.double().cpu().numpy() * (0.0 if settings.from_mean else 1.0)
        seeds = torch.randint(2**62, (len(starts),), generator=source).tolist()
        self.strategies = [
            _strategy(start, settings, np.random.default_rng(seed))
            for start, seed in zip(starts, seeds, strict=True)
        ]
        self.told: list[Tensor] = []

    def step(self, cost: StageCost, factor: float) -> Float[Tensor, " restart"]:  # noqa: ARG002
        """Evaluates one population of every restart and learns from it."""
        asked = [strategy.ask() for strategy in self.strategies]
        population = len(asked[0])
        point = {
            name: value.detach().repeat_interleave(population, dim=0)
            for name, value in self.parameters.items()
        }
        point |= self._named(owned(torch.from_numpy(np.concatenate(asked))))
        values = cost.value(point).double().cpu().unflatten(0, (len(asked), population))
        values = torch.where(torch.isfinite(values), values, torch.inf)
        best = torch.stack(self.told).amin(dim=(0, 2)) if self.told else torch.inf
        least, index = values.min(dim=1)
        rows = torch.arange(len(asked)) * population + index
        with torch.no_grad():
            for name in self.searched:
                better = (least < best).nonzero().flatten()
                self.parameters[name][better] = point[name][rows[better]]
        self._tell(asked, values)
        return least.to(next(iter(self.parameters.values())))

    def tensors(self) -> dict[str, Tensor]:
        """Returns the cost of every point of every population."""
        return {"told": torch.stack(self.told)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Repeats the search up to here from the costs alone."""
        for values in tensors["told"]:
            self._tell([strategy.ask() for strategy in self.strategies], values)

    def _tell(self, asked: list[Any], values: Float[Tensor, "restart population"]) -> None:
        self.told.append(values)
        for strategy, points, row in zip(self.strategies, asked, values, strict=True):
            strategy.tell(points, row.clamp_max(_WORST).tolist())

    def _named(self, flat: Float[Tensor, "point size"]) -> dict[str, Tensor]:
        """Returns the vectors cut back into parameters."""
        shapes = [self.parameters[name].shape[1:] for name in self.searched]
        pieces = flat.split([shape.numel() for shape in shapes], dim=1)
        return {
            name: piece.reshape(-1, *shape).to(self.parameters[name].detach())
            for name, shape, piece in zip(self.searched, shapes, pieces, strict=True)
        }


def _strategy(start: np.ndarray, settings: CMA, source: np.random.Generator) -> Any:
    """Returns the package's object, silent and with a source of chance of its own."""
    with warnings.catch_warnings():
        # It warns at import that it cannot plot; nothing here plots.
        warnings.simplefilter("ignore")
        from cma import CMAEvolutionStrategy  # pyright: ignore[reportMissingTypeStubs]

    draw: Callable[..., np.ndarray] = lambda *shape: source.standard_normal(shape)  # noqa: E731
    options: dict[str, Any] = {"verbose": -9, "seed": float("nan"), "randn": draw}
    if settings.population is not None:
        options["popsize"] = settings.population
    return CMAEvolutionStrategy(start, settings.sigma, options)
