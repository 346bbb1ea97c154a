"""R-GAP: one image from its gradient in closed form, layer by layer from output to input.

Zhu and Blaschko 2021. *Deviation:* their loss is logistic with one output, from which they solve
for the margin; here it is the cross entropy over classes, whose dl/dz = softmax(z) - y is the
gradient of the last layer's bias, or follows from its weight's (:func:`_last_layer`).
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from gradinv.attacks.recursion.chain import Link, chain_of, undo
from gradinv.attacks.recursion.linear import System, system_of
from gradinv.attacks.result import Outcome, Reconstruction, StageResult
from gradinv.engine.distances import Target
from gradinv.errors import AttackError
from gradinv.federated.defense import changes_length
from gradinv.federated.loss import Loss
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg

_GRID = 400  # points of the search for one scalar, before it is refined


@dataclass(frozen=True, eq=False)
class Peeled:
    """What the closed form found.

    Attributes:
        image: in [0, 1].
        systems: of the convolutions, from output to input, each with its solution.
        residuals: |A x - b|^2 / |b|^2 of each layer, from output to input.
        before: what is done to an image before the input layer.
        inner: the linear system that the input layer's input solves.
        seconds: spent.
    """

    image: Float[Tensor, "1 channel height width"]
    systems: tuple[System, ...]
    residuals: tuple[float, ...]
    before: Callable[[Tensor], Tensor]
    inner: System
    seconds: float

    def stage(self) -> StageResult:
        """Returns the closed form as a stage; a step is a layer, its cost the residual."""
        return StageResult(
            name="layers",
            images=torch.nan_to_num(self.image).clamp(0, 1),
            cost=torch.tensor(self.residuals)[:, None],
            steps=len(self.residuals),
            seconds=self.seconds,
            objective=self.residuals[-1],
        )

    def reconstruction(self, labels: Tensor) -> Reconstruction:
        """Returns the closed form's image; its objective is the input layer's residual."""
        full = all(system.rank == system.unknowns for system in self.systems)
        outcome = Outcome.COMPLETED if full else Outcome.UNDER_DETERMINED
        if not bool(torch.isfinite(self.image).all()):
            outcome = Outcome.NON_FINITE
        stage = self.stage()
        return Reconstruction(
            images=stage.images,
            labels=labels,
            objective=torch.tensor([stage.objective]),
            matching=stage.objective,
            best=0,
            stages=(stage,),
            outcome=outcome,
            seconds=self.seconds,
        )


def require_peelable(
    observation: Observation, model: nn.Module, name: str = "r-gap", *, how: str = "use"
) -> None:
    """Checks that the closed form fits the update and the network.

    Args:
        observation: the update.
        model: the network.
        name: of the attack, for errors.
        how: what to do with the options that make another update, for errors.

    Raises:
        AttackError: more than one image, more than one local step, a layer without a gradient, or a
            network that is no chain of layers that can be undone.
    """
    if observation.batch_size != 1:
        raise AttackError(
            f"expected an update of one image for {name}, got {observation.batch_size}; {how} "
            "--batch-size 1, or attack with gi-x or gi-z/w, which take any batch"
        )
    protocol = observation.protocol
    if isinstance(protocol, FedAvg) and (steps := protocol.steps(observation.batch_size)) > 1:
        raise AttackError(
            f"expected a single gradient for {name}, got an update of {steps} local steps; {how} "
            "--protocol fedsgd or --local-epochs 1, or attack with gi-x, which simulates the steps"
        )
    if protocol.loss != Loss():
        raise AttackError(
            f"expected the mean cross entropy for {name}, got the loss {protocol.loss}; "
            "attack with gi-x, which takes any"
        )
    if isinstance(protocol, FedAvg) and not protocol.stepper.keeps_signs:
        raise AttackError(
            f"expected a gradient for {name}, got a step of {protocol.stepper}; "
            "attack with gi-x, which simulates the step"
        )
    frozen = [
        link.name
        for link in chain_of(model, observation.image_shape)
        if isinstance(link.layer, nn.Conv2d | nn.Linear)
        and f"{link.name}.weight" not in observation.gradient
    ]
    if frozen:
        raise AttackError(
            f"expected the gradient of every layer for {name}, got none of {', '.join(frozen)} (a "
            "frozen layer); attack with gi-x, which needs no particular layer"
        )


@torch.no_grad()
def peel(observation: Observation, model: nn.Module, *, name: str = "r-gap") -> Peeled:
    """Returns the image that the gradient gives away layer by layer (Zhu and Blaschko 2021).

    Let k = dl/da at the preactivation a = W x + b of a layer whose output is known. Then x solves
    the gradient constraints k x^T = dl/dW and the weight constraints W x = a - b together; the next
    layer's output is x, and its k is W^T k times the slope of the activation. A linear layer's
    gradient constraints determine x alone, x = (dl/dW)^T k / |k|^2. Errors grow with depth: they
    enter the next system on both sides.

    Args:
        observation: of one image; its labels must be known.
        model: f_theta.
        name: of the attack, for errors.

    Raises:
        AttackError: as :func:`require_peelable`.
    """
    started = time.perf_counter()
    require_peelable(observation, model, name)
    observation = observation.as_one_gradient()  # a single local step is nothing else
    assert observation.labels is not None
    links = chain_of(model, observation.image_shape)
    target = Target.of(observation)
    # Also on CUDA: least squares in double precision are the processor's work.
    gradient = {key: value.detach().double().cpu() for key, value in target.gradient.items()}
    clipped = changes_length(observation.defenses)
    label = int(observation.labels[0])
    kept = None if target.mask is None else target.mask[f"{links[-1].name}.weight"].cpu()
    known, slope, error = _last_layer(links[-1], gradient, label, clipped=clipped, kept=kept)
    residuals, systems, inner, first = [error], [], None, 0
    for index in reversed(range(len(links) - 1)):
        link = links[index]
        if not isinstance(link.layer, nn.Conv2d | nn.Linear):
            known, slope = undo(link, known, slope)
            continue
        kept = None if target.mask is None else target.mask[f"{link.name}.weight"].cpu()
        system = system_of(link, known, slope, gradient, kept=kept)
        known, slope = system.solution, system.slope
        residuals.append(system.residual)
        systems.append(system)
        inner, first = system, index
    if inner is None:
        inner, first = System.identity(links[-1], known, slope), len(links) - 1
        systems.append(inner)
    weight = next(model.parameters())
    return Peeled(
        image=known.reshape(1, *observation.image_shape).to(weight),
        systems=tuple(systems),
        residuals=tuple(residuals),
        before=_before(links[:first], weight),
        inner=inner,
        seconds=time.perf_counter() - started,
    )


def _before(links: tuple[Link, ...], like: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns what happens to images before the first layer with weights to solve for."""

    def run(images: Tensor) -> Tensor:
        for link in links:
            if link.layer is None:
                images = images.flatten(1)
            else:
                images = link.layer(images.to(like)).to(images)
        return images

    return run


