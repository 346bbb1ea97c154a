"""What the ways without autograd share: the first-order pass over the traced network."""

from abc import abstractmethod
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.engine.base import Evaluated, Problem
from gradinv.engine.directions import Matcher
from gradinv.engine.distances import Target
from gradinv.engine.graphs import Captured, full_precision
from gradinv.engine.program import Injection, Program
from gradinv.engine.rules.norm import BatchNorm
from gradinv.engine.rules.op import Run, Saved, channels_last, kernel_order
from gradinv.engine.statistics import StatisticsTerms

# Restarts are evaluated together as long as their activations are estimated to fit in this many
# bytes. A constant, not what happens to be free: a run and its resumption must do the same.
MEMORY = 2 * 1024**3
# Tensors of the size of each activation that a step keeps: itself, its adjoint, and tangents.
_COPIES = 4


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Returns the network's parameters as the rules take them."""
    return {name: kernel_order(value.detach()) for name, value in model.named_parameters()}


def _ordered(target: Target) -> Target:
    """Returns a target with its tensors in the memory order that the rules take."""
    mask = target.mask
    return Target(
        {name: kernel_order(value) for name, value in target.gradient.items()},
        None if mask is None else {name: kernel_order(own) for name, own in mask.items()},
    )


def loss_adjoint(probabilities: Tensor, labels: Tensor, batch: int) -> Tensor:
    """Returns dL/d(logits) of the cross entropy, averaged over each batch.

    Args:
        probabilities: (restart * batch, class).
        labels: of one batch, or of every restart's own one after the other.
        batch: number of images.
    """
    each = labels.repeat(len(probabilities) // len(labels))[:, None]
    ones = torch.ones_like(each, dtype=probabilities.dtype)
    return probabilities.scatter_add(1, each, -ones) / batch


def first_order(
    program: Program, run: Run, images: Tensor, labels: Tensor, *, to_images: bool = False
) -> tuple[list[Saved], Tensor, Tensor | None]:
    """Fills a run's gradients.

    Args:
        program: the network's operations.
        run: a new one.
        images: (restart, batch, channel, height, width).
        labels: classes of one batch, or of every restart's own one after the other.
        to_images: go on to dL/dx.

    Returns:
        The tape, the class probabilities, and dL/dx if it was asked for.
    """
    tape: list[Saved] = []
    logits = program.forward(run, tape, channels_last(images.flatten(0, 1)))
    probabilities = torch.softmax(logits, 1)
    gx = program.backward(
        run, tape, loss_adjoint(probabilities, labels, images.shape[1]), to_images=to_images
    )
    for name in sorted(run.wanted - run.gradients.keys() - run.ghosts.keys()):
        zeros = torch.zeros_like(run.weights[name])
        run.add_gradient(name, [zeros.clone() for _ in range(run.restarts)])
    return tape, probabilities, gx


class TracedEngine:
    """Base class of the engines that compute their own passes.

    The network's weights are read when this is made; make another one for other weights.

    Args:
        problem: what is to be matched.
        program: the network's operations.
    """

    way: str
    reason: str | None = None

    def __init__(self, problem: Problem, program: Program) -> None:
        # The observed gradient in the rules' memory order takes the other one's place, which is
        # then the caller's alone to keep.
        self.problem = replace(problem, target=_ordered(problem.target))
        self.program = program
        self.weights = weights_of(problem.model)
        self.wanted = frozenset(problem.target.gradient)
        self.matcher = Matcher(problem.distance, self.problem.target)
        self.statistics = StatisticsTerms(problem.statistics_terms, problem.statistics)
        self._bytes: dict[torch.Size, int] = {}
        self._captured = Captured(self.step)

    @abstractmethod
    def step(self, images: Float[Tensor, "restart batch channel height width"]) -> Evaluated:
        """Returns cost, matching cost and dc/dx of restarts that are computed together."""

    def new_run(self, restarts: int) -> Run:
        """Returns a run in which every gradient is formed."""
        return Run(restarts, self.weights, self.wanted)

    def first_order(
        self, run: Run, images: Tensor, *, to_images: bool = False
    ) -> tuple[list[Saved], Tensor, Tensor | None]:
        """Fills a new run's gradients, as :func:`first_order` does."""
        assert self.problem.labels is not None  # the factory sees to it
        return first_order(self.program, run, images, self.problem.labels, to_images=to_images)

    @torch.no_grad()
    def evaluate(self, images: Float[Tensor, "restart batch channel height width"]) -> Evaluated:
        """Returns cost, matching cost and dc/dx of every restart."""
        images = images.detach()
        step = self._captured if images.is_cuda else self.step
        with full_precision():
            parts = [step(part) for part in images.split(self.fitting(images))]
        if len(parts) == 1:
            return parts[0]
        return Evaluated(
            torch.cat([part.cost for part in parts]),
            torch.cat([part.matching for part in parts]),
            torch.cat([part.gradient for part in parts]),
        )

    @torch.no_grad()
    def matching(
        self, images: Float[Tensor, "restart batch channel height width"]
    ) -> Float[Tensor, " restart"]:
        """Returns the matching cost alone; infinity where it is not finite."""
        values = []
        with full_precision():
            for part in images.detach().split(self.fitting(images)):
                run = self.new_run(part.shape[0])
                self.first_order(run, part)
                values.append(self.matcher.value(run))
        return torch.nan_to_num(torch.cat(values), nan=torch.inf, posinf=torch.inf)

    def fitting(self, images: Tensor) -> int:
        """Returns how many restarts are computed together."""
        shape = images.shape[1:]
        if shape not in self._bytes:
            elements = self.program.activations(self.new_run(1), channels_last(images[0]))
            elements = _COPIES * elements + sum(value.numel() for value in self.weights.values())
            self._bytes[shape] = elements * images.element_size()
        return max(1, MEMORY // self._bytes[shape])

    def batch_norm_terms(
        self, run: Run, tape: list[Saved], factor: Tensor
    ) -> tuple[Tensor | None, Injection | None]:
        """Returns the batch-norm terms of every restart, and their adjoints at the layers' inputs.

        They depend on activations alone, so the adjoints ride along on the last pass; the factor
        that it is multiplied with is taken out of them. None where the cost has no such terms.
        """
        if not self.problem.statistics_terms:
            return None, None
        layers = [
            (node.op, saved)
            for node, saved in zip(self.program.nodes, tape, strict=True)
            if isinstance(node.op, BatchNorm)
        ]
        penalty, adjoints = self.statistics.evaluate(layers, run.restarts)

        def inject(op: BatchNorm, saved: Saved) -> Tensor:
            return adjoints(op.layer, saved, factor)

        return penalty, inject

    def evaluated(
        self, images: Tensor, matching: Tensor, penalty: Tensor | None, gradient: Tensor
    ) -> Evaluated:
        """Returns the result with the terms on images added."""
        cost = matching if penalty is None else matching + penalty
        if self.problem.image_terms:
            penalties, own = self.problem.image_penalty_with_gradient(images)
            cost, gradient = cost + penalties, gradient + own
        return Evaluated(cost, matching, gradient.contiguous())
