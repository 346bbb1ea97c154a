"""The linear system that a layer's input solves, once its output is known."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from gradinv.attacks.recursion.chain import Link

# Singular values below this part of the largest are noise of a float32 gradient.
RELATIVE = 1e-5


@dataclass(frozen=True, eq=False)
class System:
    """A x = b: the weight constraints above, the gradient constraints below.

    Attributes:
        matrix: A; each of the two blocks has rows of root mean square norm 1.
        right: b.
        shape: of x.
        slope: dl/dx, for the layer before.
    """

    matrix: Float[Tensor, "equation unknown"]
    right: Float[Tensor, " equation"]
    shape: tuple[int, ...]
    slope: Tensor

    @classmethod
    def identity(cls, link: Link, known: Tensor, slope: Tensor) -> "System":
        """Returns x = known, for a layer whose gradient alone determines its input."""
        size = known.numel()
        eye = torch.eye(size, dtype=known.dtype)
        return cls(eye, known.flatten(), link.entering, slope.reshape(link.entering))

    @property
    def unknowns(self) -> int:
        """How many numbers x has."""
        return self.matrix.shape[1]

    @cached_property
    def _solved(self) -> tuple[Tensor, int]:
        """Returns the solution of least norm, and the rank.

        By the eigenvectors of the smaller of A'A and AA', several times faster than singular
        values; squaring costs nothing here: what it blurs (1e-8) is far below RELATIVE.
        """
        equations, unknowns = self.matrix.shape
        wide = equations < unknowns
        gram = self.matrix @ self.matrix.T if wide else self.matrix.T @ self.matrix
        values, vectors = torch.linalg.eigh(gram)
        large = values > RELATIVE**2 * values[-1]
        values, vectors = values[large], vectors[:, large]
        solution = self.matrix.new_zeros(unknowns)
        for _ in range(2):  # the second time on what rounding left
            error = self.right - self.matrix @ solution
            inner = error if wide else self.matrix.T @ error
            step = vectors @ (vectors.T @ inner / values)
            solution = solution + (self.matrix.T @ step if wide else step)
        return solution, len(values)

    @property
    def solution(self) -> Tensor:
        """The least-squares solution of least norm, in the shape of x."""
        return self._solved[0].reshape(self.shape)

    @property
    def rank(self) -> int:
        """Of A, counting singular values that a float32 gradient can tell from zero."""
        return self._solved[1]

    @property
    def residual(self) -> float:
        """|A x - b|^2 / |b|^2 at the solution."""
        error = self.matrix @ self._solved[0] - self.right
        return float(error.square().sum() / self.right.square().sum())


def system_of(
    link: Link,
    leaving: Tensor,
    slope: Tensor,
    gradient: Mapping[str, Tensor],
    *,
    kept: Tensor | None = None,
) -> System:
    """Returns the system of one convolution or linear layer.

    Args:
        link: the layer.
        leaving: its output a, of one image.
        slope: k = dl/da.
        gradient: by parameter name; the layer's weight is read, and a linear layer's bias.
        kept: which entries of the weight's gradient survived a known sparsification.
    """
    layer = link.layer
    observed = gradient[f"{link.name}.weight"]
    if isinstance(layer, nn.Linear):
        k = gradient.get(f"{link.name}.bias", slope.flatten())
        seen = torch.ones_like(observed) if kept is None else kept.to(observed)
        norm = (seen * k[:, None].square()).sum(dim=0).clamp_min(torch.finfo(k.dtype).tiny)
        known = (seen * observed * k[:, None]).sum(dim=0) / norm
        return System.identity(link, known, layer.weight.detach().double().cpu().T @ k)
    assert isinstance(layer, nn.Conv2d)
    weight = layer.weight.detach().double().cpu()
    offset = 0 if layer.bias is None else layer.bias.detach().double().cpu()[:, None, None]
    size = link.inputs
    eye = torch.eye(size, dtype=torch.float64)
    images = eye.reshape(size, *link.entering)
    upper = functional.conv2d(
        images, weight, None, layer.stride, layer.padding, layer.dilation
    ).flatten(1).T  # fmt: skip
    lower = _gradient_rows(layer, link.entering, slope.reshape(leaving.shape))
    right = observed.flatten()
    if kept is not None:
        lower, right = lower[kept.flatten()], right[kept.flatten()]
    blocks = []
    for rows, values in ((upper, (leaving - offset).flatten()), (lower, right)):
        scale = rows.square().sum(dim=1).mean().sqrt().clamp_min(torch.finfo(rows.dtype).tiny)
        blocks.append((rows / scale, values / scale))
    before = (upper.T @ slope.flatten()).reshape(link.entering)  # W^T k
    return System(
        torch.cat([rows for rows, _ in blocks]),
        torch.cat([values for _, values in blocks]),
        link.entering,
        before,
    )


def _gradient_rows(
    layer: nn.Conv2d, entering: tuple[int, ...], slope: Float[Tensor, "out height width"]
) -> Float[Tensor, "equation unknown"]:
    """Returns G with dl/dW = G x, the rows in the order of W's entries.

    dW[o, c, u, v] = sum_p k[o, p] x[c, p stride + (u, v) - padding]: the same for every channel c.
    """
    assert not isinstance(layer.padding, str)
    channels, height, width = entering
    pixels = height * width
    eye = torch.eye(pixels, dtype=slope.dtype).reshape(pixels, 1, height, width)
    patches = functional.unfold(eye, layer.kernel_size, layer.dilation, layer.padding, layer.stride)
    one = torch.einsum("op,nkp->okn", slope.flatten(1), patches)  # for one channel
    out, taps, _ = one.shape
    rows = one.new_zeros(out, channels, taps, channels, pixels)
    for channel in range(channels):
        rows[:, channel, :, channel] = one
    return rows.reshape(out * channels * taps, channels * pixels)