def _last_layer(
    link: Link,
    gradient: dict[str, Tensor],
    label: int,
    *,
    clipped: bool,
    kept: Bool[Tensor, "class feature"] | None,
) -> tuple[Float[Tensor, " feature"], Float[Tensor, " feature"], float]:
    """Returns h, dl/dh and the relative error of dl/dW = k h^T.

    With a bias k = dl/db. Without one the weight's gradient has rank one, k h^T = s u v^T, and
    gives k = t u and h = s v / t up to a scalar t > 0, which solves softmax(W h) - y = k. This
    takes the place of the paper's scalar equation <dl/dW, W> = mu l'(mu); with more than two
    classes it is over-determined, so t is where its residual is smallest. Known clips leave an
    unknown part of the gradient, k and t u included, and nothing of h is changed by that. Entries
    that a sparsification did not send are no equations: a feature none of whose entries was sent is
    taken for 0.
    """
    layer = link.layer
    assert isinstance(layer, nn.Linear)
    weight = layer.weight.detach().double().cpu()
    observed = gradient[f"{link.name}.weight"]
    bias = gradient.get(f"{link.name}.bias")
    if bias is not None:
        k = bias
    else:
        offset = 0 if layer.bias is None else layer.bias.detach().double().cpu()
        left, sizes, right = torch.linalg.svd(observed, full_matrices=False)
        u, h = left[:, 0], sizes[0] * right[0]
        if u[label] > 0:
            u, h = -u, -h
        target = torch.nn.functional.one_hot(torch.tensor(label), len(u)).double()
        direction = clipped and len(u) > 2
        k = _scalar(u, weight @ h, offset - target.new_zeros(()), target, direction=direction) * u
    seen = torch.ones_like(observed) if kept is None else kept.to(observed)
    squares = seen.T @ k.square()
    # A feature that nothing was sent of is taken for 0; a gradient of zeros gives no finite answer.
    h = (seen * observed).T @ k / squares.where((squares > 0) | ~k.any(), 1)
    error = (seen * (observed - k[:, None] * h)).square().sum() / observed.square().sum()
    return h, weight.T @ k, float(error)


def _scalar(
    u: Tensor, product: Tensor, offset: Tensor, target: Tensor, *, direction: bool
) -> Tensor:
    """Returns the t in (0, 1 / |u_y|] with softmax(product / t + offset) - target = t u.

    With ``direction`` the two sides need only point the same way, which takes three classes.
    """
    end = 1 / float((u * target).sum().abs())
    low, high = 1e-9 * end, end
    best = u.new_tensor(end)
    for _ in range(12):
        t = torch.logspace(math.log10(low), math.log10(high), _GRID, dtype=u.dtype)
        trial = (product / t[:, None] + offset).softmax(dim=1) - target
        length = (trial @ u).clamp_min(torch.finfo(u.dtype).tiny) if direction else t
        error = (trial - length[:, None] * u).square().sum(dim=1).div(length.square())
        at = int(torch.nan_to_num(error, nan=torch.inf).argmin())
        best = t[at]
        low, high = float(t[max(at - 2, 0)]), float(t[min(at + 2, _GRID - 1)])
    return best
