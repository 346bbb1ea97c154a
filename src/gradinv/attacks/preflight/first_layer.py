"""Whether the first layer's gradient can be that of images in [0, 1].

A layer that computes W x + b has dW_o = sum_t d_ot x_t and db_o = sum_t d_ot over images and places
t. Where all d of one output o have one sign, dW_o / db_o is a mean of what the layer sees.
Values in [0, 1] have a mean square of at most their mean, and images of mean 0 and deviation 1 have
one that is larger by about 1. So does the gradient, roughly: how roughly is seen at random images
(*ours*).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from gradinv.attacks.evidence.head import random_images
from gradinv.attacks.preflight.findings import Finding, Kind
from gradinv.attacks.search.chance import dropping
from gradinv.federated.client import logits, loss_gradient
from gradinv.federated.defense import changes_direction
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg

_TRIALS = 32
_LEAST = 0.7  # of what normalising adds, which is 1 or more
_NOTHING = 1e-6
_TIMES = 3.0  # what random images in [0, 1] have at most


def first_layer_findings(observation: Observation, model: nn.Module, *, seed: int) -> list[Finding]:
    """Returns whether the client's images were likely outside of [0, 1].

    Nothing is said of first layers without a bias, or with batch norm behind it, whose gradient is
    none; of several local steps; or behind noise and sparsification.

    Args:
        observation: the update, on the CPU.
        model: f_theta in the protocol's mode.
        seed: of random images.
    """
    protocol = observation.protocol
    several = isinstance(protocol, FedAvg) and protocol.steps(observation.batch_size) > 1
    lossy = changes_direction(observation.defenses)
    if several or lossy or dropping(model):
        return []
    source = torch.Generator().manual_seed(seed)
    weight = next(model.parameters())
    name = _first(model, random_images(2, observation.image_shape, source).to(weight))
    if name is None or {f"{name}.weight", f"{name}.bias"} - set(observation.gradient):
        return []
    own = _excess(observation.gradient, name)
    trials = []
    for _ in range(_TRIALS):
        images = _images(observation, source).to(weight)
        labels = observation.labels
        if labels is None:
            labels = torch.randint(
                observation.num_classes, (observation.batch_size,), generator=source
            )
        trials.append(_excess(loss_gradient(model, images, labels.to(weight.device)), name))
    known = [trial for trial in trials if trial is not None]
    if own is None or len(known) < _TRIALS:
        return []
    if own <= _LEAST + _TIMES * max(0.0, *known):
        return []
    detail = f"their mean square is about {own:.2g} above their mean"
    return [Finding(Kind.INPUT_RANGE, detail, {"excess": own})]


def _images(observation: Observation, source: torch.Generator) -> Tensor:
    """Returns a batch in [0, 1]: dark and bright, faint and glaring."""
    count = observation.batch_size
    images = random_images(2 * count, observation.image_shape, source)
    images = images[torch.randperm(2 * count, generator=source)[:count]]
    contrast = torch.rand((count, 1, 1, 1), generator=source) * 3
    brightness = torch.rand((count, 1, 1, 1), generator=source)
    return ((images - 0.5) * contrast + brightness).clamp(0, 1)


@torch.no_grad()
def _first(model: nn.Module, images: Tensor) -> str | None:
    """Returns the name of the layer that computes before all others, if it has a bias."""
    seen: list[str] = []

    def recorder(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    handles = [
        module.register_forward_hook(recorder(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    ]
    try:
        logits(model, images)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0] if seen and model.get_submodule(seen[0]).bias is not None else None


def _excess(gradient: Mapping[str, Tensor], name: str) -> float | None:
    """Returns mean square less mean of what the layer saw, both as its gradient has them.

    None where the bias has no gradient, as with batch norm behind it.
    """
    bias = gradient[f"{name}.bias"].double()
    rows = gradient[f"{name}.weight"].double().flatten(1)
    length = bias.square().sum()
    squares = rows.square().mean(dim=1).sum()
    # Rounding leaves some of a gradient that is zero.
    if length <= _NOTHING * squares:
        return None
    mean = (bias * rows.mean(dim=1)).sum() / length
    return float(squares / length - mean)
