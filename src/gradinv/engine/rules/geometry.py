"""Where a convolution's kernel lies on its images, and patches taken and put back."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gradinv.engine.rules.op import channels_last


@dataclass(frozen=True)
class Geometry:
    """Sizes of a convolution in one run; images are channels-last in memory.

    Attributes:
        in_shape: (batch, channel, height, width), restarts folded into the batch.
        kernel: (height, width).
        stride: (height, width).
        padding: (height, width), with zeros.
        dilation: (height, width).
        groups: of channels.
    """

    in_shape: torch.Size
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def out_size(self) -> tuple[int, int]:
        """Height and width of the output."""
        height, width = (
            (size + 2 * pad - reach * (extent - 1) - 1) // step + 1
            for size, pad, reach, extent, step in zip(
                self.in_shape[2:], self.padding, self.dilation, self.kernel, self.stride,
                strict=True,
            )
        )  # fmt: skip
        return height, width

    @property
    def positions(self) -> int:
        """Pixels of the output over the whole batch."""
        height, width = self.out_size
        return self.in_shape[0] * height * width

    @property
    def centred(self) -> bool:
        """Whether every pixel of the input is one of the output, under the kernel's middle."""
        reach = [
            d * (k - 1) == 2 * p
            for d, k, p in zip(self.dilation, self.kernel, self.padding, strict=True)
        ]
        return self.stride == (1, 1) and all(reach)

    def patches(self, a: Tensor, *, channel_major: bool = False) -> Tensor:
        """Returns U (batch * height * width, kernel * channel): what the kernel covers.

        With ``channel_major``, its columns are (channel * kernel).
        """
        images = a.permute(0, 2, 3, 1)
        top, left = self.padding
        if top or left:
            images = functional.pad(images, (0, 0, left, left, top, top))
        (height, width), (rows, columns) = self.out_size, self.kernel
        batch, _, _, channels = images.shape
        s = images.stride()
        stride = (
            s[0], s[1] * self.stride[0], s[2] * self.stride[1],
            s[1] * self.dilation[0], s[2] * self.dilation[1], s[3],
        )  # fmt: skip
        covered = images.as_strided((batch, height, width, rows, columns, channels), stride)
        if channel_major:
            covered = covered.permute(0, 1, 2, 5, 3, 4)
        return covered.reshape(-1, rows * columns * channels)

    def windows(self) -> list[tuple[int, int, slice, slice]]:
        """Returns for each element of the kernel the pixels of the padded image that it covers."""
        (height, width), (down, across) = self.out_size, self.stride
        found = []
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                y, x = row * self.dilation[0], column * self.dilation[1]
                found.append((
                    row, column,
                    slice(y, y + down * (height - 1) + 1, down),
                    slice(x, x + across * (width - 1) + 1, across),
                ))  # fmt: skip
        return found

    def put_back(self, patches: Tensor, *, channel_major: bool = False) -> Tensor:
        """Returns images to which every row of patches was added where it had been taken."""
        (rows, columns), (height, width) = self.kernel, self.out_size
        _, channels, full_height, full_width = self.in_shape
        if channel_major:
            parts = patches.view(-1, height, width, channels, rows, columns)
            parts = parts.permute(0, 1, 2, 4, 5, 3)
        else:
            parts = patches.view(-1, height, width, rows, columns, channels)
        if (rows, columns) == self.stride == (1, 1) and self.padding == (0, 0):
            return parts[:, :, :, 0, 0].permute(0, 3, 1, 2)
        top, left = self.padding
        images = patches.new_zeros(
            len(parts), full_height + 2 * top, full_width + 2 * left, channels
        )
        for row, column, down, across in self.windows():
            # Not "+=", which copies the sum onto itself after it is made.
            images[:, down, across].add_(parts[:, :, :, row, column])
        inner = images[:, top : top + full_height, left : left + full_width]
        return channels_last(inner.permute(0, 3, 1, 2))

    def put_back_planes(self, planes: Tensor) -> Tensor:
        """As :meth:`put_back` from (kernel * channel, batch * height * width).

        Rows of an image stay together in memory, which is faster where channels are few.
        """
        (rows, columns), (height, width) = self.kernel, self.out_size
        _, channels, full_height, full_width = self.in_shape
        parts = planes.view(rows, columns, channels, -1, height, width)
        top, left = self.padding
        images = planes.new_zeros(
            channels, parts.shape[3], full_height + 2 * top, full_width + 2 * left
        )
        for row, column, down, across in self.windows():
            images[:, :, down, across].add_(parts[row, column])
        return images[:, :, top : top + full_height, left : left + full_width].transpose(0, 1)

    @property
    def _spread_size(self) -> tuple[int, int]:
        """Height and width of an image with zeros below and beside it, as far as a kernel reaches.

        In the order of memory, the neighbours of a pixel that lie outside its image are then zeros,
        and every neighbour is a fixed number of pixels away.
        """
        reach = [d * (k // 2) for d, k in zip(self.dilation, self.kernel, strict=True)]
        return self.out_size[0] + reach[0], self.out_size[1] + reach[1]

    def spread(self, images: Tensor, restarts: int) -> Tensor:
        """Returns (restart, position, channel) with the zeros between images, for a centred kernel.

        A kernel that is not centred has none; there it returns the pixels as they are.
        """
        rows = images.permute(0, 2, 3, 1)
        if self.centred:
            (height, width), (full_height, full_width) = self.out_size, self._spread_size
            rows = functional.pad(rows, (0, 0, 0, full_width - width, 0, full_height - height))
        return rows.reshape(restarts, -1, images.shape[1])

    def gathered(self, rows: Tensor) -> Tensor:
        """Returns the images that :meth:`spread` took apart."""
        size = self._spread_size if self.centred else self.out_size
        images = rows.view(-1, *size, rows.shape[2]).permute(0, 3, 1, 2)
        return images[:, :, : self.out_size[0], : self.out_size[1]]

    def summed_over_offsets(self, gram: Tensor) -> Tensor:
        """Returns the sum over the kernel's offsets t of gram[p + t, q + t], for a centred kernel.

        <U_p, U_q> is the sum over t of <a_(p + t), a_(q + t)>, so products of pixels give those of
        patches. The sum goes one axis after the other.

        Args:
            gram: (restart, position, position) in the order of :meth:`spread`.
        """
        pixels = (self._spread_size[1], 1)
        for extent, dilation, step in zip(self.kernel, self.dilation, pixels, strict=True):
            total = gram.clone()
            for offset in range(1, extent // 2 + 1):
                t = offset * dilation * step
                total[:, t:, t:].add_(gram[:, :-t, :-t])
                total[:, :-t, :-t].add_(gram[:, t:, t:])
            gram = total
        return gram
