"""The package's own best attack: no knobs, a version, stages chosen by what the update shows."""

from dataclasses import dataclass, field, replace

from torch import nn

from gradinv.attacks.attack import Adam, Attack, Stage
from gradinv.attacks.objectives import TotalVariation
from gradinv.attacks.penultimate import Clues
from gradinv.attacks.schedules import CosineDecay
from gradinv.attacks.spaces import OfGenerator, Pixels
from gradinv.errors import AttackError
from gradinv.federated.observation import Observation
from gradinv.priors.generator import Generator

VERSION = 1

_W = OfGenerator(weights=True)
_SMOOTH = (TotalVariation(1e-2),)
"""For weights under a sparsification: with few known coordinates they fit what is not there.

Found on training images of faces, ConvNet, 0.95 dropped; undefended, it costs detail."""


def _features(steps: int) -> Stage:
    """Latents from the best of many samples, moved until their features fit."""
    return Stage(
        OfGenerator(latents=True, culled=512), steps, Adam(0.1), CosineDecay(), features=True
    )


def _latents(steps: int, *, restarts_kept: int = 1) -> Stage:
    """Latents by gradient; the best start goes on."""
    terms = (TotalVariation(1e-3),)
    return Stage(
        OfGenerator(latents=True), steps, Adam(0.1), CosineDecay(), terms, keep=restarts_kept
    )


def _weights(steps: int) -> Stage:
    """Every image's own copy of the generator."""
    return Stage(_W, steps, Adam(5e-4), CosineDecay(), (TotalVariation(1e-3),))


def _pixels(steps: int) -> Stage:
    """Pixels alone, for whoever has no prior."""
    return Stage(Pixels(), steps, Adam(0.1, signed=True), CosineDecay(), (TotalVariation(1e-2),))


@dataclass(frozen=True)
class Standard(Attack):
    """What is run when nobody chooses.

    ``stages`` is the whole of it: latents that fit the features which the last layer gives away,
    from the best of many samples of the prior; latents by gradient; the generator's weights for
    each image. An update that does not give features away is attacked without the first stage, an
    attacker without a prior searches pixels.

    Attributes:
        alone: the stages without a prior.
    """

    stages: tuple[Stage, ...] = field(
        default_factory=lambda: (_features(200), _latents(60), _weights(500))
    )
    alone: tuple[Stage, ...] = field(default_factory=lambda: (_pixels(1000),))

    @property
    def needs_prior(self) -> bool:
        """No: it does what it can without one."""
        return False

    @property
    def uses_prior(self) -> bool:
        """Yes."""
        return True

    def scaled(self, factor: float) -> "Standard":
        """Returns the attack with every stage's steps multiplied."""
        alone = Attack(self.name, self.alone).scaled(factor).stages
        stages = Attack(self.name, self.stages).scaled(factor).stages
        return replace(self, stages=stages, alone=alone)

    def resolved(
        self, observation: Observation, model: nn.Module, prior: Generator | None
    ) -> Attack:
        """Returns the stages for this update."""
        if prior is None:
            stages, restarts = self.alone, 1
        else:
            stages, restarts = self.stages, self.restarts
            try:
                Clues.of(observation, model)
            except AttackError:
                stages = tuple(stage for stage in stages if not stage.features)
            if observation.sparsity_mask is not None:
                *first, last = stages
                stages = (*first, replace(last, regularizers=_SMOOTH))
        return Attack(
            self.name,
            stages,
            self.distance,
            restarts=restarts,
            fedavg=self.fedavg,
            reference=self.reference,
        )
