"""The exact R-operator: dc/dx by one forward, one backward and two tangent passes.

dc/dx = (dg/dx)^T v = grad_x (grad_theta L . v), with v = dd/dg held still (Pearlmutter 1994). Every
pass uses what the ones before it computed, nothing is recorded by autograd, and what has been used
for the last time is freed. The figures of this against double backward are in
``results/engine-cpu.json``.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from gradinv.attacks.engine.base import Evaluated, Problem
from gradinv.attacks.engine.directions import Matcher
from gradinv.attacks.engine.program import Injection, Program
from gradinv.attacks.engine.rules.norm import BatchNorm
from gradinv.attacks.engine.rules.op import Run, Saved, channels_last
from gradinv.attacks.engine.statistics import StatisticsTerms
from gradinv.attacks.objectives import Target


class ExactROperator:
    """The cost and its exact gradient, without autograd through the network.

    The network's weights are read when this is made; make another one for other weights.

    Args:
        problem: what is to be matched.
        program: the network's operations.
    """

    way = "exact"
    reason = None

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
        self.ghosts: dict[str, Tensor] = {}
        if mask is None and self.matcher.closed is not None:
            self.ghosts = {
                name: self.matcher.target.gradient[name] for name in program.used_once(self.wanted)
            }
        self.statistics = StatisticsTerms(problem.statistics_terms, problem.statistics)

    def _first_order(
        self, images: Tensor, *, ghosts: bool = True
    ) -> tuple[Run, list[Saved], Tensor]:
        """Returns the run with its gradients, the tape and the class probabilities."""
        observed = self.ghosts if ghosts else {}
        run = Run(images.shape[0], self.weights, self.wanted, observed=observed)
        tape: list[Saved] = []
        logits = self.program.forward(run, tape, channels_last(images.flatten(0, 1)))
        probabilities = torch.softmax(logits, 1)
        assert self.problem.labels is not None  # the factory sees to it
        labels = self.problem.labels.repeat(run.restarts)
        # Cross entropy, averaged over the batch of each restart.
        gy = probabilities - functional.one_hot(labels, logits.shape[1])
        self.program.backward(run, tape, gy / images.shape[1])
        for name in self.wanted - run.gradients.keys() - run.ghosts.keys():
            zeros = torch.zeros_like(self.weights[name])
            run.gradients[name] = [zeros.clone() for _ in range(run.restarts)]
        return run, tape, probabilities

    @torch.no_grad()
    def gradients(self, images: Tensor) -> dict[str, list[Tensor]]:
        """Returns the trial gradient by parameter name, one tensor for each restart."""
        return self._first_order(images, ghosts=False)[0].gradients

    @torch.no_grad()
    def evaluate(self, images: Float[Tensor, "restart batch channel height width"]) -> Evaluated:
        """Returns cost, matching cost and dc/dx of every restart."""
        images = images.detach()
        run, tape, probabilities = self._first_order(images)
        matching, factor = self.matcher.direct(run)
        r_logits = self.program.tangent_forward(run, tape)
        if r_logits is None:
            r_logits = torch.zeros_like(probabilities)
        # R{softmax} / B, the softmax's own Jacobian being symmetric.
        weighted = probabilities * r_logits
        r_gy = weighted - probabilities * weighted.sum(1, keepdim=True)
        cost, inject = self._statistics(run, tape, matching, factor)
        r_gx = self.program.tangent_backward(run, tape, r_gy / images.shape[1], inject)
        gradient = r_gx.unflatten(0, images.shape[:2]) * factor.view(-1, 1, 1, 1, 1)
        cost, gradient = self._image_terms(images, cost, gradient)
        return Evaluated(cost, matching, gradient.contiguous())

    def _statistics(
        self, run: Run, tape: list[Saved], cost: Tensor, factor: Tensor
    ) -> tuple[Tensor, Injection | None]:
        """Returns the cost with the batch-norm terms, and their adjoints at the layers' inputs.

        They depend on activations alone, so they ride along on the last pass; the factor that it
        is multiplied with is taken out of them.
        """
        if not self.problem.statistics_terms:
            return cost, None
        layers = [
            (node.op, saved)
            for node, saved in zip(self.program.nodes, tape, strict=True)
            if isinstance(node.op, BatchNorm)
        ]
        penalty, adjoints = self.statistics.evaluate(layers, run.restarts)

        def inject(op: BatchNorm, saved: Saved) -> Tensor:
            return adjoints(op.layer, saved.x, factor)

        return cost + penalty, inject

    def _image_terms(self, images: Tensor, cost: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cost and gradient with the terms on images added."""
        if not self.problem.image_terms:
            return cost, gradient
        leaf = images.clone().requires_grad_()
        with torch.enable_grad():
            penalties = torch.stack([self.problem.image_penalty(batch) for batch in leaf])
        (own,) = torch.autograd.grad(penalties, leaf, torch.ones_like(penalties))
        return cost + penalties.detach(), gradient + own

    @torch.no_grad()
    def matching(
        self, images: Float[Tensor, "restart batch channel height width"]
    ) -> Float[Tensor, " restart"]:
        """Returns the matching cost alone; infinity where it is not finite."""
        values = self.matcher.value(self._first_order(images.detach(), ghosts=False)[0])
        return torch.nan_to_num(values, nan=torch.inf, posinf=torch.inf)
