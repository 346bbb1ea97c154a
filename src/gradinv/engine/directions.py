"""The direction v = dd/dg in parameter space along which a step differentiates.

For a distance of products v is a sum of the trial gradient a and the observed g, tensor by tensor,
so that a few dot products decide it; it is written into a's own memory. For any other distance it
is asked of autograd, with a as the leaves.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.engine.distances import Distance, OfProducts, Target
from gradinv.engine.rules.op import Run, channel_major


def flat(tensor: Tensor) -> Tensor:
    """Returns a view of all elements in the order of their memory."""
    return (tensor if channel_major(tensor) else tensor.permute(0, 2, 3, 1)).reshape(-1)


def _groups(target: Target, *, apart: bool) -> list[tuple[str, ...]]:
    """Returns the names of the tensors that a distance may take as one.

    Biases and the vectors of batch norm are many and short, so that every operation on one of them
    is a call and nothing else: they are one group, unless the distance wants every tensor apart.
    """
    short = tuple(name for name, value in target.gradient.items() if value.dim() == 1)
    if apart:
        return [(name,) for name in target.gradient]
    others = [(name,) for name in target.gradient if name not in short]
    return [*others, short] if short else others


def _joined(tensors: Mapping[str, Tensor], group: tuple[str, ...]) -> Tensor:
    """Returns a group's tensors as one vector."""
    parts = [flat(tensors[name]) for name in group]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Matcher:
    """The distance of every restart's gradient, and the direction v in its place.

    Args:
        distance: d.
        target: what is compared with; its tensors in the memory order of the gradients.
    """

    def __init__(self, distance: Distance, target: Target) -> None:
        self.distance, self.target = distance, target
        self.names = list(target.gradient)
        self.closed = distance if isinstance(distance, OfProducts) else None
        # A ghost gives dot products alone, from which |a - g|^2 comes out by cancellation.
        self.has_ghosts = self.closed is not None and not self.closed.cancels
        self.groups = _groups(target, apart=self.closed is not None and self.closed.apart)
        self.flat = [_joined(target.gradient, group) for group in self.groups]
        self.absent = None
        if target.mask is not None:
            self.absent = [~_joined(target.mask, group) for group in self.groups]
        self.observed = torch.stack([value.dot(value) for value in self.flat])

    def _trials(self, run: Run, group: tuple[str, ...]) -> list[Tensor]:
        """Returns a group's gradient of every restart as one vector; the run's become views."""
        if len(group) == 1:
            return [flat(trial) for trial in run.gradients[group[0]]]
        parts = [run.gradients[name] for name in group]
        joined = [torch.cat(own) for own in zip(*parts, strict=True)]
        sizes = [len(own[0]) for own in parts]
        views = zip(*(vector.split(sizes) for vector in joined), strict=True)
        run.gradients.update(zip(group, map(list, views), strict=True))
        return joined

    def _products(self, run: Run) -> tuple[list[list[Tensor]], Tensor, Tensor]:
        """Returns a of every group and restart, <a, g>, and |a|^2; applies the mask to a in place.

        A ghost has no a.
        """
        trials: list[list[Tensor]] = []
        inner, own = [], []
        for index, group in enumerate(self.groups):
            ghost = run.ghosts.get(group[0])
            if ghost is not None:
                trials.append([])
                inner += ghost.inner.unbind()
                own += ghost.own.unbind()
                continue
            trials.append(self._trials(run, group))
            for trial in trials[-1]:
                if self.absent is not None:
                    trial.masked_fill_(self.absent[index], 0)
                inner.append(trial.dot(self.flat[index]))
                own.append(trial.dot(trial))
        shape = (len(self.groups), run.restarts)
        return trials, torch.stack(inner).view(shape).t(), torch.stack(own).view(shape).t()

    def value(self, run: Run) -> Float[Tensor, " restart"]:
        """Returns the distance of every restart; may overwrite the gradients."""
        if self.closed is not None and self.has_ghosts:
            _, inner, own = self._products(run)
            return self.closed.closed(inner, own, self.observed).value
        trials = [
            {name: run.gradients[name][index] for name in self.names}
            for index in range(run.restarts)
        ]
        return torch.stack([self.distance(trial, self.target) for trial in trials])

    def direct(self, run: Run) -> tuple[Float[Tensor, " restart"], Float[Tensor, " restart"]]:
        """Turns the gradients into directions, in their own memory.

        Returns:
            The distances, and the factors that v still lacks.
        """
        if self.closed is None:
            return self._by_autograd(run.gradients)
        trials, inner, own = self._products(run)
        found = self.closed.closed(inner, own, self.observed)
        for index, group in enumerate(self.groups):
            alpha = found.on_trial[:, index]
            beta = None if found.on_observed is None else found.on_observed[:, index]
            ghost = run.ghosts.get(group[0])
            if ghost is not None:
                ghost.alpha, ghost.beta = alpha, beta
                continue
            g = self.flat[index]
            for restart, trial in enumerate(trials[index]):
                other = g if beta is None else g * beta[restart]
                torch.addcmul(other, trial, alpha[restart], out=trial)
        if self.closed.cancels:
            # v is the difference now: its own square has no cancellation, as line searches need.
            squares = [torch.stack([v.dot(v) for v in group]) for group in trials]
            return torch.stack(squares).sum(0), found.factor
        return found.value, found.factor

    def _by_autograd(
        self, gradients: Mapping[str, list[Tensor]]
    ) -> tuple[Float[Tensor, " restart"], Float[Tensor, " restart"]]:
        values = []
        for index in range(len(gradients[self.names[0]])):
            leaves = [gradients[name][index].requires_grad_() for name in self.names]
            with torch.enable_grad():
                value = self.distance(dict(zip(self.names, leaves, strict=True)), self.target)
            directions = torch.autograd.grad(
                value, leaves, allow_unused=True, materialize_grads=True
            )
            for name, direction in zip(self.names, directions, strict=True):
                gradients[name][index] = direction
            values.append(value.detach())
        return torch.stack(values), torch.ones_like(torch.stack(values))
