"""Products of a convolution, computed directly or as products of matrices.

Small images with many channels keep a direct convolution busy with the weights' memory order rather
than with work. There the patches under the kernel become the rows of a matrix U, so that
W * a = U W^T, dL/dW = gy^T U, and W^T * gy puts the rows of gy W back where the patches came from.
Which way is taken follows from the shapes alone, so that a run and its resumption do the same.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradinv.engine.rules.geometry import Geometry
from gradinv.engine.rules.op import channel_major, kernel_order, rows_of
from gradinv.engine.rules.products import Products, part

_backward = torch.ops.aten.convolution_backward.default

# Pixels of an output image up to which a direct convolution wastes most of its time.
_SMALL_IMAGE = 16
# Channels of the input up to which a direct transposed convolution does.
_FEW_CHANNELS = 4
# Elements of the input up to which PyTorch convolves a single image by a path of its own, which
# builds the patches for every product again and copies channels-last images back and forth.
_SINGLE_IMAGE = 20480


def products_of(geometry: Geometry, weight: Tensor) -> Products:
    """Returns the way to compute a convolution's products that is fastest for its shapes."""
    outputs = len(weight)
    if geometry.groups > 1:
        return Direct(geometry)
    height, width = geometry.out_size
    small = height * width <= _SMALL_IMAGE or geometry.positions <= outputs
    if small or geometry.kernel == (1, 1):
        return ByMatrix(geometry, channel_major=channel_major(weight))
    if geometry.in_shape[1] <= _FEW_CHANNELS and not channel_major(weight):
        return FewChannels(geometry)
    if geometry.in_shape[0] == 1 and geometry.in_shape.numel() <= _SINGLE_IMAGE:
        return ByMatrix(geometry, channel_major=channel_major(weight))
    # The gradient of the weights sums over positions; with few of them it is the first to suffer.
    few = geometry.positions <= outputs * (8 if geometry.stride != (1, 1) else 2)
    return DirectButOuter(geometry) if few else Direct(geometry)


