"""An attack as a value: stages over search spaces, a gradient distance, restarts."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal

from torch import nn

from gradinv.attacks.search.denoising import Denoising
from gradinv.attacks.search.optimizers import Adam, Optimizer
from gradinv.attacks.search.regularizers import TotalVariation
from gradinv.attacks.search.schedules import Constant, Schedule, StepDecay
from gradinv.attacks.search.spaces import Pixels, Space
from gradinv.engine.distances import Cosine, Distance
from gradinv.engine.terms import Regularizer, check_terms, seeing
from gradinv.errors import ConfigError
from gradinv.federated.observation import Observation
from gradinv.priors.generator import Generator

FEATURE_STEP = 0.4
"""Cost of a step on features over one on gradients: 3 of 8 forward passes, and the generator."""

LARGEST_SCALE = 1e6
"""More than any attack can make use of: the shortest would take days."""

LocalTraining = Literal["simulate", "approximate"]
"""How an update of FedAvg is explained: by training on the trial images, or as one gradient."""

Way = Literal["auto", "exact", "frozen-pattern", "bf16", "plain"]
"""How dc/dx is computed."""


@dataclass(frozen=True)
class Stage:
    """One search from where the stage before ended.

    Attributes:
        space: what is searched.
        steps: of the optimiser.
        optimizer: how it steps.
        schedule: its learning rate over the stage.
        regularizers: added to the gradient distance.
        keep: restarts that go on to the next stage, by matching cost; all when None.
        features: match the features that the last layer gives away, not the gradient (*ours*).
        denoising: of the pictures between the steps (*ours*); only pixels can be denoised.
    """

    space: Space
    steps: int
    optimizer: Optimizer
    schedule: Schedule = StepDecay()  # noqa: RUF009 - a frozen value
    regularizers: tuple[Regularizer, ...] = ()
    keep: int | None = None
    features: bool = False
    denoising: Denoising | None = None

    def __post_init__(self) -> None:
        check_terms(self.regularizers)
        kind = type(self.optimizer).__name__
        if not self.optimizer.has_rate and self.schedule != Constant():
            raise ConfigError(
                f"expected a constant schedule with {kind}, which has no learning rate, got "
                f"{type(self.schedule).__name__}; leave it Constant()"
            )
        foreign = [type(term).__name__ for term in self.regularizers if term.sees != "latents"]
        if foreign and not self.optimizer.has_gradient:
            raise ConfigError(
                f"expected regularisers on latents alone with {kind}, which asks for the matching "
                f"cost without its gradient, got {', '.join(foreign)}; leave them out, or step "
                "with Adam"
            )
        together = bool(seeing(self.regularizers, "restarts"))
        if together and not isinstance(self.optimizer, Adam):
            raise ConfigError(
                "expected Adam for a term on all restarts together, such as group consistency, "
                f"got {kind}, which asks for the cost of some; leave it out, or step with Adam"
            )
        if self.denoising and not (
            isinstance(self.space, Pixels) and isinstance(self.optimizer, Adam)
        ):
            raise ConfigError(
                "expected a stage over pixels that steps with Adam to denoise, got "
                f"{self.space.name} with {kind}; leave denoising out of this stage"
            )

    @property
    def work(self) -> float:
        """What one restart of the stage costs, in steps on gradients."""
        return self.steps * (FEATURE_STEP if self.features else 1.0)


@dataclass(frozen=True)
class Attack:
    """A method of the literature, or one's own, with every number that it needs.

    Attributes:
        name: what the command line calls it.
        stages: run one after the other.
        distance: the gradient distance of all stages.
        restarts: independent starts of the first stage.
        best_stage: return the stage with the least matching cost (Fang et al. 2023) instead of the
            last one.
        averaged: return the mean over the restarts whose matching cost is at most this many times
            the least (*ours*): what they disagree about is mostly wrong, and cancels. Images of one
            label are put in the order of the best restart first, and the mean must match no worse
            than the worst of the restarts. The best restart alone when None.
        tensors: match only this many tensors of largest norm; all when None.
        latents: which latents of the prior its stages search, by the names of
            :meth:`gradinv.priors.generator.Generator.latent_space`; the prior's own choice when
            None: z, and for StyleGAN2 w+, one style for each layer (Jeon et al. 2021, section 5).
        fedavg: for updates of several local steps: "simulate" them and differentiate through all
            of them, or "approximate" the update by one gradient at the weights that were sent out.
            Nothing depends on it where the client made a single step.
        way: how dc/dx is computed (:func:`gradinv.engine.engine_for`): "auto" is exact;
            "frozen-pattern" and "bf16" (the exact way with tangents of that type) are
            approximations, within one or two percent, that are faster in some cases
            (docs/engine.md); "plain" is double backward.
        reference: where the method comes from.
    """

    name: str
    stages: tuple[Stage, ...]
    distance: Distance = Cosine()  # noqa: RUF009 - a frozen value
    restarts: int = 1
    best_stage: bool = False
    averaged: float | None = None
    tensors: int | None = None
    latents: str | None = None
    fedavg: LocalTraining = "simulate"
    way: Way = "auto"
    reference: str = ""

    @property
    def needs_prior(self) -> bool:
        """Whether some stage searches a generator, or asks one."""
        return self.needs_denoiser or any(stage.space.needs_prior for stage in self.stages)

    @property
    def needs_denoiser(self) -> bool:
        """Whether the prior has to be one that denoises."""
        return any(stage.denoising for stage in self.stages)

    @property
    def needs_bn(self) -> bool:
        """Whether some stage matches batch-norm statistics."""
        return any(seeing(stage.regularizers, "statistics") for stage in self.stages)

    @property
    def needs_labels(self) -> bool:
        """Whether the labels have to be known: unless every stage searches them."""
        return not self.stages or not all(stage.space.soft_labels for stage in self.stages)

    @property
    def needs_features(self) -> bool:
        """Whether some stage matches features."""
        return any(stage.features for stage in self.stages)

    @property
    def stage_work(self) -> tuple[float, ...]:
        """What each stage costs, in steps on gradients of one restart.

        In proportion to the restarts that it steps. Several side by side take less time than one
        after the other; by how much belongs to network, batch and machine, and is not worth
        measuring before every attack.
        """
        restarts, work = self.restarts, []
        for stage in self.stages:
            work.append(stage.work * restarts)
            restarts = min(restarts, stage.keep or restarts)
        return tuple(work)

    @property
    def total_work(self) -> float:
        """Work over all stages, in steps on gradients of one restart."""
        return sum(self.stage_work, 0.0)

    @property
    def total_steps(self) -> int:
        """Steps over all stages; a step of all restarts counts once."""
        return sum(stage.steps for stage in self.stages)

    @property
    def uses_prior(self) -> bool:
        """Whether a prior that is at hand is made use of."""
        return self.needs_prior

    def resolved(
        self,
        observation: Observation,  # noqa: ARG002 - what standard looks at
        model: nn.Module,  # noqa: ARG002
        prior: Generator | None,  # noqa: ARG002
    ) -> "Attack":
        """Returns what is run against an update: itself, unless it chooses by what it sees."""
        return self

    def changed(self, change: Callable[["Attack"], "Attack"]) -> "Attack":
        """Returns the attack after a change, whatever it holds for different updates."""
        return change(self)

    def scaled(self, factor: float) -> "Attack":
        """Returns the attack with every stage's steps multiplied, at least 1 each.

        Raises:
            ConfigError: the factor is not positive, or larger than :data:`LARGEST_SCALE`.
        """
        if not 0 < factor <= LARGEST_SCALE:
            raise ConfigError(
                f"expected a factor on the steps above 0 and at most {LARGEST_SCALE:g}, got "
                f"{factor}; use --steps-scale 1"
            )
        return replace(
            self,
            stages=tuple(
                replace(stage, steps=max(1, round(stage.steps * factor))) for stage in self.stages
            ),
        )

    def with_restarts(self, restarts: int) -> "Attack":
        """Returns the attack with another number of starts.

        Raises:
            ConfigError: fewer than one.
        """
        if restarts < 1:
            raise ConfigError(f"expected at least 1 restart, got {restarts}; use --restarts 1")
        return replace(self, restarts=restarts)

    def with_total_variation(self, weights: Sequence[float]) -> "Attack":
        """Returns the attack with other TV weights, one for all stages or one for each.

        Raises:
            ConfigError: another number of weights, or a negative one.
        """
        weights = self._for_stages("TV weights of at least 0", weights, min(weights) >= 0)
        stages = []
        for stage, weight in zip(self.stages, weights, strict=True):
            others = tuple(t for t in stage.regularizers if not isinstance(t, TotalVariation))
            stages.append(replace(stage, regularizers=(TotalVariation(weight), *others)))
        return replace(self, stages=tuple(stages))

    def with_learning_rates(self, rates: Sequence[float]) -> "Attack":
        """Returns the attack with other learning rates, one for all stages or one for each.

        Raises:
            ConfigError: another number of rates, or one that is not positive.
        """
        rates = self._for_stages("learning rates above 0", rates, min(rates) > 0)
        without = [s.optimizer for s in self.stages if not isinstance(s.optimizer, Adam)]
        if without:
            raise ConfigError(
                f"expected stages with a learning rate for lr=, got {type(without[0]).__name__} in "
                f"{self.name}, which finds its own step; leave lr= out"
            )
        stages = tuple(
            replace(stage, optimizer=replace(stage.optimizer, lr=rate))
            for stage, rate in zip(self.stages, rates, strict=True)
            if isinstance(stage.optimizer, Adam)
        )
        return replace(self, stages=stages)

    def with_steps(self, steps: Sequence[float]) -> "Attack":
        """Returns the attack with other numbers of steps, one for all stages or one for each.

        Raises:
            ConfigError: another number of values, or one that is no positive whole number.
        """
        whole = all(count >= 1 and float(count).is_integer() for count in steps)
        steps = self._for_stages("whole numbers of steps", steps, whole)
        stages = tuple(
            replace(stage, steps=int(count))
            for stage, count in zip(self.stages, steps, strict=True)
        )
        return replace(self, stages=stages)

    def _for_stages(self, what: str, values: Sequence[float], valid: bool) -> Sequence[float]:
        """Returns one value for each stage."""
        if not self.stages:
            raise ConfigError(
                f"expected no settings for {self.name}, which is solved at once, got {what} "
                f"{', '.join(map(str, values))}; leave them out"
            )
        if not valid or len(values) not in {1, len(self.stages)}:
            raise ConfigError(
                f"expected 1 or {len(self.stages)} {what} for {self.name} "
                f"({' then '.join(stage.space.name for stage in self.stages)}), "
                f"got {', '.join(map(str, values))}; write one for each stage"
            )
        return list(values) * len(self.stages) if len(values) == 1 else values

    def describe(self) -> dict[str, Any]:
        """Returns every number of the attack as JSON holds it.

        Raises:
            ConfigError: a part of it that JSON cannot hold.
        """
        return _plain(self)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
        return {"kind": type(value).__name__, **named}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | float | None):
        return value
    if inspect.isfunction(value):
        return f"{value.__module__}:{value.__qualname__}"
    # Values from outside the package; what they hold tells two of one class apart.
    held = getattr(value, "__dict__", None)
    if held is None:
        raise ConfigError(
            f"expected an attack of numbers, texts and frozen dataclasses, so that results say "
            f"which it was, got {type(value).__name__}; make it a frozen dataclass"
        )
    return {"kind": type(value).__name__, **{key: _plain(held[key]) for key in sorted(held)}}
