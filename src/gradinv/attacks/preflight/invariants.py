"""What every gradient of one network obeys, whatever image and label it was made of.

Scale the weights in front of a ReLU and unscale those behind it, and the network computes the
same: so <W_l, dW_l> + <b_l, db_l> = <W_(l+1), dW_(l+1)> for layers that follow each other (Du et
al. 2018, Theorem 2.1). Weights in front of batch norm in train mode have <W, dW> = 0, queries and
keys of attention balance, and so on. All these laws are linear in the products <theta_t, g_t> of
the parameter tensors, and hold at theta alone: a gradient that was made with other weights breaks
them. They need not be known: they are what the gradients of random images have in common (*ours*).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gradinv.attacks.evidence.head import random_images
from gradinv.attacks.preflight.findings import Finding, Kind
from gradinv.attacks.search.chance import dropping
from gradinv.federated.client import loss_gradient
from gradinv.federated.defense import keeps_entries, noise_of
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg

MOST_TENSORS = 40
"""More take more random gradients than a look before an attack should: ResNet-18's, a minute."""
_MORE = 8  # random gradients beyond as many as there are tensors
_HOLDS = 1e-4  # of the largest possible value: what the law is worth on random images at most
_BROKEN = 30.0  # times what random images break it by at most
_LEAST = 1e-3
"""Of the largest possible value: a law broken by less may be a kink that random images missed."""


def invariant_findings(
    observation: Observation, model: nn.Module, *, coarse: bool, seed: int
) -> list[Finding]:
    """Returns whether the update breaks what the gradients of random images have in common.

    Nothing is said of local training, whose weights move; behind a sparsification, which breaks the
    laws; or of networks that drop values at random, are too large or obey no law.
    """
    protocol = observation.protocol
    several = isinstance(protocol, FedAvg) and protocol.steps(observation.batch_size) > 1
    lossy = not keeps_entries(observation.defenses)
    if several or lossy or coarse or dropping(model) or len(observation.gradient) > MOST_TENSORS:
        return []
    trials = _trials(observation, model, seed)
    own = _products(observation.gradient, model)
    lengths = torch.stack(trials[1])
    products = torch.stack(trials[0])
    # Tensors without a gradient at random images may have one at the client's.
    used = (lengths > 0).all(dim=0)
    if int(used.sum()) < 2:
        return []
    scaled = products[:, used] / lengths[:, used].norm(dim=1, keepdim=True)
    half = len(scaled) - _MORE // 2
    _, values, directions = torch.linalg.svd(scaled[:half], full_matrices=True)
    rank = int((values > _HOLDS * math.sqrt(half) * values.max().clamp_min(1e-12)).sum())
    laws = directions[rank:]
    if not len(laws):
        return []
    broken, held = (
        _worth(laws, own[0][used], own[1][used]),
        [
            _worth(laws, product[used], length[used])
            for product, length in zip(products, lengths, strict=True)
        ],
    )
    allowed = _BROKEN * torch.stack(held).amax(dim=0) + _LEAST
    allowed = allowed + _noise(observation, model, used, laws, own[1][used])
    worst = float((broken / allowed).max())
    if worst <= 1:
        return []
    most = float(broken.max())
    detail = f"{len(laws)} laws, one broken by {100 * most:.2g} %"
    return [Finding(Kind.OTHER_WEIGHTS, detail, {"laws": float(len(laws)), "broken": most})]


def _trials(
    observation: Observation, model: nn.Module, seed: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Returns the products and lengths of the gradients of random batches with random labels."""
    source = torch.Generator().manual_seed(seed)
    # Batch norm in train mode needs two images; more take longer and say no more.
    count = min(observation.batch_size, 2)
    weight = next(model.parameters())
    number = len(observation.gradient) + _MORE
    images = random_images(number * count, observation.image_shape, source)
    # From faint to glaring: a unit that saturates for some image obeys no law.
    contrast = torch.rand(len(images), 1, 1, 1, generator=source) * 3
    images = ((images - 0.5) * contrast + 0.5).clamp(0, 1)[
        torch.randperm(len(images), generator=source)
    ]
    products, lengths = [], []
    for batch in images.split(count):
        labels = torch.randint(observation.num_classes, (count,), generator=source)
        gradient = loss_gradient(
            model, batch.to(weight.device, weight.dtype), labels.to(weight.device)
        )
        product, length = _products(gradient, model)
        products.append(product)
        lengths.append(length)
    return products, lengths


def _products(gradient, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Returns <theta_t, g_t> and |theta_t| |g_t| of every tensor, float64."""
    own = dict(model.named_parameters())
    pairs = [(own[name].detach().double().cpu(), g.double().cpu()) for name, g in gradient.items()]
    return (
        torch.stack([(theta * g).sum() for theta, g in pairs]),
        torch.stack([theta.norm() * g.norm() for theta, g in pairs]),
    )


def _worth(
    laws: Float[Tensor, "law tensor"], product: Float[Tensor, " tensor"], length: Tensor
) -> Float[Tensor, " law"]:
    """Returns what every law is worth, as part of the largest value that it could have."""
    return (laws @ product).abs() / (laws.abs() @ length).clamp_min(1e-300)


def _noise(
    observation: Observation, model: nn.Module, used: Tensor, laws: Tensor, length: Tensor
) -> Float[Tensor, " law"]:
    """Returns what noise of known size is worth at most."""
    sigma = noise_of(observation.defenses)
    own = dict(model.named_parameters())
    sizes = torch.stack([own[name].detach().double().cpu().norm() for name in observation.gradient])
    spread = sigma * ((laws * sizes[used]) ** 2).sum(dim=1).sqrt()
    return 6 * spread / (laws.abs() @ length).clamp_min(1e-300)
