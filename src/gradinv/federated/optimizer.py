"""The optimiser of a client's local training, as a step that can be differentiated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from gradinv.errors import ConfigError, did_you_mean
from gradinv.federated.loss import number, settings_of_spec

Kind = Literal["sgd", "adam", "adamw"]
_SGD, _ADAM = ("momentum", "dampening", "nesterov"), ("beta1", "beta2", "eps")

Moments = Mapping[str, tuple[Tensor, ...]]
"""What the optimiser remembers of each parameter: nothing, a velocity, or two moments."""


@dataclass(frozen=True)
class LocalOptimizer:
    """How a gradient moves the weights, as the class of that name in ``torch.optim`` does it.

    Attributes:
        kind: "sgd", "adam" (decay is a part of the gradient) or "adamw" (decay beside it).
        weight_decay: of all parameters.
        momentum: of SGD, in [0, 1).
        dampening: of SGD's momentum, in [0, 1].
        nesterov: whether SGD looks ahead; it takes momentum without dampening.
        beta1: of Adam's mean, in [0, 1).
        beta2: of Adam's squares, in [0, 1).
        eps: of Adam's denominator, above 0.

    Raises:
        ConfigError: a value that has no meaning, or one that belongs to another optimiser.
    """

    kind: Kind = "sgd"
    weight_decay: float = 0.0
    momentum: float = 0.0
    dampening: float = 0.0
    nesterov: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ConfigError(
                f"expected an optimiser among {', '.join(get_args(Kind))}, got {self.kind!r}; "
                f"{did_you_mean(str(self.kind), get_args(Kind))}"
            )
        foreign = _ADAM if self.kind == "sgd" else _SGD
        for entry in fields(self):
            if entry.name in foreign and getattr(self, entry.name) != entry.default:
                raise ConfigError(
                    f"expected settings of {self.kind}, got {entry.name}; leave it out, or choose "
                    "the optimiser that has it"
                )
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ConfigError(
                f"expected a weight decay of at least 0, got {self.weight_decay}; try 5e-4"
            )
        for name in ("momentum", "beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"expected {name} in [0, 1), got {getattr(self, name)}; try 0.9")
        if not 0 <= self.dampening <= 1:
            raise ConfigError(f"expected dampening in [0, 1], got {self.dampening}; leave it at 0")
        if self.nesterov and (self.momentum == 0 or self.dampening != 0):
            raise ConfigError(
                "expected momentum without dampening for nesterov, got momentum "
                f"{self.momentum:g} and dampening {self.dampening:g}; set momentum=0.9"
            )
        if not (math.isfinite(self.eps) and self.eps > 0):
            raise ConfigError(f"expected eps above 0 and finite, got {self.eps}; try 1e-8")

    @property
    def keeps_signs(self) -> bool:
        """Whether an update is a sum of gradients with weights that are not negative."""
        return self.kind == "sgd" and self.weight_decay == 0

    def step(
        self,
        weights: Mapping[str, Tensor],
        gradient: Mapping[str, Tensor],
        moments: Moments | None,
        *,
        lr: float,
        number: int,
    ) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, ...]]]:
        """Returns the weights after one step, and what is remembered of it.

        Args:
            weights: parameter name -> value.
            gradient: of the loss at these weights.
            moments: of the step before; None in the first.
            lr: step size.
            number: of this step, from 1.
        """
        moved, kept = {}, {}
        for name, value in weights.items():
            before = None if moments is None else moments[name]
            own = gradient[name]
            if self.weight_decay != 0 and self.kind != "adamw":
                own = own + self.weight_decay * value
            if self.kind == "sgd":
                moved[name], kept[name] = self._sgd(value, own, before, lr)
            else:
                moved[name], kept[name] = self._adam(value, own, before, lr, number)
        return moved, kept

    def _sgd(
        self, value: Tensor, gradient: Tensor, before: tuple[Tensor, ...] | None, lr: float
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        velocity = gradient
        if before is not None:
            fresh = gradient if self.dampening == 0 else (1 - self.dampening) * gradient
            velocity = self.momentum * before[0] + fresh
        along = gradient + self.momentum * velocity if self.nesterov else velocity
        return value - lr * along, (velocity,)

    def _adam(
        self,
        value: Tensor,
        gradient: Tensor,
        before: tuple[Tensor, ...] | None,
        lr: float,
        number: int,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.kind == "adamw":
            value = value * (1 - lr * self.weight_decay)
        if before is None:
            before = (torch.zeros_like(gradient), torch.zeros_like(gradient))
        mean = before[0].lerp(gradient, 1 - self.beta1)
        square = self.beta2 * before[1] + (1 - self.beta2) * gradient * gradient
        # The root has no finite slope at zero, where an unused weight's moments are.
        used = square > 0
        root = torch.where(used, torch.where(used, square, 1.0).sqrt(), 0.0)
        below = root / math.sqrt(1 - self.beta2**number) + self.eps
        return value - lr / (1 - self.beta1**number) * (mean / below), (mean, square)

    def __str__(self) -> str:
        """Returns the text that :func:`parse_optimizer` reads as this optimiser."""
        settings = [
            f"{entry.name.replace('_', '-')}={str(value).lower()}"
            for entry in fields(self)
            if entry.name != "kind" and (value := getattr(self, entry.name)) != entry.default
        ]
        return ":".join([self.kind, *([",".join(settings)] if settings else [])])


def parse_optimizer(spec: str) -> LocalOptimizer:
    """Returns the optimiser that a text names, such as ``sgd:momentum=0.9,weight-decay=5e-4``.

    Raises:
        ConfigError: no such optimiser or setting, or a value that has no meaning.
    """
    known = tuple(e.name.replace("_", "-") for e in fields(LocalOptimizer) if e.name != "kind")
    kind, settings = settings_of_spec(spec, known)
    values: dict[str, Any] = {"kind": kind}
    for name, text in settings.items():
        if name == "nesterov":
            if text not in {"true", "false"}:
                raise ConfigError(
                    f"expected nesterov or nesterov=false in {spec!r}, got {text!r}; choose one"
                )
            values[name] = text == "true"
        else:
            values[name.replace("-", "_")] = number(text, spec)
    return LocalOptimizer(**values)
