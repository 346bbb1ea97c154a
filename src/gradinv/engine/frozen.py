"""Finite differences with frozen patterns: an approximate dc/dx by two first-order passes.

dc/dx = d/d eps grad_x L(theta + eps v) at eps = 0, taken as a difference quotient. On a network
with kinks that is wrong by any factor whatever the step, because ReLUs change sign between the two
points. So the masks of ReLUs and the indices of max-pools are recorded at theta and replayed at
theta + eps v; what is left of the network is smooth.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils import get_total_norm

from gradinv.engine.base import Evaluated, Problem
from gradinv.engine.program import Injection, Program
from gradinv.engine.rules.norm import BatchNorm
from gradinv.engine.rules.op import Run, Saved, channels_last
from gradinv.engine.traced import TracedEngine, loss_adjoint

# Length of the step over that of the weights: between float rounding and curvature.
_STEP = {torch.float32: 1e-5, torch.float64: 1e-7}


class FrozenPattern(TracedEngine):
    """The cost, and its gradient within about one percent, for 5/7 of the exact way's work."""

    way = "frozen-pattern"

    def __init__(self, problem: Problem, program: Program) -> None:
        super().__init__(problem, program)
        self.names = sorted(self.wanted)
        self.size = get_total_norm([self.weights[name] for name in self.names])

    def step(self, images: Float[Tensor, "restart batch channel height width"]) -> Evaluated:
        """Returns cost, matching cost and dc/dx, one restart after the other."""
        parts = [self._single(batch[None]) for batch in images]
        return Evaluated(
            torch.cat([part.cost for part in parts]),
            torch.cat([part.matching for part in parts]),
            torch.cat([part.gradient for part in parts]),
        )

    def _single(self, images: Tensor) -> Evaluated:
        run = self.new_run(1)
        tape, _, gx = self.first_order(run, images, to_images=True)
        assert gx is not None
        matching, factor = self.matcher.direct(run)
        directions = [run.gradients[name][0] for name in self.names]
        along = get_total_norm(directions)
        step = _STEP[images.dtype] * self.size / along.clamp_min(torch.finfo(along.dtype).tiny)
        moved = dict(self.weights)
        for name, direction in zip(self.names, directions, strict=True):
            moved[name] = torch.addcmul(self.weights[name], direction, step, out=direction)
        penalty, inject = self.batch_norm_terms(run, tape, factor)
        there = self._replayed(Run(1, moved, frozenset()), tape, images, _scaled(inject, step))
        gradient = (there - gx).unflatten(0, images.shape[:2]) * (factor / step)
        return self.evaluated(images, matching, penalty, gradient)

    def _replayed(
        self, run: Run, pattern: list[Saved], images: Tensor, inject: Injection | None
    ) -> Tensor:
        """Returns dL/dx at other weights, with the recorded pattern."""
        tape: list[Saved] = []
        x = channels_last(images.flatten(0, 1))
        probabilities = torch.softmax(self.program.replay(run, tape, pattern, x), 1)
        assert self.problem.labels is not None  # the factory sees to it
        gy = loss_adjoint(probabilities, self.problem.labels, images.shape[1])
        return self.program.replay_backward(run, tape, pattern, gy, inject)


def _scaled(inject: Injection | None, step: Tensor) -> Injection | None:
    """Returns adjoints so small that the difference quotient makes them what they were."""
    if inject is None:
        return None

    def scaled(op: BatchNorm, saved: Saved) -> Tensor:
        return inject(op, saved) * step

    return scaled
