"""The batch-norm terms of the cost, and what they add to the adjoint of the layers' inputs."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gradinv.attacks.engine.rules.norm import BatchNorm
from gradinv.attacks.engine.rules.op import Saved, per_channel
from gradinv.attacks.objectives import BatchNormMatching
from gradinv.models.batchnorm import BatchStatistics


class StatisticsTerms:
    """Terms on mean and variance of what enters each batch-norm layer.

    Args:
        terms: what to add to the cost.
        observed: layer name -> what the terms compare with.
    """

    def __init__(
        self, terms: Sequence[BatchNormMatching], observed: Mapping[str, BatchStatistics]
    ) -> None:
        self.terms, self.observed = terms, observed

    def evaluate(
        self, layers: Sequence[tuple[BatchNorm, Saved]], restarts: int
    ) -> tuple[Tensor, Callable[[str, Tensor, Tensor], Tensor]]:
        """Returns the penalty of every restart, and a function that gives the adjoints.

        The function takes a layer's name, its input x and the factor that the adjoints are to be
        divided by. With N values in a channel, d mean / dx = 1 / N and
        d var / dx = 2 (x - mean) / N.
        """
        means, variances = {}, {}
        for op, saved in layers:
            x = saved.x.unflatten(0, (restarts, -1))
            over = [axis for axis in range(1, x.dim()) if axis != 2]
            variances[op.layer], means[op.layer] = torch.var_mean(x, dim=over, correction=0)
        penalties, on_mean, on_var = [], [], []
        names = list(means)
        for index in range(restarts):
            leaves = [means[name][index].requires_grad_() for name in names]
            leaves += [variances[name][index].requires_grad_() for name in names]
            with torch.enable_grad():
                statistics = {
                    name: BatchStatistics(mean, var)
                    for name, mean, var in zip(
                        names, leaves[: len(names)], leaves[len(names) :], strict=True
                    )
                }
                penalty = torch.stack([t(statistics, self.observed) for t in self.terms]).sum()
            slopes = torch.autograd.grad(penalty, leaves)
            penalties.append(penalty.detach())
            on_mean.append(dict(zip(names, slopes[: len(names)], strict=True)))
            on_var.append(dict(zip(names, slopes[len(names) :], strict=True)))

        def adjoint(name: str, entering: Tensor, factor: Tensor) -> Tensor:
            x = entering.unflatten(0, (restarts, -1))
            count = x[0].numel() // x.shape[2] * factor[:, None]
            slope = 2 * torch.stack([own[name] for own in on_var]) / count
            constant = torch.stack([own[name] for own in on_mean]) / count - slope * means[name]
            return torch.addcmul(
                per_channel(constant[:, None], entering), x, per_channel(slope[:, None], entering)
            ).flatten(0, 1)

        return torch.stack(penalties), adjoint
