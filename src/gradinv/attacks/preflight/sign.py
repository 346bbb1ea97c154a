"""Whether a step along the update would bring down the loss of images with its labels, or raise it.

The last layer sees much the same in all images, so that its gradients for one set of labels point
one way whatever the images: at random images with the update's labels the cosine of an honest one
was 0.22 to 0.99 over the networks of this package. That asks for no bias and no number of classes.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gradinv.attacks.evidence.head import find_head, random_images
from gradinv.attacks.preflight.findings import Finding, Kind
from gradinv.attacks.search.chance import dropping
from gradinv.errors import AttackError
from gradinv.federated.client import loss_gradient
from gradinv.federated.observation import Observation

_TRIALS = 4
_AGAINST = -0.2
"""What sums up many steps, or drowns in noise, is near zero."""


def sign_findings(observation: Observation, model: nn.Module, *, seed: int) -> list[Finding]:
    """Returns whether the update points against the gradients of all random batches of its labels.

    Args:
        observation: the update, on the CPU; nothing is said where its labels are hidden.
        model: f_theta in the protocol's mode.
        seed: of the random images.
    """
    labels = observation.labels
    if labels is None or dropping(model):
        return []
    source = torch.Generator().manual_seed(seed)
    weight = next(model.parameters())
    names = list(observation.gradient)
    cosines = []
    for _ in range(_TRIALS):
        drawn = random_images(observation.batch_size, observation.image_shape, source)
        images = drawn.to(weight.device, weight.dtype)
        if not cosines:
            names = [n for n in _last_layer(model, images) if n in names] or names
        trial = _flat(loss_gradient(model, images, labels.to(weight.device)), names)
        sent = _flat(observation.gradient, names)
        cosines.append(float(torch.cosine_similarity(trial, sent, dim=0)))
    if max(cosines) > _AGAINST:
        return []
    detail = f"its cosine with gradients of random images with its labels is {max(cosines):.2f}"
    return [Finding(Kind.WRONG_SIGN, detail, {"cosine": max(cosines)})]


def _last_layer(model: nn.Module, images: Tensor) -> list[str]:
    """Returns the name of the last layer's weight, where there is such a layer."""
    try:
        head = find_head(model, images)
    except AttackError:
        return []
    return [head.weight_name]


def _flat(gradient: Mapping[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([gradient[name].detach().double().cpu().flatten() for name in names])
