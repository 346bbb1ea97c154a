"""Which reconstructed image belongs to which original."""

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from gradinv.errors import DataError


def match(
    originals: Float[Tensor, "batch channel height width"],
    reconstructions: Float[Tensor, "batch channel height width"],
) -> Int[Tensor, " batch"]:
    """Pairs originals with reconstructions one to one, at the least total squared error.

    A gradient is a mean over the batch, so an attack cannot know the order of the images. Each
    reconstruction is used exactly once (Hungarian method): many-to-one pairs would let one good
    image stand for all.

    Returns:
        For each original the index of its reconstruction, on the CPU.

    Raises:
        DataError: shapes differ, or a reconstruction is not finite.
    """
    check_comparable(reconstructions, originals)
    target = originals.detach().cpu().double().flatten(1)
    preds = reconstructions.detach().cpu().double().flatten(1)
    # The matrix-product form of cdist loses the small distances that decide here.
    distance = torch.cdist(target, preds, compute_mode="donot_use_mm_for_euclid_dist").square()
    _, columns = linear_sum_assignment(distance.numpy())
    return torch.from_numpy(columns)


def check_comparable(preds: Tensor, target: Tensor) -> None:
    """Checks that two batches of images can be compared pixel by pixel.

    Raises:
        DataError: shapes differ, or a reconstruction is not finite.
    """
    if preds.shape != target.shape or target.ndim != 4:
        raise DataError(
            "expected reconstructions of the originals' shape (batch, channel, height, width) = "
            f"{tuple(target.shape)}, got {tuple(preds.shape)}; judge them against their own batch"
        )
    broken = [i for i, image in enumerate(preds) if not bool(image.isfinite().all())]
    if broken:
        raise DataError(
            f"expected finite pixels, got NaN or infinity in reconstructions {broken}; "
            "lower the attack's step size"
        )
