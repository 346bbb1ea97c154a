"""The batch-norm terms of the cost, and what they add to the adjoint of the layers' inputs."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from gradinv.engine.rules.norm import BatchNorm
from gradinv.engine.rules.op import Saved, images_of
from gradinv.engine.terms import StatisticsTerm
from gradinv.models.batchnorm import BatchStatistics


class StatisticsTerms:
    """Terms on mean and variance of what enters each batch-norm layer.

    Args:
        terms: what to add to the cost.
        observed: layer name -> what the terms compare with.
    """

    def __init__(
        self, terms: Sequence[StatisticsTerm], observed: Mapping[str, BatchStatistics]
    ) -> None:
        self.terms, self.observed = terms, observed

    def evaluate(
        self, layers: Sequence[tuple[BatchNorm, Saved]], restarts: int
    ) -> tuple[Tensor, Callable[[str, Saved, Tensor], Tensor]]:
        """Returns the penalty of every restart, and a function that gives the adjoints.

        The function takes a layer's name, what it saved, and the factor that the adjoints are to be
        divided by. With N values in a channel, d mean / dx = 1 / N and
        d var / dx = 2 (x - mean) / N.
        """
        means, variances, latest = {}, {}, {}
        for op, saved in layers:
            latest[op.layer] = (
                saved  # of several calls the last one counts, as where it is recorded
            )
            if op.training:
                means[op.layer], variances[op.layer] = saved.batch_mean, saved.batch_var
            else:
                means[op.layer] = saved.x.mean(1)
                variances[op.layer] = (saved.x - means[op.layer][:, None]).square().mean(1)
        penalties, on_mean, on_var = [], [], []
        names = list(means)
        for index in range(restarts):
            leaves = [means[name][index].detach().requires_grad_() for name in names]
            leaves += [variances[name][index].detach().requires_grad_() for name in names]
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

        def adjoint(name: str, saved: Saved, factor: Tensor) -> Tensor:
            if saved is not latest[name]:
                return images_of(torch.zeros_like(saved.x).flatten(0, 1), saved.shape)
            # In train mode the mean has been taken out of what was saved.
            mean = torch.zeros_like(means[name]) if "batch_mean" in vars(saved) else means[name]
            count = saved.x.shape[1] * factor[:, None]
            slope = 2 * torch.stack([own[name] for own in on_var]) / count
            constant = torch.stack([own[name] for own in on_mean]) / count - slope * mean
            rows = torch.addcmul(constant[:, None], saved.x, slope[:, None])
            return images_of(rows.flatten(0, 1), saved.shape)

        return torch.stack(penalties), adjoint
