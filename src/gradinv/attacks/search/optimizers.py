"""How a stage's point is moved: the small interface of every optimiser, and Adam.

An optimiser is a value; opened on a space it becomes a :class:`Stepper`. L-BFGS and CMA-ES have
modules of their own beside this one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.attacks.search.cost import StageCost
from gradinv.attacks.search.spaces import SearchSpace
from gradinv.state import load_optimizer_tensors, optimizer_tensors


@runtime_checkable
class Stepper(Protocol):
    """An optimiser at work on the parameters of one space, which it moves in place."""

    def step(self, cost: StageCost, factor: float) -> Float[Tensor, " restart"]:
        """Moves every restart once.

        Args:
            cost: to be asked at the points that the step needs.
            factor: of the schedule, on the learning rate.

        Returns:
            The cost of every restart where the step started; of a population, the least.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Returns the state beside the point itself, for a checkpoint."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts back what :meth:`tensors` returned; the point has been put back before."""
        ...


@runtime_checkable
class Optimizer(Protocol):
    """A value that opens a :class:`Stepper`.

    Attributes:
        has_rate: whether it has a learning rate that a schedule can scale.
        has_gradient: whether it asks for gradients, and so for every kind of regulariser.
    """

    has_rate: ClassVar[bool]
    has_gradient: ClassVar[bool]

    def open(self, space: SearchSpace, source: torch.Generator) -> Stepper:
        """Returns the optimiser at work on a space; ``source`` is its only source of chance."""
        ...


@dataclass(frozen=True)
class Adam:
    """Adam with its default betas.

    Attributes:
        lr: step size; in normalised pixel units for x.
        lr_weights: step size of w where z and w are searched together; ``lr`` otherwise.
        signed: feed it the sign of the gradient (Geiping et al. 2020).
        noise: standard deviation of the noise added after every step, in learning rates: the
            Langevin term of Yin et al. 2021, eq. 13.
    """

    lr: float
    lr_weights: float | None = None
    signed: bool = False
    noise: float = 0.0
    has_rate: ClassVar[bool] = True
    has_gradient: ClassVar[bool] = True

    def open(self, space: SearchSpace, source: torch.Generator) -> "AdamStepper":
        """Returns Adam over what the space searches."""
        return AdamStepper(self, space, source)


class AdamStepper:
    """Adam at work; a restart whose cost is not finite gets a gradient of zero.

    Args:
        settings: its numbers.
        space: what it moves.
        source: of the noise.
    """

    def __init__(self, settings: Adam, space: SearchSpace, source: torch.Generator) -> None:
        self.settings = settings
        self.source = source
        self.searched = {
            name: value for name, value in space.named_parameters() if value.requires_grad
        }
        groups: list[dict[str, Any]] = []
        for name, parameter in self.searched.items():
            own = settings.lr_weights if name.startswith("w.") else None
            lr = settings.lr if own is None else own
            groups.append({"params": [parameter], "lr": lr, "base_lr": lr})
        self.adam = torch.optim.Adam(groups, fused=True)

    def step(self, cost: StageCost, factor: float) -> Float[Tensor, " restart"]:
        """Moves every restart once."""
        value, gradients = cost.evaluate()
        dead = ~torch.isfinite(value)
        for name, parameter in self.searched.items():
            gradient = gradients[name]
            if dead.any():
                gradient[dead] = 0
            parameter.grad = gradient.sign() if self.settings.signed else gradient
        for group in self.adam.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.adam.step()
        if self.settings.noise > 0:
            self._shake()
        return value

    @torch.no_grad()
    def _shake(self) -> None:
        for group in self.adam.param_groups:
            for parameter in group["params"]:
                noise = torch.randn(parameter.shape, generator=self.source)
                parameter.add_(noise.to(parameter), alpha=group["lr"] * self.settings.noise)

    def tensors(self) -> dict[str, Tensor]:
        """Returns Adam's moments."""
        return optimizer_tensors(self.adam)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts Adam's moments back."""
        load_optimizer_tensors(self.adam, tensors)
