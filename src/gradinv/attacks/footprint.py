"""What an attack holds of memory at least, told before any is taken.

All restarts are stepped together, each with a point, its moments and its pictures; what their
network passes take is split by the engine into parts of a fixed size.
"""

import math

from torch import nn

from gradinv.attacks.attack import Attack, Stage
from gradinv.attacks.search.evolution import CMA
from gradinv.attacks.search.lbfgs import LBFGS
from gradinv.attacks.search.spaces import OfGenerator, Pixels
from gradinv.engine.traced import MEMORY
from gradinv.errors import ConfigError, GradinvError
from gradinv.federated.protocol import FedAvg, FedSGD, Protocol
from gradinv.models.footprint import memory_of, outputs_bytes, required_bytes, weights_bytes
from gradinv.priors.generator import Generator
from gradinv.room import require_room

_FLOAT = 4
# The point, its gradient and Adam's two moments; of L-BFGS the point, its gradient, a direction and
# those of the last step, beside two vectors for each pair of its history.
_ADAM, _LBFGS = 4, 5
# Of CMA-ES, in float64: the covariance and its eigenvectors.
_MATRICES = 2 * 8
# The pictures and dc/dx.
_PICTURES = 2
# What the engine's parts were measured to take at least; their size is its own, higher estimate.
_PART = MEMORY // 2


def attack_bytes(
    attack: Attack,
    model: nn.Module,
    shape: tuple[int, int, int, int],
    *,
    classes: int,
    prior: Generator | None,
    protocol: Protocol = FedSGD(),  # noqa: B008 -- a frozen value
) -> int:
    """Returns the bytes that an attack on one update needs at least, at the same time.

    Args:
        attack: with the restarts that were asked for.
        model: the network.
        shape: (batch, channel, height, width) of what is rebuilt.
        classes: how many the network tells apart.
        prior: the server's generator.
        protocol: what the client computed; local steps that are simulated are all held.
    """
    needed = required_bytes(model, shape)
    if isinstance(protocol, FedAvg) and attack.fedavg == "simulate":
        local = min(protocol.batch_size or shape[0], shape[0])
        step = weights_bytes(model) + outputs_bytes(model, (local, *shape[1:]))
        needed += (protocol.steps(shape[0]) - 1) * step
    if attack.restarts > 1:
        each = weights_bytes(model) + outputs_bytes(model, shape)
        needed += min(_PART, (attack.restarts - 1) * each)
    restarts, most = attack.restarts, 0
    for stage in attack.stages:
        most = max(most, restarts * _stage_bytes(stage, shape, classes, prior))
        restarts = min(restarts, stage.keep or restarts)
    if not attack.stages:  # chosen by what the update says
        most = restarts * _PICTURES * _FLOAT * math.prod(shape)
    return needed + most


def _stage_bytes(
    stage: Stage, shape: tuple[int, int, int, int], classes: int, prior: Generator | None
) -> int:
    """Returns the bytes of one restart of a stage beside those of the network's passes."""
    space, searched, needed = stage.space, 0, _PICTURES * _FLOAT * math.prod(shape)
    if isinstance(space, Pixels):
        searched = math.prod(shape) + (shape[0] * classes if space.soft_labels else 0)
    if prior is not None and space.needs_prior:
        if stage.optimizer.has_gradient:
            needed += shape[0] * outputs_bytes(prior, (1, *prior.latent_shape))
        if isinstance(space, OfGenerator):
            sizes = (
                math.prod(prior.latent_shape) if space.latents else 0,
                weights_bytes(prior) // _FLOAT if space.weights else 0,
            )
            searched = shape[0] * sum(sizes)
    if isinstance(stage.optimizer, CMA):
        return needed + _MATRICES * searched**2
    copies = _ADAM
    if isinstance(stage.optimizer, LBFGS):
        copies = _LBFGS + 2 * stage.optimizer.history
    return needed + copies * _FLOAT * searched


def require_attack_fits(
    attack: Attack,
    model: nn.Module,
    shape: tuple[int, int, int, int],
    *,
    classes: int,
    prior: Generator | None,
    protocol: Protocol = FedSGD(),  # noqa: B008 -- a frozen value
    workers: int = 1,
    lower: str = "--restarts, --batch-size or --image-size",
    error: type[GradinvError] = ConfigError,
) -> None:
    """Checks that an attack can fit into memory; arguments are those of :func:`attack_bytes`.

    Args:
        attack: see there.
        model: see there.
        shape: see there.
        classes: see there.
        prior: see there.
        protocol: see there.
        workers: processes that were asked for, each with an attack of its own.
        lower: what to lower.
        error: the class of the error.

    Raises:
        GradinvError: of that class; it cannot.
    """
    needed = workers * attack_bytes(
        attack, model, shape, classes=classes, prior=prior, protocol=protocol
    )
    there, whose = memory_of(next(model.parameters()).device)
    what = f"an attack with {attack.name}"
    if isinstance(protocol, FedAvg) and attack.fedavg == "simulate":
        lower = f"--local-epochs, {lower}"
    if workers > 1:
        what, lower = f"an audit by {workers} processes", f"--workers, {lower}"
    require_room(needed, what, lower, error, there=there, whose=whose)
