"""L-BFGS for any number of restarts at once (Liu & Nocedal 1989), with a weak Wolfe line search.

Every restart has its own history, step length and fate; only the evaluations are shared. All of
its state is tensors, so that a checkpoint holds it as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradinv.attacks.search.cost import StageCost
from gradinv.attacks.search.spaces import SearchSpace

# Nocedal & Wright 2006, p. 33 and 62: sufficient decrease and curvature.
_DECREASE, _CURVATURE = 1e-4, 0.9


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS; one step is one direction with its line search.

    The line search is the bisection of Lewis & Overton 2013 (algorithm 2.6) for the weak Wolfe
    conditions.

    Attributes:
        history: pairs of steps and gradient differences that are kept.
        probes: evaluations of one line search at most.
    """

    history: int = 50
    probes: int = 20
    has_rate: ClassVar[bool] = False
    has_gradient: ClassVar[bool] = True

    def open(self, space: SearchSpace, source: torch.Generator) -> "LBFGSStepper":  # noqa: ARG002
        """Returns L-BFGS over what the space searches; it has no use for chance."""
        return LBFGSStepper(self, space)


class LBFGSStepper:
    """L-BFGS at work.

    A restart whose line search finds nothing forgets its history and tries the steepest descent;
    if that finds nothing either, it has settled and stands still.

    Args:
        settings: its numbers.
        space: what it moves.
    """

    def __init__(self, settings: LBFGS, space: SearchSpace) -> None:
        self.settings = settings
        self.parameters = dict(space.named_parameters())
        self.searched = [name for name, value in self.parameters.items() if value.requires_grad]
        point = self._read()
        restarts, size = point.shape
        self.point = torch.full_like(point, torch.nan)  # not evaluated anywhere yet
        self.value = point.new_full((restarts,), torch.nan)
        self.gradient = torch.zeros_like(point)
        # An empty slot has s = y = rho = 0 and so adds nothing to a direction.
        self.s = point.new_zeros((settings.history, restarts, size))
        self.y = torch.zeros_like(self.s)
        self.rho = point.new_zeros((settings.history, restarts))
        self.scale = point.new_zeros(restarts)  # of the first inverse Hessian; 0 without history
        self.settled = torch.zeros(restarts, dtype=torch.bool, device=point.device)

    def tensors(self) -> dict[str, Tensor]:
        """Returns the last evaluation and the history."""
        names = ("point", "value", "gradient", "s", "y", "rho", "scale", "settled")
        return {name: getattr(self, name) for name in names}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts them back."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])

    @torch.no_grad()
    def step(self, cost: StageCost, factor: float) -> Float[Tensor, " restart"]:  # noqa: ARG002
        """Moves every restart once; the step length is the line search's alone."""
        self._evaluate_anew(cost)
        before = self.value.clone()
        live = torch.isfinite(before) & ~self.settled
        direction = self._direction()
        # Rounding can turn a direction uphill; that restart starts over from the steepest descent.
        uphill = live & ((direction * self.gradient).sum(1) >= 0)
        if uphill.any():
            self._forget(uphill)
            direction = self._direction()
        moved = self._line_search(cost, direction, live)
        stuck = live & ~moved
        self.settled |= stuck & (self.scale == 0)
        self._forget(stuck)
        self._write()
        return before

    def _read(self) -> Float[Tensor, "restart size"]:
        """Returns what is searched as one vector for each restart."""
        return torch.cat([self.parameters[name].detach().flatten(1) for name in self.searched], 1)

    def _write(self) -> None:
        for name, value in self._named(self.point).items():
            self.parameters[name].copy_(value)

    def _named(self, flat: Float[Tensor, "some size"]) -> dict[str, Tensor]:
        """Returns the vectors cut back into parameters."""
        shapes = [self.parameters[name].shape[1:] for name in self.searched]
        pieces = flat.split([shape.numel() for shape in shapes], dim=1)
        return {
            name: piece.unflatten(1, shape) if shape else piece.squeeze(1)
            for name, shape, piece in zip(self.searched, shapes, pieces, strict=True)
        }

    def _evaluate(
        self, cost: StageCost, which: Bool[Tensor, " restart"], flat: Float[Tensor, "some size"]
    ) -> tuple[Float[Tensor, " some"], Float[Tensor, "some size"]]:
        """Returns cost and gradient of some of the restarts at other points."""
        fixed = {name: value[which] for name, value in self.parameters.items()}
        value, gradients = cost.evaluate({**fixed, **self._named(flat)})
        return value, torch.cat([gradients[name].flatten(1) for name in self.searched], dim=1)

    def _evaluate_anew(self, cost: StageCost) -> None:
        """Evaluates the restarts that are not where the last step left them."""
        point = self._read()
        new = (point != self.point).any(dim=1)
        if new.any():
            self._forget(new)
            self.point[new] = point[new]
            self.value[new], self.gradient[new] = self._evaluate(cost, new, point[new])

    def _forget(self, which: Bool[Tensor, " restart"]) -> None:
        self.s[:, which] = 0
        self.y[:, which] = 0
        self.rho[:, which] = 0
        self.scale[which] = 0

    def _direction(self) -> Float[Tensor, "restart size"]:
        """Returns -H g by the two-loop recursion (Nocedal & Wright 2006, algorithm 7.4).

        Without a history H is the identity divided by |g|_1 where that is above 1, so that the
        first step moves no further than 1 in all.
        """
        q = self.gradient.clone()
        filled = [index for index in range(len(self.rho)) if self.rho[index].any()]
        alphas = {}
        for index in reversed(filled):
            alphas[index] = self.rho[index] * (self.s[index] * q).sum(1)
            q -= alphas[index][:, None] * self.y[index]
        first = self.gradient.abs().sum(1).clamp_min(1).reciprocal()
        q *= torch.where(self.scale > 0, self.scale, first)[:, None]
        for index in filled:
            beta = self.rho[index] * (self.y[index] * q).sum(1)
            q += (alphas[index] - beta)[:, None] * self.s[index]
        return -q

    def _line_search(
        self,
        cost: StageCost,
        direction: Float[Tensor, "restart size"],
        live: Bool[Tensor, " restart"],
    ) -> Bool[Tensor, " restart"]:
        """Moves point, value and gradient along the direction; returns which restarts moved."""
        start, value, gradient = self.point.clone(), self.value.clone(), self.gradient.clone()
        slope = (gradient * direction).sum(1)
        low, length = torch.zeros_like(value), torch.ones_like(value)
        high = torch.full_like(value, torch.inf)
        open_, moved = live & (slope < 0), torch.zeros_like(live)
        for _ in range(self.settings.probes):
            if not open_.any():
                break
            reached = start[open_] + length[open_, None] * direction[open_]
            there, ahead = self._evaluate(cost, open_, reached)
            enough = there <= value[open_] + _DECREASE * length[open_] * slope[open_]
            enough &= torch.isfinite(ahead).all(dim=1)
            flat = (ahead * direction[open_]).sum(1) >= _CURVATURE * slope[open_]
            # A point that decreases enough is kept even when the curvature is never met.
            kept = _within(open_, enough)
            self.point[kept], self.value[kept] = reached[enough], there[enough]
            self.gradient[kept] = ahead[enough]
            moved |= kept
            high = torch.where(_within(open_, ~enough), length, high)
            low = torch.where(kept, length, low)
            open_ = open_ & ~_within(open_, enough & flat)
            length = torch.where(
                open_, torch.where(high.isinf(), 2 * length, (low + high) / 2), length
            )
        self._remember(self.point - start, self.gradient - gradient, moved)
        return moved

    def _remember(self, s: Tensor, y: Tensor, moved: Bool[Tensor, " restart"]) -> None:
        """Appends one pair for each restart; an empty one where the curvature is not positive."""
        product, square = (s * y).sum(1), y.square().sum(1)
        tiny = torch.finfo(s.dtype).eps
        good = moved & (product > tiny * s.norm(dim=1) * square.sqrt()) & (square > 0)
        for history, new in ((self.s, s * good[:, None]), (self.y, y * good[:, None])):
            history.copy_(torch.cat([history[1:], new[None]]))
        rho = torch.where(good, product.reciprocal(), torch.zeros_like(product))
        self.rho.copy_(torch.cat([self.rho[1:], rho[None]]))
        self.scale = torch.where(good, product / square, self.scale)


def _within(
    which: Bool[Tensor, " restart"], chosen: Bool[Tensor, " some"]
) -> Bool[Tensor, " restart"]:
    """Returns the restarts among ``which`` that are ``chosen`` of them."""
    result = torch.zeros_like(which)
    result[which] = chosen
    return result
