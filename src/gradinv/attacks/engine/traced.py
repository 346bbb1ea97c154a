"""What the ways without autograd share: the first-order pass over the traced network."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.attacks.engine.base import Evaluated, Problem
from gradinv.attacks.engine.directions import Matcher
from gradinv.attacks.engine.graphs import Captured, full_precision
from gradinv.attacks.engine.program import Injection, Program
from gradinv.attacks.engine.rules.norm import BatchNorm
from gradinv.attacks.engine.rules.op import Run, Saved, channels_last
from gradinv.attacks.engine.statistics import StatisticsTerms
from gradinv.attacks.objectives import Target

# Restarts are evaluated together as long as their activations are estimated to fit in this many
# bytes. A constant, not what happens to be free: a run and its resumption must do the same.
MEMORY = 2 * 1024**3
# Tensors of the size of each activation that a step keeps: itself, its adjoint, and tangents.
_COPIES = 4


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
        self.problem, self.program = problem, program
        self.weights = {
            name: channels_last(value.detach()) for name, value in problem.model.named_parameters()
        }
        self.wanted = frozenset(problem.target.gradient)
        mask = problem.target.mask
        self.matcher = Matcher(
            problem.distance,
            Target(
                {name: channels_last(value) for name, value in problem.target.gradient.items()},
                None if mask is None else {name: channels_last(m) for name, m in mask.items()},
            ),
        )
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
        """Fills the run's gradients.

        Args:
            run: a new one.
            images: (restart, batch, channel, height, width).
            to_images: go on to dL/dx.

        Returns:
            The tape, the class probabilities, and dL/dx if it was asked for.
        """
        tape: list[Saved] = []
        logits = self.program.forward(run, tape, channels_last(images.flatten(0, 1)))
        probabilities = torch.softmax(logits, 1)
        gy = self.loss_adjoint(probabilities, run.restarts)
        gx = self.program.backward(run, tape, gy, to_images=to_images)
        for name in sorted(self.wanted - run.gradients.keys() - run.ghosts.keys()):
            zeros = torch.zeros_like(self.weights[name])
            run.gradients[name] = [zeros.clone() for _ in range(run.restarts)]
        return tape, probabilities, gx

    def loss_adjoint(self, probabilities: Tensor, restarts: int) -> Tensor:
        """Returns dL/d(logits) of the cross entropy, averaged over each restart's batch."""
        assert self.problem.labels is not None  # the factory sees to it
        labels = self.problem.labels.repeat(restarts)[:, None]
        ones = torch.ones_like(labels, dtype=probabilities.dtype)
        return probabilities.scatter_add(1, labels, -ones) / len(self.problem.labels)

    @torch.no_grad()
    def gradients(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Returns the trial gradient by parameter name, one tensor for each restart."""
        run = self.new_run(images.shape[0])
        self.first_order(run, images)
        return run.gradients

    @torch.no_grad()
    def evaluate(self, images: Float[Tensor, "restart batch channel height width"]) -> Evaluated:
        """Returns cost, matching cost and dc/dx of every restart."""
        images = images.detach()
        step = self._captured if images.is_cuda else self.step
        with full_precision():
            parts = [step(part) for part in images.split(self._together(images))]
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
            for part in images.detach().split(self._together(images)):
                run = self.new_run(part.shape[0])
                self.first_order(run, part)
                values.append(self.matcher.value(run))
        return torch.nan_to_num(torch.cat(values), nan=torch.inf, posinf=torch.inf)

    def _together(self, images: Tensor) -> int:
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
            leaf = images.clone().requires_grad_()
            with torch.enable_grad():
                penalties = torch.stack([self.problem.image_penalty(batch) for batch in leaf])
            (own,) = torch.autograd.grad(penalties, leaf, torch.ones_like(penalties))
            cost, gradient = cost + penalties.detach(), gradient + own
        return Evaluated(cost, matching, gradient.contiguous())
