"""The exact R-operator: dc/dx by one forward, one backward and two tangent passes.

dc/dx = (dg/dx)^T v = grad_x (grad_theta L . v), with v = dd/dg held still (Pearlmutter 1994). Every
pass uses what the ones before it computed, nothing is recorded by autograd, and what has been used
for the last time is freed. The figures of this against double backward are in
``results/engine-cpu.json``.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gradinv.engine.base import Evaluated, Problem
from gradinv.engine.graphs import lower_precision
from gradinv.engine.program import Program
from gradinv.engine.rules.op import Run, Saved
from gradinv.engine.traced import TracedEngine


class ExactROperator(TracedEngine):
    """The cost and its exact gradient, without autograd through the network.

    Args:
        problem: what is to be matched.
        program: the network's operations.
        tangent_dtype: type of the products in both tangent passes, such as ``torch.bfloat16``; an
            approximation with an error of about one percent. That of the weights when None.
        tangent_tf32: lets a GPU round the products in both tangent passes to TF32.
    """

    way = "exact"

    def __init__(
        self,
        problem: Problem,
        program: Program,
        *,
        tangent_dtype: torch.dtype | None = None,
        tangent_tf32: bool = False,
    ) -> None:
        super().__init__(problem, program)
        self.tangent_dtype, self.tangent_tf32 = tangent_dtype, tangent_tf32
        self.ghosts: dict[str, Tensor] = {}
        if problem.target.mask is None and self.matcher.has_ghosts:
            self.ghosts = {
                name: self.matcher.target.gradient[name] for name in program.used_once(self.wanted)
            }
        self.low: dict[str, Tensor] | None = None
        if tangent_dtype is not None:
            self.low = {name: value.to(tangent_dtype) for name, value in self.weights.items()}

    def exact_run(self, restarts: int) -> Run:
        """Returns a run in which layers may stay ghosts."""
        return Run(restarts, self.weights, self.wanted, observed=self.ghosts, low=self.low)

    def step(self, images: Float[Tensor, "restart batch channel height width"]) -> Evaluated:
        """Returns cost, matching cost and dc/dx of restarts that are computed together."""
        run = self.exact_run(images.shape[0])
        tape, probabilities, _ = self.first_order(run, images)
        return self.tangents(run, tape, probabilities, images, *self.matcher.direct(run))

    def tangents(
        self,
        run: Run,
        tape: list[Saved],
        probabilities: Tensor,
        images: Tensor,
        matching: Tensor,
        factor: Tensor,
    ) -> Evaluated:
        """Takes the two tangent passes along the directions that a run holds.

        Args:
            run: after the first-order pass, its gradients turned into directions.
            tape: of that pass.
            probabilities: of the classes.
            images: (restart, batch, channel, height, width).
            matching: the distance of every restart.
            factor: that every direction still lacks.
        """
        with lower_precision(self.tangent_tf32):
            r_logits = self.program.tangent_forward(run, tape)
            if r_logits is None:
                r_logits = torch.zeros_like(probabilities)
            # R{softmax} / B, the softmax's own Jacobian being symmetric.
            weighted = probabilities * r_logits
            r_gy = weighted - probabilities * weighted.sum(1, keepdim=True)
            penalty, inject = self.batch_norm_terms(run, tape, factor)
            r_gx = self.program.tangent_backward(run, tape, r_gy / images.shape[1], inject)
        gradient = r_gx.unflatten(0, images.shape[:2]) * factor.view(-1, 1, 1, 1, 1)
        return self.evaluated(images, matching, penalty, gradient)
