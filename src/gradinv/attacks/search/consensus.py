"""Group consistency (Yin et al. 2021, section 3.3): several seeds agree on what they see.

Each seed of an inversion finds the same objects, a little displaced. Their registered mean, the
consensus, is a better guess than each of them, and each is pulled towards it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gradinv.engine.terms import Sees

Seeds = Float[Tensor, "restart batch channel height width"]


def displacement(
    images: Float[Tensor, "*lead channel height width"],
    reference: Float[Tensor, "*lead channel height width"],
    *,
    reach: int,
) -> Int[Tensor, "*lead 2"]:
    """Returns by how many pixels (down, right) to roll each image onto its reference.

    Phase correlation (Kuglin & Hines 1975): the peak of the inverse transform of the normalised
    cross-power spectrum, summed over channels, among the displacements of at most ``reach``.
    """
    height, width = images.shape[-2:]
    cross = (torch.fft.rfft2(reference) * torch.fft.rfft2(images).conj()).sum(dim=-3)
    phase = cross / cross.abs().clamp_min(torch.finfo(images.dtype).tiny)
    response = torch.fft.irfft2(phase, s=(height, width))
    offsets = torch.arange(-reach, reach + 1, device=images.device)
    window = response[..., offsets[:, None] % height, offsets % width].flatten(-2)
    # Where nothing is clearly better, and that is where all is equal, nothing is rolled.
    window[..., window.shape[-1] // 2] += 1e-6
    peak = window.argmax(dim=-1)
    return torch.stack([peak // len(offsets), peak % len(offsets)], dim=-1) - reach


def roll(
    images: Float[Tensor, "*lead channel height width"], by: Int[Tensor, "*lead 2"]
) -> Float[Tensor, "*lead channel height width"]:
    """Returns each image rolled by its own displacement; what leaves one edge enters the other."""
    height, width = images.shape[-2:]
    rows = (torch.arange(height, device=images.device) - by[..., :1]) % height
    columns = (torch.arange(width, device=images.device) - by[..., 1:]) % width
    rows = rows[..., None, :, None].expand(*images.shape[:-1], 1)
    images = images.gather(-2, rows.expand(images.shape))
    columns = columns[..., None, None, :].expand(images.shape)
    return images.gather(-1, columns)


def consensus(images: Seeds, *, reach: int) -> Float[Tensor, "batch channel height width"]:
    """Returns the mean over the seeds, each registered to their plain mean first.

    Seeds with numbers that are not finite take no part.
    """
    finite = images[torch.isfinite(images).flatten(1).all(dim=1)]
    mean = finite.mean(dim=0)
    by = displacement(finite, mean.expand_as(finite), reach=reach)
    return roll(finite, by).mean(dim=0)


def in_one_order(
    images: Seeds,
    reference: Float[Tensor, "batch channel height width"],
    labels: Int[Tensor, " batch"],
) -> Seeds:
    """Returns the images of every seed in the reference's order.

    The gradient is a mean over the batch: images of one label may change places, and do so between
    seeds. Each is put where the reference has the image of its label that is likest, one to one,
    at the least total squared error. No true image is needed for that.
    """
    ordered = images.clone()
    for label in labels.unique():
        places = (labels == label).nonzero().flatten()
        target = reference[places].flatten(1).double()
        for seed, own in zip(ordered, images[:, places], strict=True):
            # The matrix-product form of cdist loses the small distances that decide here.
            distance = torch.cdist(
                target, own.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist"
            )
            _, order = linear_sum_assignment(distance.square().cpu().numpy())
            seed[places] = own[torch.from_numpy(order).to(own.device)]
    return ordered


@dataclass(frozen=True)
class GroupConsistency:
    """weight * mean_j |x_rj - E_j| of each seed r, E the consensus (Yin et al. 2021, eq. 11).

    Deviation: the paper registers with a dense flow (RANSAC-flow, a network trained for it); here
    it is a translation by phase correlation. Of all deformations it is the one that a convolutional
    network with pooling sees least, and so the one in which seeds differ; it has two numbers to
    estimate where a flow has thousands, and so still works on noisy pictures; and it needs no
    trained network. Where the network sees positions, it is mostly zero. The consensus is taken
    anew at every step and is a constant of its gradient.

    The images of a batch are taken to be in the same order in every seed. That holds for distinct
    labels; images with the same label may change places between seeds.

    Attributes:
        weight: of the pull, per normalised pixel unit.
        start: progress of the stage at which the pull begins; before, there is nothing to agree on.
        reach: largest displacement in pixels.
    """

    sees: ClassVar[Sees] = "restarts"
    weight: float
    start: float = 0.5
    reach: int = 4

    def __call__(self, images: Seeds) -> Float[Tensor, " restart"]:
        """Returns the weighted penalty of every seed; images in normalised units."""
        agreed = consensus(images.detach(), reach=self.reach)
        apart = (images - agreed).flatten(2)
        # The norm has no gradient at 0, which is where a single seed always stands.
        norm = (apart.square().sum(dim=2) + 1e-12).sqrt()
        return self.weight * norm.mean(dim=1)
