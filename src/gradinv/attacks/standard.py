"""The package's own best attack: no knobs, a version, stages chosen by what the update shows."""

from dataclasses import dataclass, field, replace

from torch import nn

from gradinv.attacks.attack import Adam, Attack, Stage
from gradinv.attacks.evidence.penultimate import Clues
from gradinv.attacks.search.denoising import Denoising
from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.attacks.search.schedules import CosineDecay, StepDecay
from gradinv.attacks.search.spaces import OfGenerator, Pixels
from gradinv.attacks.settings import Tuned
from gradinv.errors import AttackError
from gradinv.federated.observation import Observation
from gradinv.priors.generator import Denoiser, Generator

VERSION = 6

_AVERAGED = 3.0
"""Restarts that match up to three times worse than the best differ from it by their start only."""


def _features(steps: int) -> Stage:
    """Latents from the best of many samples, moved until their features fit."""
    return Stage(
        OfGenerator(latents=True, culled=512), steps, Adam(0.1), CosineDecay(), features=True
    )


def _latents(steps: int) -> Stage:
    """Latents by gradient."""
    terms = (TotalVariation(1e-3),)
    return Stage(OfGenerator(latents=True), steps, Adam(0.1), CosineDecay(), terms)


def _weights(steps: int) -> Stage:
    """Every image's own copy of the generator."""
    # Chosen on training images: more blurs ConvNet, less leaves noise in ResNet18's.
    terms = (TotalVariation(1e-3),)
    return Stage(OfGenerator(weights=True), steps, Adam(5e-4), CosineDecay(), terms)


def _pixels(steps: int) -> Tuned:
    """Pixels alone, for whoever has no prior: ``gi-x`` as it was tuned for each kind of update."""
    stage = Stage(Pixels(), steps, Adam(0.1, signed=True), StepDecay(), (TotalVariation(1e-2),))
    return Tuned.of(Attack("gi-x", (stage,)))


def denoised(steps: int, reference: str = "") -> Tuned:
    """Returns ``gi-x+flow``: pixels, moved to what a denoiser takes them for every few steps."""
    moved = Denoising(every=5, share=0.35, first=0.12, last=0.965)
    terms = (TotalVariation(7e-4),)
    stage = Stage(Pixels(), steps, Adam(0.8), CosineDecay(), terms, denoising=moved)
    return Tuned.of(Attack("gi-x+flow", (stage,), reference=reference))


@dataclass(frozen=True)
class Standard(Attack):
    """What is run when nobody chooses.

    Latents that fit the features which the last layer gives away, from the best of many samples of
    the prior; latents by gradient; the generator's weights for each image; all of that from several
    starts, and the mean of them in the end: they share what the update says and differ in what the
    prior made up, which cancels. Weights are searched where the whole gradient is known; where a
    sparsification left a part, they fit what is not there, and more starts are the better use of
    the time. An update that does not give features away is attacked without the first stage.

    A prior that denoises is worth more between the steps of one long search over pixels than as a
    generator, and an attacker without a prior searches pixels alone.

    Attributes:
        thin: the stages against a sparsified gradient.
        thin_restarts: starts of these.
        denoised: what is run with a prior that denoises.
        denoised_restarts: starts of it.
        alone: what is run without a prior.
    """

    stages: tuple[Stage, ...] = field(
        default_factory=lambda: (_features(60), _latents(100), _weights(150))
    )
    restarts: int = 4
    averaged: float | None = _AVERAGED
    thin: tuple[Stage, ...] = field(default_factory=lambda: (_features(60), _latents(200)))
    thin_restarts: int = 8
    denoised: Tuned = field(default_factory=lambda: denoised(600))
    denoised_restarts: int = 1
    alone: Tuned = field(default_factory=lambda: _pixels(500))

    @property
    def needs_prior(self) -> bool:
        """No: it does what it can without one."""
        return False

    @property
    def uses_prior(self) -> bool:
        """Yes."""
        return True

    def with_restarts(self, restarts: int) -> "Standard":
        """Returns the attack with another number of starts, whatever the update shows."""
        return replace(
            self, restarts=Attack(self.name, self.stages).with_restarts(restarts).restarts,
            thin_restarts=restarts, denoised_restarts=restarts,
        )  # fmt: skip

    def scaled(self, factor: float) -> "Standard":
        """Returns the attack with every stage's steps multiplied."""
        stages, thin = (
            Attack(self.name, stages).scaled(factor).stages for stages in (self.stages, self.thin)
        )
        return replace(
            self, stages=stages, thin=thin, denoised=self.denoised.scaled(factor),
            alone=self.alone.scaled(factor),
        )  # fmt: skip

    def resolved(
        self, observation: Observation, model: nn.Module, prior: Generator | None
    ) -> Attack:
        """Returns the stages for this update."""
        stages, restarts = self.stages, self.restarts
        if prior is None:
            stages = self.alone.resolved(observation, model, prior).stages
        elif isinstance(prior, Denoiser):
            stages = self.denoised.resolved(observation, model, prior).stages
            restarts = self.denoised_restarts
        elif observation.sparsity_mask is not None:
            stages, restarts = self.thin, self.thin_restarts
        if any(stage.features for stage in stages):
            try:
                Clues.of(observation, model)
            except AttackError:
                stages = tuple(stage for stage in stages if not stage.features)
        return Attack(
            self.name,
            stages,
            self.distance,
            restarts=restarts,
            averaged=self.averaged,
            latents=self.latents,
            fedavg=self.fedavg,
            reference=self.reference,
        )
