"""Gradient distances d, and the direction v = dd/dg that a step differentiates along.

A distance is a value that sees the trial gradient and a :class:`Target`. Those that depend on a few
products of the two alone (:class:`OfProducts`) say in one place what they are and what v is; any
other callable is differentiated by autograd.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gradinv.errors import ConfigError
from gradinv.federated.checks import check_clients
from gradinv.federated.observation import Observation
from gradinv.resolve import resolve


@dataclass(frozen=True, eq=False)
class Target:
    """What the trial gradient is compared with.

    Attributes:
        gradient: the observed gradient by parameter name.
        mask: which coordinates survived a known sparsification, by parameter name; None where no
            sparsification is known. The gradient is zero elsewhere. The attacker sees the zeros, or
            knows how many there were before noise covered them, so it may use them.
    """

    gradient: Mapping[str, Tensor]
    mask: Mapping[str, Tensor] | None = None

    @classmethod
    def of(cls, observation: Observation) -> "Target":
        """Returns what an update says: its gradient, without noise where nothing else is left.

        Raises:
            ObservationError: the update is the sum of several clients'.
        """
        check_clients(observation.clients)
        mask = observation.sparsity_mask
        if mask is None:
            return cls(dict(observation.gradient))
        return cls({name: value * mask[name] for name, value in observation.gradient.items()}, mask)

    def largest(self, count: int) -> "Target":
        """Returns the target with only the ``count`` tensors of largest norm."""
        names = sorted(self.gradient, key=lambda name: -self.gradient[name].norm().item())[:count]
        mask = self.mask
        return Target(
            {name: value for name, value in self.gradient.items() if name in names},
            None if mask is None else {name: mask[name] for name in names},
        )

    def masked(self, name: str, trial: Tensor) -> Tensor:
        """Returns the trial gradient of one tensor on the surviving coordinates."""
        return trial if self.mask is None else trial * self.mask[name]


@runtime_checkable
class Distance(Protocol):
    """A gradient distance d(trial, observed)."""

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns the distance; 0 where the two are equal."""
        ...


def sees_length(distance: Distance) -> bool:
    """Returns whether a distance changes with the length of the trial gradient.

    A distance says so with an attribute of that name; one that says nothing is taken to.
    """
    return getattr(distance, "sees_length", True)


@dataclass(frozen=True, eq=False)
class Coefficients:
    """v of each group of tensors is factor (on_observed g + on_trial a).

    Attributes:
        value: the distance.
        factor: common to all groups.
        on_trial: of a.
        on_observed: of g; None for 1.
    """

    value: Float[Tensor, " restart"]
    factor: Float[Tensor, " restart"]
    on_trial: Float[Tensor, "restart group"]
    on_observed: Float[Tensor, "restart group"] | None = None


class OfProducts(ABC):
    """A distance that <a, g>, |a|^2 and |g|^2 of groups of tensors decide.

    Attributes:
        sees_length: whether it changes with the length of a.
        apart: whether every tensor is a group of its own; else any grouping gives the same.
        cancels: whether its value comes out of the products by cancellation, so that a search that
            compares values needs the difference itself.
    """

    sees_length: ClassVar[bool] = False
    apart: ClassVar[bool] = False
    cancels: ClassVar[bool] = False

    @abstractmethod
    def closed(
        self,
        inner: Float[Tensor, "restart group"],
        own: Float[Tensor, "restart group"],
        observed: Float[Tensor, " group"],
    ) -> Coefficients:
        """Returns the distance of every restart and v.

        Args:
            inner: <a, g>.
            own: |a|^2.
            observed: |g|^2.
        """

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns the distance of one trial gradient."""
        inner, own, observed = (torch.stack(terms) for terms in _products(trial, target))
        return self.closed(inner[None], own[None], observed).value[0]


def _products(
    trial: Mapping[str, Tensor], target: Target
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Returns <a, g>, |a|^2 and |g|^2 of every tensor, without one long vector."""
    inner, own, observed = [], [], []
    for name, g in target.gradient.items():
        a = target.masked(name, trial[name])
        inner.append((a * g).sum())
        own.append(a.square().sum())
        observed.append(g.square().sum())
    return inner, own, observed