class OfImages:
    """Base class: Gram matrices follow from where the kernel lies, however products are computed.

    Args:
        geometry: of the run.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry

    def spread(self, gy: Tensor, restarts: int) -> Tensor:
        """Returns the rows of gy as the Gram matrices order them."""
        return self.geometry.spread(gy, restarts)

    def gathered(self, rows: Tensor) -> Tensor:
        """Returns what :meth:`spread` took apart."""
        return self.geometry.gathered(rows)

    def gram(self, a: Tensor, restarts: int) -> Tensor:
        """Returns U U^T of every restart."""
        return _gram(self.geometry, a, restarts)

    def through_gram(self, gram: Tensor, a: Tensor) -> Tensor:
        """Returns the image of gram U."""
        return _through_gram(self.geometry, gram, a)


class Direct(OfImages):
    """A library's convolution for every product."""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__(geometry)
        g = geometry
        self._settings = list(g.stride), list(g.padding), list(g.dilation)

    def prepared(self, a: Tensor) -> Tensor:
        """Returns the input."""
        return a

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the convolution."""
        return functional.conv2d(a, weight, bias, *self._settings, self.geometry.groups)

    def add_forward(self, y: Tensor, a: Tensor, weight: Tensor) -> None:
        """Adds the convolution in place."""
        y.add_(self.forward(a, weight, None))

    def backward(self, gy: Tensor, weight: Tensor) -> Tensor:
        """Returns the transposed convolution."""
        # The input gives its shape and memory order alone.
        like = torch.empty(
            (gy.shape[0], *self.geometry.in_shape[1:]),
            dtype=gy.dtype, device=gy.device, memory_format=torch.channels_last,
        )  # fmt: skip
        return self._both(gy, like, weight, [True, False, False])[0]

    def add_backward(self, sums: Tensor, gy: Tensor, weight: Tensor) -> None:
        """Adds the transposed convolution in place."""
        sums.add_(self.backward(gy, weight))

    def of_restart(self, sums: Tensor, index: int, restarts: int) -> Tensor:
        """Returns one restart's images."""
        return part(sums, index, restarts)

    def image(self, sums: Tensor) -> Tensor:
        """Returns the sums, which are images."""
        return sums

    def outer(self, gy: Tensor, a: Tensor) -> Tensor:
        """Returns dL/dW."""
        g = self.geometry
        # The weight gives its shape and memory order alone.
        like = torch.empty(
            (gy.shape[1], a.shape[1] // g.groups, *g.kernel),
            dtype=gy.dtype, device=gy.device, memory_format=torch.channels_last,
        )  # fmt: skip
        return kernel_order(self._both(gy, a, like, [False, True, False])[1])

    def _both(self, gy: Tensor, a: Tensor, weight: Tensor, mask: list[bool]) -> Any:
        settings = *self._settings, False, [0, 0], self.geometry.groups
        return _backward(gy, a, weight, None, *settings, mask)


class DirectButOuter(Direct):
    """A library's convolution, but dL/dW as a product of matrices."""

    def outer(self, gy: Tensor, a: Tensor) -> Tensor:
        """Returns dL/dW."""
        gradient = rows_of(gy).t() @ self.geometry.patches(a)
        return kernel_order(_kernel(gradient, self.geometry, channel_major=False))


class FewChannels(Direct):
    """A library's convolution, but the transposed one as a product of matrices.

    Its sums are (kernel * channel, batch * height * width).
    """

    def backward(self, gy: Tensor, weight: Tensor) -> Tensor:
        """Returns W^T gy^T."""
        return matrix_of(weight).t() @ rows_of(gy).t()

    def add_backward(self, sums: Tensor, gy: Tensor, weight: Tensor) -> None:
        """Adds W^T gy^T in place."""
        sums.addmm_(matrix_of(weight).t(), rows_of(gy).t())

    def of_restart(self, sums: Tensor, index: int, restarts: int) -> Tensor:
        """Returns one restart's columns."""
        size = sums.shape[1] // restarts
        return sums.narrow(1, index * size, size)

    def image(self, sums: Tensor) -> Tensor:
        """Returns the image that the sums are the patches of."""
        return self.geometry.put_back_planes(sums)


class ByMatrix(OfImages):
    """Products of matrices; the prepared input is U.

    Args:
        geometry: of the run.
        channel_major: memory order of the kernel, and so of the columns of U.
    """

    def __init__(self, geometry: Geometry, *, channel_major: bool) -> None:
        super().__init__(geometry)
        self.channel_major = channel_major

    def prepared(self, a: Tensor) -> Tensor:
        """Returns U."""
        return self.geometry.patches(a, channel_major=self.channel_major)

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns U W^T + b."""
        y = functional.linear(a, matrix_of(weight), bias)
        return y.view(-1, *self.geometry.out_size, weight.shape[0]).permute(0, 3, 1, 2)

    def add_forward(self, y: Tensor, a: Tensor, weight: Tensor) -> None:
        """Adds U W^T in place."""
        rows_of(y).addmm_(a, matrix_of(weight).t())

    def backward(self, gy: Tensor, weight: Tensor) -> Tensor:
        """Returns gy W."""
        return rows_of(gy) @ matrix_of(weight)

    def add_backward(self, sums: Tensor, gy: Tensor, weight: Tensor) -> None:
        """Adds gy W in place."""
        sums.addmm_(rows_of(gy), matrix_of(weight))

    def of_restart(self, sums: Tensor, index: int, restarts: int) -> Tensor:
        """Returns one restart's rows."""
        return part(sums, index, restarts)

    def image(self, sums: Tensor) -> Tensor:
        """Returns the image that the sums are the patches of."""
        return self.geometry.put_back(sums, channel_major=self.channel_major)

    def outer(self, gy: Tensor, a: Tensor) -> Tensor:
        """Returns dL/dW."""
        gradient = rows_of(gy).t() @ a
        return _kernel(gradient, self.geometry, channel_major=self.channel_major)


def _kernel(matrix: Tensor, geometry: Geometry, *, channel_major: bool) -> Tensor:
    """Returns the kernel that :func:`matrix_of` would show as this matrix."""
    if channel_major:
        return matrix.view(len(matrix), -1, *geometry.kernel)
    return matrix.view(len(matrix), *geometry.kernel, -1).permute(0, 3, 1, 2)


def _gram(geometry: Geometry, a: Tensor, restarts: int) -> Tensor:
    if geometry.centred:
        rows = geometry.spread(a, restarts)
        return geometry.summed_over_offsets(rows @ rows.mT)
    patches = geometry.patches(a).unflatten(0, (restarts, -1))
    return patches @ patches.mT


def _through_gram(geometry: Geometry, gram: Tensor, a: Tensor) -> Tensor:
    if geometry.centred:
        moved = geometry.summed_over_offsets(gram) @ geometry.spread(a, len(gram))
        return geometry.gathered(moved)
    patches = geometry.patches(a).unflatten(0, (len(gram), -1))
    return geometry.put_back((gram @ patches).flatten(0, 1))


def matrix_of(weight: Tensor) -> Tensor:
    """Returns a kernel as a matrix with its elements in the order of its memory."""
    if channel_major(weight):
        return weight.reshape(len(weight), -1)
    return weight.permute(0, 2, 3, 1).reshape(len(weight), -1)
