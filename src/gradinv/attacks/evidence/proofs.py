"""How many images of each class an update proves to be there, from its last layer's gradient.

Row c of that layer's weight gradient is (1/B) sum_j d_jc h_j with d_j = softmax(W h_j + b) - e_yj,
whose only negative entry is that of the label. What is said here is no estimate, and holds for a
trained network as for an untrained one.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import nnls
from torch import Tensor

from gradinv.attacks.evidence.head import Head
from gradinv.federated.defense import changes_direction, noise_of, signs_hold
from gradinv.federated.observation import Observation
from gradinv.federated.protocol import FedAvg

PARALLEL = 3
"""Columns along one direction that are more than chance."""
_NOISE = 5.0  # standard deviations: of a hundred thousand entries none gets there by chance
_GRID = 1e4  # directions that differ by less than one part in that count as one
_COMBINED = 1e-3  # of its length: the part of a direction that others need not explain


def proven_counts(observation: Observation, head: Head) -> Int[Tensor, " class"]:
    """Returns how many images of each class there are at least.

    Of one image alone no more is said than its gradient says at once (``idlg``). Zeros where more
    would be proven than there are images: the update is then not what it says it is.
    """
    protocol, batch = observation.protocol, observation.batch_size
    weight = observation.gradient[head.weight_name].detach().double().cpu()
    decays = isinstance(protocol, FedAvg) and not protocol.stepper.keeps_signs
    if decays or not protocol.loss.proves_signs or not head.alone:
        return torch.zeros(len(weight), dtype=torch.long)
    counts = _present(observation, head)
    several = isinstance(protocol, FedAvg) and protocol.steps(batch) > 1
    altered = changes_direction(observation.defenses)
    if not (several or altered or bool((head.features < 0).any())):
        alone = torch.maximum(counts, lone_images(weight))
        counts = alone if alone.sum() <= batch else counts
    return counts if counts.sum() <= batch else torch.zeros_like(counts)


def _present(observation: Observation, head: Head) -> Int[Tensor, " class"]:
    """Returns 1 for every class that is certainly there, 0 for others.

    Without an image of class c all of row c is a sum of p_jc h_j: where features are never negative
    a negative entry is proof of one (Yin et al. 2021 take the B smallest rows for that reason), and
    a negative db_c is proof in any network. It stays proof through clipping, in what a
    sparsification leaves, and through local training, all of whose steps say the same. Noise of
    known size must be beaten by five of its standard deviations, by an entry or along what random
    images excite. A defence that does not keep signs leaves no proof.
    """
    if not signs_hold(observation.defenses):
        return torch.zeros(len(head.weight), dtype=torch.long)
    noise = noise_of(observation.defenses)
    features = head.features.detach().double().cpu()
    present = torch.zeros(len(head.weight), dtype=torch.bool)
    for name, start in ((head.bias_name, head.bias), (head.weight_name, head.weight)):
        if start is None or name not in observation.gradient:
            continue
        sent = observation.gradient[name].detach().cpu()
        bound = _NOISE * noise + _rounding(observation, start, sent)
        rows = sent.double().reshape(len(present), -1)
        if name == head.weight_name:
            if bool((features < 0).any()):
                continue
            if noise > 0:
                length = features.norm(dim=1, keepdim=True).clamp_min(
                    torch.finfo(torch.float32).tiny
                )
                rows = torch.cat([rows, rows @ (features / length).T], dim=1)
        present |= (rows < -bound).any(dim=1)
    return present.long()


def _rounding(observation: Observation, start: Tensor, sent: Tensor) -> float:
    """Returns how inexact an update is: that of local training as its two sets of weights are."""
    protocol = observation.protocol
    if not isinstance(protocol, FedAvg):
        return 0.0
    steps = protocol.steps(observation.batch_size)
    return 4 * steps * torch.finfo(sent.dtype).eps * float(start.abs().max()) / protocol.lr


def lone_images(weight: Float[Tensor, "class feature"]) -> Int[Tensor, " class"]:
    """Returns how many images of each class can be told apart in the gradient of W; *ours*.

    A column k of it is (1/B) sum_j d_j h_jk. Features behind a ReLU are sparse: some belong to one
    image of the batch alone, and their columns are all parallel to its d_j, which names the label.
    Sums of several images are parallel too where these look alike (an empty background), but are
    then sums of directions that stand there alone: that is assumed of every image. Of one that is
    nowhere alone the sum counts as an image, if its own label's entry is above zero in it, as where
    the network takes the other image for one of that label. In the factorisation of non-negative
    matrices such features make the factors unique (Donoho and Stodden 2003).
    """
    length = weight.norm(dim=0)
    columns = weight[:, length > 1e-9 * length.max()]
    columns = columns / columns.norm(dim=0)
    _, group, size = torch.unique(
        (columns * _GRID).round(), dim=1, return_inverse=True, return_counts=True
    )
    total = torch.zeros(len(weight), len(size), dtype=weight.dtype).index_add_(1, group, columns)
    directions = total / size
    one_label = (directions < 0).sum(dim=0) == 1
    chosen = one_label & (size >= PARALLEL)
    directions = directions[:, chosen][:, size[chosen].argsort()]
    rays = list(directions.T.numpy())
    index = 0
    while index < len(rays):
        others = rays[:index] + rays[index + 1 :]
        # The least frequent go first: of two that are the same one stays.
        if others and nnls(np.stack(others, axis=1), rays[index])[1] < _COMBINED:
            rays = others
        else:
            index += 1
    labels = torch.tensor([int(ray.argmin()) for ray in rays], dtype=torch.long)
    return torch.bincount(labels, minlength=len(weight))