@dataclass(frozen=True)
class Cosine(OfProducts):
    """1 - <a, g> / (|a| |g|) over all tensors as one vector (Geiping et al. 2020, eq. 4).

    A value between 0 and 2; v = -(g - (<a, g> / |a|^2) a) / (|a| |g|).
    """

    def closed(self, inner: Tensor, own: Tensor, observed: Tensor) -> Coefficients:
        """Returns the distance and v."""
        count = inner.shape[1]
        inner, own = inner.sum(1), own.sum(1)
        scale = (own.sqrt() * observed.sum().sqrt()).clamp_min(torch.finfo(own.dtype).tiny)
        ratio = -inner / own.clamp_min(torch.finfo(own.dtype).tiny)
        return Coefficients(1 - inner / scale, -1 / scale, ratio[:, None].expand(-1, count))


def is_signal(squares: Float[Tensor, "*restart tensor"]) -> Bool[Tensor, "*restart tensor"]:
    """Returns which tensors of a gradient are more than rounding errors, from |g|^2 of each.

    A bias in front of batch norm in train mode has a gradient of zero that is computed as some
    1e-6 of the others (1e-15 in float64), more where batch norm enlarges what it gets: terms that
    cancel are larger than their sum. Alone, that has no direction to compare.
    """
    least = (1024 * torch.finfo(squares.dtype).eps) ** 2
    return squares > least * squares.sum(dim=-1, keepdim=True)


@dataclass(frozen=True)
class LayerCosine(OfProducts):
    """The mean of each tensor's own 1 - cosine, over those whose observed gradient is not zero.

    A value between 0 and 2. It is 1 for a tensor whose trial gradient is zero, as behind ReLUs that
    are all off; such a tensor has no step.
    """

    apart: ClassVar[bool] = True

    def closed(self, inner: Tensor, own: Tensor, observed: Tensor) -> Coefficients:
        """Returns the distance and v."""
        used, live = is_signal(observed), is_signal(own)
        own = own.where(live, 1)
        scale = (own * observed.where(used, 1)).sqrt()
        count = used.sum()
        cosines = (inner / scale).where(live, 0)
        value = ((1 - cosines) * used).sum(1) / count
        on_observed = (used & live) / (scale * count)
        on_trial = -on_observed * inner / own
        return Coefficients(value, -torch.ones_like(value), on_trial, on_observed)


@dataclass(frozen=True)
class SquaredL2(OfProducts):
    """|a - g|^2 over all tensors as one vector (Zhu et al. 2019, eq. 3); v = -2 (g - a)."""

    sees_length: ClassVar[bool] = True
    cancels: ClassVar[bool] = True

    def closed(self, inner: Tensor, own: Tensor, observed: Tensor) -> Coefficients:
        """Returns the distance, inexact where it is small, and v."""
        value = (own - 2 * inner + observed).sum(1).clamp_min(0)
        return Coefficients(value, torch.full_like(value, -2), -torch.ones_like(inner))

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns a value of at least 0."""
        return torch.stack([
            (target.masked(name, trial[name]) - g).square().sum()
            for name, g in target.gradient.items()
        ]).sum()  # fmt: skip


@dataclass(frozen=True)
class L1:
    """|a - g|_1 over all tensors as one vector."""

    sees_length: ClassVar[bool] = True

    def __call__(self, trial: Mapping[str, Tensor], target: Target) -> Float[Tensor, ""]:
        """Returns a value of at least 0."""
        return torch.stack([
            (target.masked(name, trial[name]) - g).abs().sum()
            for name, g in target.gradient.items()
        ]).sum()  # fmt: skip


DISTANCES: dict[str, Distance] = {
    "cosine": Cosine(),
    "layer-cosine": LayerCosine(),
    "l1": L1(),
    "l2": SquaredL2(),
}


def distance_of(spec: str) -> Distance:
    """Returns the distance that ``l2`` or ``package.module:object`` names.

    A class is called without arguments.

    Raises:
        ConfigError: nothing of that name, or what cannot be called.
    """
    named = resolve(spec, DISTANCES, kind="distance")
    if named.settings:
        raise ConfigError(
            f"expected the distance {named.name} without settings, got {named.settings!r}; name a "
            "value that is made"
        )
    value: Any = named.value() if isinstance(named.value, type) else named.value
    if not callable(value):
        raise ConfigError(
            f"expected a distance named {spec!r}, got {type(value).__name__}; define "
            "__call__(trial, target)"
        )
    return cast("Distance", value)
