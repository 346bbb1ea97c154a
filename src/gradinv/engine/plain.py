"""Plain double backward: works for any module, and is what the other ways are tested against."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from gradinv.engine.base import Evaluated, Problem
from gradinv.engine.distances import Distance, Target
from gradinv.engine.graphs import full_precision
from gradinv.engine.terms import Regularizer
from gradinv.errors import AttackError, ConfigError
from gradinv.federated.client import loss_gradient
from gradinv.federated.observation import Observation
from gradinv.models.batchnorm import record_batch_statistics


class PlainDoubleBackward:
    """c = d(grad l(x), g) + regularisers, differentiated by autograd alone (the oracle).

    Only the images get a gradient; neither theta nor a generator's w accumulates one.

    Args:
        model: f_theta in the observation's mode.
        observation: g and what is known beside it; labels must be known unless ``soft_labels``.
        distance: d.
        regularizers: those on images and on batch-norm statistics are used here.
        target: what to compare with; the observation's gradient when None.
        reason: why this way was taken in place of a faster one.
        soft_labels: every call brings one distribution over the classes for each image, and the
            observation's labels are not looked at (Zhu et al. 2019).
    """

    way = "plain"

    def __init__(
        self,
        model: nn.Module,
        observation: Observation,
        *,
        distance: Distance,
        regularizers: Sequence[Regularizer] = (),
        target: Target | None = None,
        reason: str | None = None,
        soft_labels: bool = False,
    ) -> None:
        self.problem = Problem.of(
            model,
            observation,
            distance=distance,
            regularizers=regularizers,
            target=target,
            soft_labels=soft_labels,
        )
        self.target = self.problem.target
        self.reason = reason

    def _trial(
        self,
        images: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"] | Float[Tensor, "batch class"],
        *,
        create_graph: bool,
    ) -> dict[str, Tensor]:
        """Returns what a client with these images would send."""
        problem = self.problem
        return loss_gradient(
            problem.model, images, labels, loss=problem.loss, create_graph=create_graph
        )

    def _cost(
        self,
        images: Float[Tensor, "batch channel height width"],
        labels: Int[Tensor, " batch"] | Float[Tensor, "batch class"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Returns cost and matching cost of one batch, with their graph."""
        problem = self.problem
        with_statistics = bool(problem.statistics_terms)
        recorder = record_batch_statistics(problem.model) if with_statistics else nullcontext()
        with recorder as recorded:
            trial = self._trial(images, labels, create_graph=True)
        matching = problem.distance(trial, self.target)
        cost = matching
        for term in problem.statistics_terms:
            assert recorded is not None
            cost = cost + term(recorded.statistics, problem.statistics)
        if problem.image_terms:
            cost = cost + problem.image_penalty(images)
        return cost, matching

    def _labels(
        self, soft: Float[Tensor, "restart batch class"] | None, restarts: int
    ) -> Sequence[Tensor]:
        """Returns the labels of every restart: those given, or the known ones."""
        known = self.problem.labels
        if (soft is None) == (known is None):
            raise AttackError(
                "expected labels either in the update or with every call, got "
                f"{'neither' if soft is None else 'both'}; open the engine with soft_labels "
                "exactly when the search moves them"
            )
        if soft is not None:
            return soft.detach().unbind()
        assert known is not None
        return [known] * restarts

    def evaluate(
        self,
        images: Float[Tensor, "restart batch channel height width"],
        labels: Float[Tensor, "restart batch class"] | None = None,
    ) -> Evaluated:
        """Returns cost, matching cost and dc/dx of every restart; dc/dy too with soft labels.

        Raises:
            ConfigError: an operation of the network has no second derivative in PyTorch.
        """
        costs, matchings, gradients = [], [], []
        for batch, y in zip(images.detach(), self._labels(labels, len(images)), strict=True):
            searched = [batch.requires_grad_()]
            if labels is not None:
                searched.append(y.requires_grad_())
            with full_precision():
                with torch.enable_grad():
                    cost, matching = self._cost(batch, y)
                # A network that detaches its images has no derivative: zero, as where it rounds
                # them.
                with _told_in_one_line():
                    gradients.append(torch.autograd.grad(cost, searched, materialize_grads=True))
            costs.append(cost.detach())
            matchings.append(matching.detach())
        with_respect_to = [torch.stack(each) for each in zip(*gradients, strict=True)]
        return Evaluated(torch.stack(costs), torch.stack(matchings), *with_respect_to)

    def matching(
        self,
        images: Float[Tensor, "restart batch channel height width"],
        labels: Float[Tensor, "restart batch class"] | None = None,
    ) -> Float[Tensor, " restart"]:
        """Returns the matching cost alone; infinity where it is not finite."""
        with full_precision():
            values = [
                self.problem.distance(
                    self._trial(batch, y, create_graph=False), self.target
                ).detach()
                for batch, y in zip(images.detach(), self._labels(labels, len(images)), strict=True)
            ]
        return torch.nan_to_num(torch.stack(values), nan=torch.inf, posinf=torch.inf)


_NO_DERIVATIVE = re.compile(r"derivative for (?:aten::)?(\w+?)(?:_backward)? is not implemented")


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """Names the operation whose gradient autograd cannot differentiate.

    Raises:
        ConfigError: there is one.
    """
    try:
        yield
    except RuntimeError as error:
        found = _NO_DERIVATIVE.search(str(error))
        if found is None:
            raise
        raise ConfigError(
            "expected a network that autograd can differentiate twice, got the operation "
            f"{found[1]}, which has no second derivative in PyTorch; replace it in the network "
            "by others that compute the same, or attack with way=auto an update of one gradient"
        ) from error
