"""Steps that take as long as those of another attack, so that attacks are compared at equal time.

How much longer a step of one search takes than of another is measured side by side, in turns: a
busy machine slows both.
"""

import time
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

from torch import nn

from gradinv.attacks import Attack, invert, preset
from gradinv.federated import Observation
from gradinv.priors import Generator

TIMED_STEPS = 11  # ten whole ones: as many with a denoiser's step as on the average
ROUNDS = 3


@dataclass(frozen=True)
class Costs:
    """What an attack costs, in steps of one restart over pixels (``gi-x``).

    Attributes:
        steps: a step of each stage, with all of its restarts.
        apart: everything that is not a step: a search of the prior, pictures between the stages.
    """

    steps: tuple[float, ...]
    apart: float


def costs_of(
    attack: Attack, observation: Observation, model: nn.Module, prior: Generator | None
) -> Costs:
    """Returns the medians over a few rounds, each beside a round of ``gi-x``."""
    ratios, apart = [], []
    for _ in range(ROUNDS):
        (base,), _ = _seconds(preset("gi-x"), observation, model, None)
        own, rest = _seconds(attack, observation, model, prior)
        ratios.append([step / base for step in own])
        apart.append(rest / base)
    return Costs(tuple(median(stage) for stage in zip(*ratios, strict=True)), median(apart))


def _seconds(
    attack: Attack, observation: Observation, model: nn.Module, prior: Generator | None
) -> tuple[list[float], float]:
    """Returns the seconds of a step of each stage, and of everything else."""
    stamps: list[tuple[int, float]] = []
    short = attack.with_steps([float(TIMED_STEPS)])
    begin = time.perf_counter()
    invert(
        observation,
        model,
        short,
        prior=prior,
        seed=0,
        callback=lambda progress: stamps.append((progress.stage, time.perf_counter())),
    )
    whole = time.perf_counter() - begin
    # Between two stamps of one stage lies a whole step.
    steps = [
        fmean(end - start for (s, start), (t, end) in pairwise(stamps) if s == t == stage)
        for stage in range(len(attack.stages))
    ]
    return steps, max(0.0, whole - TIMED_STEPS * sum(steps))


def factor_of(attack: Attack, costs: Costs, budget: float) -> float:
    """Returns what an attack's steps are multiplied by, so that it takes as long as the budget.

    Args:
        attack: with steps in the proportion that its stages keep.
        costs: of this attack.
        budget: steps of one restart over pixels.
    """
    own = sum(stage.steps * cost for stage, cost in zip(attack.stages, costs.steps, strict=True))
    return max(1.0, budget - costs.apart) / own
