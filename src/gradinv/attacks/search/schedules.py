"""Learning rates over a stage, as functions of its progress from 0 to 1.

Progress and not steps, so that a stage bounded by wall-clock time decays in the same way.
"""

import math
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@runtime_checkable
class Schedule(Protocol):
    """A factor on the learning rate."""

    def factor(self, progress: float) -> float:
        """Returns the factor at ``progress``, 0 <= progress < 1."""
        ...


@dataclass(frozen=True)
class Constant:
    """No decay."""

    def factor(self, progress: float) -> float:  # noqa: ARG002 - the protocol's signature
        """Returns 1."""
        return 1.0


@dataclass(frozen=True)
class StepDecay:
    """Multiplies by ``by`` at each milestone (Geiping et al. 2020; the code of Jeon et al. 2021).

    The code of both writes the milestones as T/2.667, T/1.6 and T/1.142.
    """

    by: float = 0.1
    milestones: tuple[float, ...] = (3 / 8, 5 / 8, 7 / 8)

    def factor(self, progress: float) -> float:
        """Returns ``by`` to the number of milestones passed."""
        return self.by ** sum(progress >= milestone for milestone in self.milestones)


@dataclass(frozen=True)
class CosineDecay:
    """Linear warm-up over the first ``warmup`` of the stage, then half a cosine to 0."""

    warmup: float = 0.0

    def factor(self, progress: float) -> float:
        """Returns the factor at ``progress``."""
        if progress < self.warmup:
            return progress / self.warmup
        return 0.5 * (1 + math.cos(math.pi * (progress - self.warmup) / (1 - self.warmup)))
