"""Whether a search can get going: is there a dc/dx, and does the cost fall along it.

A network that rounds, casts or detaches its input sends an update that is full of the image, and
has no derivative with respect to it. A search then stands still, and finds nothing where the same
network without that operation gives everything away.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradinv.attacks.attack import LocalTraining
from gradinv.attacks.evidence.head import random_images
from gradinv.attacks.preflight.findings import Finding, Kind
from gradinv.attacks.search.chance import dropout_from, dropping
from gradinv.attacks.simulation import as_attacked
from gradinv.engine import Engine, engine_for
from gradinv.engine.distances import Distance
from gradinv.federated.observation import Observation

DRAWS = 4
"""Random batches that are tried at most; one or two are enough where nothing is wrong."""
STEPS = (3e-2, 3e-3, 3e-4, 3e-5)
"""Lengths of a step along -dc/dx, as the root mean square change of a pixel."""
_CHANGED = 1e-5  # of the cost: more than rounding, less than what any pixel of an image does


def derivative_findings(
    observation: Observation,
    model: nn.Module,
    *,
    distance: Distance,
    fedavg: LocalTraining = "simulate",
    seed: int = 0,
) -> list[Finding]:
    """Returns what keeps a search from getting going; nothing where dc/dx is as it should be.

    Costs one or two evaluations of the cost with its gradient, and two or three without.

    Args:
        observation: the update, with labels.
        model: f_theta in the protocol's mode.
        distance: the attack's.
        fedavg: how the attack explains an update of several local steps.
        seed: of the random images.
    """
    source = torch.Generator().manual_seed(seed)
    weight = next(model.parameters())
    attacked = as_attacked(observation, fedavg, source).to(weight.device, weight.dtype)
    probe = _Probe(engine_for(model, attacked, distance=distance), model, seed)
    shape = (DRAWS, observation.batch_size, *observation.image_shape)
    images = random_images(DRAWS * observation.batch_size, observation.image_shape, source)
    # Every second batch is a smooth one.
    order = torch.arange(DRAWS).view(2, -1).T.flatten()
    draws = images.view(shape)[order].to(weight.device, weight.dtype)
    for draw in draws:
        probe.look(draw)
        if probe.fine:
            return []
    return probe.findings(draws)


@dataclass(eq=False)
class _Probe:
    """What was seen of dc/dx so far.

    Attributes:
        seen: pixels with a derivative in some image of some batch; None before the first one.
        costs: of the batches, in their order.
        finite: whether some batch had a finite dc/dx.
        falls: whether the cost fell along it from some batch.
    """

    engine: Engine
    model: nn.Module
    seed: int
    seen: Bool[Tensor, "channel height width"] | None = None
    costs: list[float] = field(default_factory=list)
    finite: bool = False
    falls: bool = False

    @contextmanager
    def _steady(self) -> Iterator[None]:
        """Lets dropout do the same at every call: costs are compared."""
        device = next(self.model.parameters()).device
        with (
            dropout_from((self.seed, 0, 0), device) if dropping(self.model) else nullcontext(),
            torch.no_grad(),
        ):
            yield

    @property
    def fine(self) -> bool:
        """Whether nothing is left to be asked."""
        return self.finite and self.falls and self.seen is not None and bool(self.seen.all())

    def cost(self, images: Float[Tensor, "batch channel height width"]) -> float:
        """Returns the matching cost of one batch."""
        with self._steady():
            return float(self.engine.matching(images[None])[0])

    def slope(
        self, images: Float[Tensor, "batch channel height width"]
    ) -> Float[Tensor, "batch channel height width"]:
        """Returns dc/dx of one batch."""
        with self._steady():
            return self.engine.evaluate(images[None]).gradient[0]

    def look(self, images: Float[Tensor, "batch channel height width"]) -> None:
        """Takes one more batch into account."""
        slope = self.slope(images)
        cost = self.cost(images)
        self.costs.append(cost)
        if not torch.isfinite(slope).all():
            return
        self.finite = True
        has = (slope != 0).any(dim=0)
        self.seen = has if self.seen is None else self.seen | has
        if has.any() and not self.falls:
            self.falls = self._falls(images, slope, cost)

    def _falls(self, images: Tensor, slope: Tensor, cost: float) -> bool:
        # Scaled by its largest entry first: the square of a tiny slope is zero.
        direction = slope / slope.abs().max()
        direction = direction / direction.square().mean().sqrt()
        least = 8 * torch.finfo(images.dtype).eps * abs(cost)
        return any(self.cost(images - step * direction) < cost - least for step in STEPS)

    def differs(self, one: float, other: float) -> bool:
        """Returns whether two costs differ by more than rounding."""
        return abs(one - other) > _CHANGED * max(abs(one), abs(other))

    def findings(self, draws: Float[Tensor, "draw batch channel height width"]) -> list[Finding]:
        """Returns what is wrong after all batches were looked at."""
        if not self.finite or self.seen is None:
            return [Finding(Kind.NOT_FINITE, f"at {DRAWS} of {DRAWS} batches of random images")]
        if not self.seen.any():
            changes = any(self.differs(self.costs[0], cost) for cost in self.costs[1:])
            kind = Kind.NO_DERIVATIVE if changes else Kind.NO_DEPENDENCE
            return [Finding(kind, f"dc/dx is zero at {DRAWS} batches of random images")]
        found = [] if self.falls else [Finding(Kind.COST_STANDS_STILL)]
        return found + self._unseen(draws)

    def _unseen(self, draws: Tensor) -> list[Finding]:
        """Returns what there is to say of pixels without a derivative."""
        assert self.seen is not None
        unseen = ~self.seen
        if not unseen.any():
            return []
        share = float(unseen.double().mean())
        numbers = {"share": share}
        # The other pixels stay: a change of the cost comes from those without a derivative.
        other = torch.where(unseen, draws[1], draws[0])
        if not self.differs(self.cost(other), self.cost(draws[0])):
            return [Finding(Kind.PART_UNSEEN, _where(unseen), numbers)]
        # ReLUs that were all off at the random images may be on now.
        if (self.slope(other)[:, unseen] != 0).any():
            return []
        return [Finding(Kind.PART_WITHOUT_DERIVATIVE, _where(unseen), numbers)]


def _where(unseen: Bool[Tensor, "channel height width"]) -> str:
    """Returns which part of an image that is, in words; all are counted from 0."""
    share = f"{100 * float(unseen.double().mean()):.3g} % of its values"
    parts = []
    for name, others in (("channels", (1, 2)), ("rows", (0, 2)), ("columns", (0, 1))):
        whole = unseen
        for axis in sorted(others, reverse=True):
            whole = whole.all(dim=axis)
        indices = whole.nonzero().flatten().tolist()
        if indices and len(indices) < len(whole):
            parts.append(f"{name[: len(name) - (len(indices) == 1)]} {_ranges(indices)}")
    return f"{share}: {', '.join(parts)}" if parts else share


def _ranges(indices: list[int]) -> str:
    """Returns ``0, 28 to 31`` for 0, 28, 29, 30, 31."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}" for r in runs)
