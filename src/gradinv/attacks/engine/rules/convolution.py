"""Rule of convolution, computed directly or as products of matrices.

Small images with many channels keep a direct convolution busy with the weights' memory order rather
than with work. There the patches under the kernel become the rows of a matrix U, so that
W * a = U W^T, dL/dW = gy^T U, and W^T * gy puts the rows of gy W back where the patches came from.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradinv.attacks.engine.rules.op import Saved, channels_last, rows_of
from gradinv.attacks.engine.rules.weighted import Weighted, ghost_pays

_backward = torch.ops.aten.convolution_backward.default

# Output pixels of one image up to which a direct convolution wastes most of its time.
_SMALL_IMAGE = 16


class Convolution(Weighted):
    """Two-dimensional convolution with zero padding; images are channels-last in memory."""

    dimensions = 4

    def __init__(
        self,
        weight: str,
        bias: str | None,
        *,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> None:
        super().__init__(weight, bias)
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def open(self, saved: Saved, a: Tensor, weight: Tensor) -> None:
        """Takes matrices for small images, few positions and kernels of one pixel.

        The rule follows the shapes alone, so that a run and its resumption do the same.
        """
        out, _, *kernel = weight.shape
        saved.kernel = kernel
        saved.out_size = [
            (size + 2 * pad - reach * (extent - 1) - 1) // step + 1
            for size, pad, reach, extent, step in zip(
                a.shape[2:], self.padding, self.dilation, kernel, self.stride, strict=True
            )
        ]
        pixels = saved.out_size[0] * saved.out_size[1]
        few = pixels <= _SMALL_IMAGE or a.shape[0] * pixels <= out
        saved.by_matrix = self.groups == 1 and (few or kernel == [1, 1])

    def prepared(self, saved: Saved, a: Tensor) -> Tensor:
        """Returns the patches (batch * height * width, kernel * channel), or the input itself."""
        return self.patches(saved, a) if saved.by_matrix else a

    def patches(self, saved: Saved, a: Tensor) -> Tensor:
        """Returns U: what lies under the kernel at every position of the output."""
        images = a.permute(0, 2, 3, 1)
        top, left = self.padding
        if top or left:
            images = functional.pad(images, (0, 0, left, left, top, top))
        (height, width), (rows, columns) = saved.out_size, saved.kernel
        channels = a.shape[1]
        s = images.stride()
        shape = (a.shape[0], height, width, rows, columns, channels)
        stride = (
            s[0],
            s[1] * self.stride[0],
            s[2] * self.stride[1],
            s[1] * self.dilation[0],
            s[2] * self.dilation[1],
            s[3],
        )
        patches = images.as_strided(shape, stride)
        return patches.reshape(-1, rows * columns * channels)

    def product(self, saved: Saved, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Returns the convolution."""
        if not saved.by_matrix:
            return functional.conv2d(
                a, weight, bias, self.stride, self.padding, self.dilation, self.groups
            )
        y = functional.linear(a, matrix_of(weight), bias)
        return y.view(-1, *saved.out_size, weight.shape[0]).permute(0, 3, 1, 2)

    def transposed(self, saved: Saved, gy: Tensor, weight: Tensor) -> Tensor:
        """Returns the transposed convolution."""
        if not saved.by_matrix:
            # The input gives its shape and memory order alone.
            shape = (gy.shape[0], *saved.in_shape[1:])
            like = torch.empty(
                shape, dtype=gy.dtype, device=gy.device, memory_format=torch.channels_last
            )
            return self._direct(gy, like, weight, [True, False, False])[0]
        return self.put_back(saved, rows_of(gy) @ matrix_of(weight), gy.shape[0])

    def put_back(self, saved: Saved, patches: Tensor, batch: int) -> Tensor:
        """Returns images in which every patch was added where it had been taken."""
        (rows, columns), (height, width) = saved.kernel, saved.out_size
        _, channels, full_height, full_width = saved.in_shape
        parts = patches.view(batch, height, width, rows, columns, channels)
        if rows == columns == 1 and self.stride == [1, 1] and self.padding == [0, 0]:
            return parts[:, :, :, 0, 0].permute(0, 3, 1, 2)
        top, left = self.padding
        images = patches.new_zeros(batch, full_height + 2 * top, full_width + 2 * left, channels)
        for row in range(rows):
            for column in range(columns):
                y, x = row * self.dilation[0], column * self.dilation[1]
                images[
                    :,
                    y : y + self.stride[0] * (height - 1) + 1 : self.stride[0],
                    x : x + self.stride[1] * (width - 1) + 1 : self.stride[1],
                ] += parts[:, :, :, row, column]
        inner = images[:, top : top + full_height, left : left + full_width]
        return channels_last(inner.permute(0, 3, 1, 2))

    def gram(self, saved: Saved, restarts: int) -> Tensor:
        """Returns U U^T of every restart."""
        if self._same(saved):
            own = rows_of(saved.input).unflatten(0, (restarts, -1))
            return self._shifted(saved, own @ own.mT)
        own = self._patches_of(saved).unflatten(0, (restarts, -1))
        return own @ own.mT

    def through_gram(self, saved: Saved, gram: Tensor) -> Tensor:
        """Returns (gy^T U)^T * gy from gy gy^T of every restart."""
        if self._same(saved):
            own = rows_of(saved.input).unflatten(0, (len(gram), -1))
            images = self._shifted(saved, gram) @ own
            _, channels, height, width = saved.in_shape
            return images.view(-1, height, width, channels).permute(0, 3, 1, 2)
        own = self._patches_of(saved).unflatten(0, (len(gram), -1))
        return self.put_back(saved, (gram @ own).flatten(0, 1), saved.in_shape[0])

    def ghost_pays(self, saved: Saved, weight: Tensor, restarts: int) -> bool:
        """Whether the Gram matrices are less work than dL/dW."""
        if self.groups != 1:
            return False
        out, channels = weight.shape[:2]
        positions = saved.in_shape[0] // restarts * saved.out_size[0] * saved.out_size[1]
        row = channels if self._same(saved) else weight.numel() // out
        return ghost_pays(positions, out + row, weight.numel())

    def _patches_of(self, saved: Saved) -> Tensor:
        return saved.a if saved.by_matrix else self.patches(saved, saved.a)

    def _same(self, saved: Saved) -> bool:
        """Whether every position of the input is one of the output, and the kernel is centred."""
        centred = [
            d * (k - 1) == 2 * p
            for d, k, p in zip(self.dilation, saved.kernel, self.padding, strict=True)
        ]
        return self.stride == [1, 1] and all(centred)

    def _shifted(self, saved: Saved, gram: Tensor) -> Tensor:
        """Returns the sum over the kernel's offsets t of gram[p + t, q + t], zero outside.

        <U_p, U_q> is the sum over t of <a_(p + t), a_(q + t)>, so the products of pixels give those
        of patches; the sum goes one axis after the other.
        """
        height, width = saved.out_size
        images = gram.shape[1] // (height * width)
        grid = gram.view(len(gram), images, height, width, images, height, width)
        for axis in (0, 1):
            reach, step = saved.kernel[axis] // 2, self.dilation[axis]
            total = grid.clone()
            for offset in range(step, reach * step + 1, step):
                size = grid.shape[2 + axis]
                if offset >= size:
                    break
                for start, source in ((0, offset), (offset, 0)):
                    length = size - offset
                    into = total.narrow(2 + axis, start, length).narrow(5 + axis, start, length)
                    into += grid.narrow(2 + axis, source, length).narrow(5 + axis, source, length)
            grid = total
        return grid.reshape(gram.shape)

    def outer(self, saved: Saved, gy: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """Returns dL/dW."""
        if not saved.by_matrix:
            return channels_last(self._direct(gy, a, weight, [False, True, False])[1])
        gradient = rows_of(gy).t() @ a
        return gradient.view(-1, *saved.kernel, weight.shape[1]).permute(0, 3, 1, 2)

    def _direct(self, gy: Tensor, a: Tensor, weight: Tensor, mask: list[bool]) -> Any:
        return _backward(
            gy, a, weight, None, self.stride, self.padding, self.dilation, False, [0, 0],
            self.groups, mask,
        )  # fmt: skip


def matrix_of(weight: Tensor) -> Tensor:
    """Returns a channels-last kernel as a matrix (output, kernel * input)."""
    return weight.permute(0, 2, 3, 1).reshape(weight.shape[0], -1)
